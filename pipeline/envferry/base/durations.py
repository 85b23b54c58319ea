"""How long stages took on this machine, so that the next run can say what it will take."""

from __future__ import annotations

import logging
import statistics
from typing import TYPE_CHECKING

import msgspec

from envferry.base.files import write_bytes
from envferry.base.json import decode_json

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

KEPT = 200
"""Lines; the oldest go first."""
COUNTED = 3
"""How many of the last runs an estimate is the median of."""


class Duration(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a stage."""

    stage: str
    name: str
    """Of the environment."""
    seconds: float
    size: int = 0
    """Bytes that were done; 0 where nothing was counted."""


class Durations:
    """A file of runs, a line of JSON each; it estimates, and nothing depends on it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Duration]:
        """Return the runs that are known, the oldest first; what cannot be read is skipped."""
        try:
            lines = self.path.read_bytes().splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            try:
                # Line by line, so that a damaged one does not hide the others.
                found.append(decode_json(line, Duration))
            except msgspec.MsgspecError as error:
                log.info("a line of %s is skipped: %s", self.path, error)
        return found

    def keep(self, run: Duration) -> None:
        """Note a run, where this user may. Two at once may lose one: only estimates suffer."""
        lines = [msgspec.json.encode(one) + b"\n" for one in (*self.read(), run)[-KEPT:]]
        try:
            write_bytes(self.path, b"".join(lines))
        except OSError as error:
            log.info("cannot write %s: %s", self.path, error.strerror)

    def estimate(self, stage: str, name: str, size: int | None = None) -> float | None:
        """Return how many seconds a stage will take; None where no earlier run tells.

        With a `size` the speed of earlier runs counts, of other environments where this one has
        none. Without, the seconds of earlier runs of this very environment.
        """
        runs = [run for run in self.read() if run.stage == stage]
        own = [run for run in runs if run.name == name]
        if size is None:
            return statistics.median(run.seconds for run in own[-COUNTED:]) if own else None
        if size == 0:
            return 0.0
        speeds = [run.seconds / run.size for run in own or runs if run.size]
        # The median: one slow run among the last three does not move it.
        return size * statistics.median(speeds[-COUNTED:]) if speeds else None
