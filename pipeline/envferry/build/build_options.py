"""Where and how to build."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from envferry.build.request import BuildVariation
from envferry.config import settings

if TYPE_CHECKING:
    from pathlib import Path


def usual_builds_dir() -> Path:
    """Return where builds are left: in the cache. Raises SpecError where there is no place."""
    return settings().cache_dir / "builds"


class BuildOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how to build."""

    builds_dir: Path = msgspec.field(default_factory=usual_builds_dir)
    """Holds one directory for each environment and platform; in the cache by default."""
    prefix: str | None = None
    """The path that the environment believes it lives at; `/opt/conda/envs/NAME` by default."""
    offline: bool = False
    """Take everything from the cache; anything missing is an error."""
    check: bool = True
    """Run the spec's checks in the finished environment."""
    allow_clobber: tuple[str, ...] = ()
    """Packages, of either half, whose wheel may overwrite files of conda's."""
    allow_conflict: tuple[str, ...] = ()
    """Packages whose own requirements need not hold."""
    variation: BuildVariation = msgspec.field(default_factory=BuildVariation)
    """What must make no difference."""
    from_scratch: bool = False
    """Do not start from the previous build."""
    anew: bool = False
    """Also build the wheels of sources again, though the cache has them."""
