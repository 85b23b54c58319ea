"""Who runs a command, and when: for the records of a host."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from envferry.base.files import absolute_path
from envferry.cli.trust import is_file_ref
from envferry.config import acting_user
from envferry.install.events import Actor
from envferry.models import Origin, Ref, fit_to_show


def utc_now() -> str:
    """Return the time as records have it."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return now.replace("+00:00", "Z")


def current_actor() -> Actor:
    """Return who runs this command, now."""
    return Actor(time=utc_now(), user=acting_user())


def origin_of(ref: str, registry: str, signed_by: tuple[str, ...] = ()) -> Origin:
    """Return what the record of an installation says of its origin.

    `signed_by` has the ids of the trusted keys that signed it.
    """
    actor = current_actor()
    if is_file_ref(ref) or Path(ref).is_file():
        source, tag = str(absolute_path(Path(ref))), None
    else:
        parsed = Ref.parse(ref)
        source = registry if "://" in registry else str(absolute_path(Path(registry)))
        tag = None if parsed.is_id else parsed.version
    return Origin(
        time=actor.time,
        user=actor.user,
        source=fit_to_show(source),
        ref=ref,
        tag=tag,
        signed_by=signed_by,
    )
