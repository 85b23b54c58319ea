"""Frames of which a byte is wanted are compared with the index, and no others are read."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envferry.archive.proven_bytes import ProvenBytes
from envferry.archive.reader import TAIL_BYTES, Archive, FileSource
from envferry.errors import IntegrityError
from tests.support.archives import small_archive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOISE = random.Random(5).randbytes(20 << 20)
"""Three frames, and one for the end of the tar stream."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("proven") / "demo.tar.zst"
    small_archive(path, {"lib/noise": NOISE, "bin/tool": b"#!/bin/sh\n"})
    return path


@pytest.fixture(scope="module")
def archive(path: Path) -> Iterator[Archive]:
    with FileSource(path) as source:
        yield Archive(source)


def test_all_of_it_is_the_file(path: Path, archive: Archive) -> None:
    """What follows the frames is made of the index that was read: it must be the same."""
    assert ProvenBytes(archive).read_at(0, archive.source.size) == path.read_bytes()


@given(st.data())
def test_any_part_is_that_of_the_file(path: Path, archive: Archive, data: st.DataObject) -> None:
    size = archive.source.size
    cuts = st.one_of(
        st.integers(0, size),
        st.sampled_from([*archive.offsets, size]),
        st.integers(size - 500, size),
    )
    start, end = sorted((data.draw(cuts), data.draw(cuts)))
    with path.open("rb") as stream:
        stream.seek(start)
        assert ProvenBytes(archive).read_at(start, end - start) == stream.read(end - start)


def test_a_wrong_byte_is_an_error_where_its_frame_is_wanted(path: Path, tmp_path: Path) -> None:
    content = bytearray(path.read_bytes())
    with FileSource(path) as source:
        offsets = Archive(source).offsets
    wrong = next(n for n, (start, end) in enumerate(pairwise(offsets)) if end - start > 8 << 20)
    content[offsets[wrong] + 1000] ^= 1
    assert offsets[wrong + 1] < len(content) - TAIL_BYTES
    damaged = tmp_path / "damaged"
    damaged.write_bytes(content)
    with FileSource(damaged) as source:
        archive = Archive(source)
        for number, (start, end) in enumerate(pairwise(offsets)):
            if number != wrong:
                assert ProvenBytes(archive).read_at(start, end - start) == content[start:end]
        # Also where the byte itself is not wanted: frames are proven whole, or not at all.
        for start, length in ((offsets[wrong], 1), (offsets[wrong + 1] - 1, 1), (0, len(content))):
            with pytest.raises(IntegrityError, match=f"damaged in frame {wrong} of"):
                ProvenBytes(archive).read_at(start, length)


def test_what_is_written_over_after_the_index_was_read(path: Path, tmp_path: Path) -> None:
    """The index and what follows it are those which were checked."""
    changing = tmp_path / "changing"
    changing.write_bytes(path.read_bytes())
    with FileSource(changing) as source:
        archive = Archive(source)
        start = archive.offsets[-1]
        with changing.open("r+b") as stream:
            stream.seek(start)
            stream.write(bytes(source.size - start))
        expected = path.read_bytes()[start:]
        assert ProvenBytes(archive).read_at(start, source.size - start) == expected
