"""Where an artifact goes, and how it is compressed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from envferry.archive.compression import DEFAULT_LEVEL
from envferry.config import settings
from envferry.models import DIST_DIR

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class PackOptions:
    """Where the artifact goes and how it is compressed."""

    output_dir: Path = DIST_DIR
    mtime: int = field(default_factory=lambda: settings().source_date_epoch)
    """Modification time of every member, in seconds since 1970: SOURCE_DATE_EPOCH, else 1980."""
    level: int = DEFAULT_LEVEL
    threads: int = 0
    """0: as many as there are cores."""
    notes_dir: Path | None = None
    """Where it is noted what was packed, for the next time; None: nothing is noted."""
    reuse: Path | None = None
    """An earlier archive to take compressed frames from; None: the newest one that is found."""
    reuse_from: tuple[Path, ...] = ()
    """Folders to look for one in, besides `output_dir`."""
