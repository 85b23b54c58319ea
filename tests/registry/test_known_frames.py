"""Which runs of an archive a store has already, in another one."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from envferry.archive.reader import Archive, FileSource
from envferry.registry.known_frames import known_ranges
from envferry.stores.port import KnownRange
from tests.support.archives import small_archive

if TYPE_CHECKING:
    from pathlib import Path

LARGE = random.Random(1).randbytes(20 << 20)
"""Three frames, of which the second and the third hold content alone."""


def test_a_frame_that_an_archive_has_twice_does_not_end_a_run(tmp_path: Path) -> None:
    """What ends a run is sent as a part, which has 5 MiB at least."""
    for name, last in (("old", b"1"), ("new", b"2")):
        files = {"lib/a": LARGE, "lib/b": LARGE, "lib/c": last * 100}
        small_archive(tmp_path / f"{name}.tar.zst", files)
    with (
        FileSource(tmp_path / "old.tar.zst") as old,
        FileSource(tmp_path / "new.tar.zst") as new,
    ):
        ours, theirs = Archive(new), Archive(old)
        digests = [frame.blake3 for frame in ours.index.frames]
        first, *others = known_ranges(ours, theirs, "key")
        assert len(set(digests)) < len(digests), "some frames are equal"
        changed = next(
            n for n, frame in enumerate(theirs.index.frames) if frame != ours.index.frames[n]
        )
        assert first == KnownRange(0, ours.offsets[changed], "key", 0)
        assert len(others) == 1, "the end of the tar stream"
