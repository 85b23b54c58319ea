"""What the pip half of a lock is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from envferry.base.site_indexes import SiteIndexes
from envferry.lock.pip.wheel_choice import DEFAULT_GLIBC, WheelTarget

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.models import LockedPackage


class PipRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to resolve, and for which python and platform."""

    requirements: tuple[str, ...]
    """Requirement lines, and option lines such as `--extra-index-url …`."""
    python_version: str
    platform: str
    constraints: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    """Names that never appear in the answer."""
    provided: tuple[tuple[str, str], ...] = ()
    """Names and versions that the environment has already: fixed, and not part of the answer."""
    glibc: str | None = None
    working_dir: Path | None = None
    """What relative paths in requirements start from."""
    kept: tuple[LockedPackage, ...] = ()
    """What an earlier lock has: stays, as far as the requirements allow it."""
    updated: tuple[str, ...] = ()
    """Names that alone may move; when there are any, all else of `kept` must stay."""
    exclude_newer: str | None = None
    """A date: what an index got later does not exist."""
    offline: bool = False
    """Whether only uv's cache is read."""

    indexes: SiteIndexes = msgspec.field(default_factory=SiteIndexes)
    """What the machine's settings name, beside what `requirements` do."""

    @property
    def target(self) -> WheelTarget:
        """What wheels are chosen for."""
        return WheelTarget(
            python_version=self.python_version,
            platform=self.platform,
            glibc=self.glibc or DEFAULT_GLIBC,
        )
