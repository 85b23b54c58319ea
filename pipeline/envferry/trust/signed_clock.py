"""What time it is at least: the clock of a host without network may be wrong.

The newest time in a signed record that this host accepted is a floor. A clock that runs ahead is
not found out; it can only make things end too early.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import msgspec

from envferry.base.files import make_folders, write_bytes
from envferry.base.json import from_json, to_json
from envferry.base.times import parse_time, rfc3339
from envferry.names import SEEN_DIRECTORY

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

NEWEST = "newest-time.json"
TOLERATED = timedelta(minutes=5)
"""So much two correct clocks may differ, without a warning."""


class NewestTime(msgspec.Struct, frozen=True, kw_only=True):
    """The newest time that this host has seen in a signed record, and in which."""

    time: str
    record: str
    schema: int = 1


class SignedClock(msgspec.Struct, frozen=True):
    """The time by this machine's clock, and by what it has seen."""

    envs_dir: Path | None
    """Where it remembers; None for who remembers nothing."""
    clock: datetime
    notes: bool = True
    """Whether it also remembers what it sees; else it only goes by what was seen before."""

    @classmethod
    def here(cls, envs_dir: Path | None, *, notes: bool = True) -> SignedClock:
        """Return this machine's clock."""
        return cls(envs_dir, datetime.now(timezone.utc), notes)

    @property
    def now(self) -> datetime:
        """The time: the clock's, or the newest that was seen."""
        path = self._path
        if path is None:
            return self.clock
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return self.clock
        except PermissionError:
            if self.notes:
                raise
            return self.clock  # another user's host: what it has seen is not for us to read
        seen = parse_time(from_json(data, NewestTime, str(path)).time)
        # A floor: a clock that was set back does not revive what the newest record says has ended.
        return max(seen, self.clock)

    def see(self, time: str, record: str) -> None:
        """Note the time of a signed record that was accepted, if it is newer than all before."""
        path = self._path
        # A time that is not valid counts as 1970 (parse_time), and so is never noted.
        if path is None or not self.notes or parse_time(time) <= self.now:
            return
        if parse_time(time) - self.clock > TOLERATED:
            log.warning(
                "the clock of this machine is behind: %s is of %s, and it says %s",
                *(record, time, rfc3339(self.clock)),
            )
        make_folders(path.parent)
        write_bytes(path, to_json(NewestTime(time=time, record=record)))

    @property
    def _path(self) -> Path | None:
        return self.envs_dir / SEEN_DIRECTORY / NEWEST if self.envs_dir else None
