"""Who changes a host, and when: for its records."""

from __future__ import annotations

from datetime import datetime, timezone

from envferry.config import acting_user
from envferry.install.records.events import Actor


def utc_now() -> str:
    """Return the time as records have it."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return now.replace("+00:00", "Z")


def current_actor() -> Actor:
    """Return who runs this command, now."""
    return Actor(time=utc_now(), user=acting_user())
