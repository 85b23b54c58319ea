"""The layer that puts an archive at its prefix in a system."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import pytest
import zstandard

from envferry.archive.prefix_layer import root_frame, root_frames
from envferry.archive.reader import Archive, FileSource
from tests.support.archives import PREFIX
from tests.support.packed import pack, random_bytes

if TYPE_CHECKING:
    from pathlib import Path

LARGE = 20 << 20


def unpack(data: bytes) -> tarfile.TarFile:
    stream = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True)
    return tarfile.open(fileobj=io.BytesIO(stream.read()))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    long = "long/" * 12 + "name-of-over-100-bytes"
    contents = {"large": random_bytes(1, LARGE), "small": b"small", long.replace("/", "-"): b"x"}
    return pack(tmp_path, contents).archive_path


def test_all_members_are_below_the_prefix(path: Path) -> None:
    with FileSource(path) as source:
        archive = Archive(source)
        rooted = b"".join(root_frames(archive))
        assert rooted == b"".join(root_frames(Archive(source))), "equal bytes each time"
    before, after = unpack(path.read_bytes()), unpack(rooted)
    inside = PREFIX.strip("/")
    above = ["opt", "opt/conda", "opt/conda/envs", inside]
    assert after.getnames() == [*above, *(f"{inside}/{name}" for name in before.getnames())]
    for member in before.getmembers():
        moved = after.getmember(f"{inside}/{member.name}")
        assert (moved.mode, moved.mtime, moved.size) == (member.mode, member.mtime, member.size)
        if member.isfile():
            there, here = after.extractfile(moved), before.extractfile(member)
            assert there is not None
            assert here is not None
            assert there.read() == here.read()


def test_frames_within_a_file_are_not_compressed_again(path: Path) -> None:
    with FileSource(path) as source:
        archive = Archive(source)
        kept = [
            number
            for number, plan in enumerate(archive.plans)
            if root_frame(archive, number)
            == source.read_at(archive.offsets[number], archive.index.frames[number].size)
            and not any(piece.header_size for piece in plan.pieces)
        ]
    assert len(kept) == 3, "20 MiB are three frames, the first one with a header; and the end"
