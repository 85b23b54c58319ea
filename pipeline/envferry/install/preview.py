"""What an install will read, known to the byte before it begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from envferry.install.plan import InstallPlan


class InstallPreview(msgspec.Struct, frozen=True, kw_only=True):
    """What an install will do, known before it reads a frame."""

    name: str
    id: str
    files: int
    reused: int
    """Files that an interrupted install or other installations have."""
    frames: int
    all_frames: int
    fetch_bytes: int
    """Exactly what is read of the archive: its index and these frames, no byte twice."""
    archive_bytes: int

    @property
    def saves(self) -> bool:
        """Whether anything is here already."""
        return self.reused > 0 or self.frames < self.all_frames


def preview_plan(
    plan: InstallPlan, present: Collection[int], frames: Sequence[int]
) -> InstallPreview:
    """Return what is about to be read."""
    archive = plan.archive
    return InstallPreview(
        name=plan.home.name,
        id=archive.index.id,
        files=len(archive.index.files),
        reused=len(present),
        frames=len(frames),
        all_frames=len(archive.index.frames),
        fetch_bytes=archive.fetch_bytes(frames),
        archive_bytes=archive.source.size,
    )
