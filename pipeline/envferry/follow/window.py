"""Maintenance windows: `02:00-05:00`, `Sat,Sun 22:00-04:00`, in the host's local time."""

from __future__ import annotations

import re
from datetime import datetime, time, timedelta

import msgspec

from envferry.errors import UsageError

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
FORM = re.compile(
    rf"(?:(?P<days>(?:{'|'.join(DAYS)})(?:,(?:{'|'.join(DAYS)}))*) +)?"
    r"(?P<begin>\d\d:\d\d) *- *(?P<end>\d\d:\d\d)"
)


class MaintenanceWindow(msgspec.Struct, frozen=True, kw_only=True):
    """A time of the day, on some days; one that ends earlier than it begins goes past midnight."""

    days: frozenset[int]
    """On which it begins; Monday is 0."""
    begin: time
    end: time

    @classmethod
    def parse(cls, text: str) -> MaintenanceWindow:
        """Parse a window; raise UsageError for anything else."""
        found = FORM.fullmatch(text.strip())
        try:
            if not found:
                raise ValueError(text)
            # The form also fits 29:99, which this refuses.
            begin, end = (time.fromisoformat(found[name]) for name in ("begin", "end"))
        except ValueError as error:
            message = f"{text!r} is not a valid window"
            hint = "write 02:00-05:00 or 'Sat,Sun 22:00-04:00', in local time"
            raise UsageError(message, hint=hint) from error
        names = found["days"].split(",") if found["days"] else DAYS
        return cls(days=frozenset(map(DAYS.index, names)), begin=begin, end=end)

    def contains(self, now: datetime) -> bool:
        """Whether a local time is in it; the same begin and end mean the whole day."""
        moment = now.time().replace(tzinfo=None)
        if self.begin < self.end:
            return now.weekday() in self.days and self.begin <= moment < self.end
        # From here on it ends on the next day, or lasts a whole one.
        if moment >= self.begin:
            return now.weekday() in self.days
        # Past midnight it is still the window of the day on which it began.
        before = (now - timedelta(days=1)).weekday()
        return before in self.days and (moment < self.end)
