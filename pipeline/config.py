"""Settings: the only place that reads environment variables."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import SpecError
from pipeline.models import ENVS_DIR

if TYPE_CHECKING:
    from collections.abc import Mapping

SOURCE_DATE_EPOCH = 315532800
"""1980-01-01, the earliest time that zip files can hold; the mtime of everything in an archive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the environment says; command line options win over it."""

    registry: str
    """Where artifacts and tags live: a directory, `s3://…` or `https://…`."""
    cache_dir: Path
    """Verified downloads and built environments; safe to delete."""
    envs_dir: Path
    """Where a host keeps its environments."""
    source_date_epoch: int
    """Seconds since 1970 that become the mtime of every archive member."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Read `ENVFERRY_REGISTRY`, `ENVFERRY_CACHE`, `ENVFERRY_ENVS_DIR`, `SOURCE_DATE_EPOCH`."""
        home_cache = environ.get("XDG_CACHE_HOME") or f"{environ.get('HOME', '/root')}/.cache"
        epoch = environ.get("SOURCE_DATE_EPOCH", str(SOURCE_DATE_EPOCH))
        if not epoch.isdecimal():
            message = f"SOURCE_DATE_EPOCH is {epoch!r}, expected seconds since 1970"
            raise SpecError(message)
        return cls(
            registry=environ.get("ENVFERRY_REGISTRY", "./artifacts"),
            cache_dir=Path(environ.get("ENVFERRY_CACHE", f"{home_cache}/envferry")),
            envs_dir=Path(environ.get("ENVFERRY_ENVS_DIR", str(ENVS_DIR))),
            source_date_epoch=int(epoch),
        )


def settings() -> Settings:
    """Return the settings of this process."""
    return Settings.from_environ(os.environ)


def child_environ(**changes: str | None) -> dict[str, str]:
    """Return this process's environment with `changes`, None removing a name: for children."""
    environ = {**os.environ, **{name: text or "" for name, text in changes.items()}}
    return {name: text for name, text in environ.items() if changes.get(name, "") is not None}
