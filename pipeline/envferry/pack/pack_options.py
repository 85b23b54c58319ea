"""Where an artifact goes, and how it is compressed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from envferry.archive.compression import DEFAULT_LEVEL
from envferry.config import settings
from envferry.names import DIST_DIR

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from envferry.archive.reader import Source


def no_archive() -> None:
    """Open nothing."""


class PackOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where the artifact goes and how it is compressed."""

    output_dir: Path = DIST_DIR
    mtime: int = msgspec.field(default_factory=lambda: settings().source_date_epoch)
    """Modification time of every member, in seconds since 1970: SOURCE_DATE_EPOCH, else 1980."""
    level: int = DEFAULT_LEVEL
    threads: int = 0
    """0: as many as there are cores."""
    image_digest: bool = False
    """Whether the manifest gets the digest by which an image names the archive. For it, every file
    is read; a push to an OCI registry computes it where it is missing."""
    notes_dir: Path | None = None
    """Where it is noted what was packed, for the next time; None: nothing is noted."""
    reuse: Path | None = None
    """An earlier archive to take compressed frames from; None: the newest one that is found."""
    reuse_from: tuple[Path, ...] = ()
    """Folders to look for one in, besides `output_dir`."""
    rereads: bool = False
    """Whether every file is read, also those that were not written to since the pack before."""
    published: Callable[[], Source | None] = no_archive
    """Opens the archive of a registry, of which frames are read where this machine has none."""

    @property
    def reads_all(self) -> bool:
        """Whether every file has to be read."""
        return self.rereads or self.image_digest
