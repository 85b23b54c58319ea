"""Times as records have them: RFC 3339, in UTC."""

from __future__ import annotations

from datetime import datetime, timezone

import msgspec

from envferry.base.json import convert

LONG_AGO = datetime.fromtimestamp(0, timezone.utc)


def now() -> datetime:
    """Return the time by this machine's clock, in UTC."""
    return datetime.now(timezone.utc)


def parse_time(text: str) -> datetime:
    """Parse a time of RFC 3339; one that is not valid is before all others."""
    return read_time(text) or LONG_AGO


def read_time(text: str) -> datetime | None:
    """Parse a time of RFC 3339, UTC where it does not say; None for one that is not valid."""
    try:
        found = convert(text, datetime)
        return (
            found.astimezone(timezone.utc) if found.tzinfo else found.replace(tzinfo=timezone.utc)
        )
    except (msgspec.MsgspecError, OverflowError):  # 0001-01-01 in the east is in year 0
        return None


def rfc3339(time: datetime) -> str:
    """Return a time to the second: `2026-11-29T12:00:00Z`."""
    return time.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
