"""Reading past the page cache: the same bytes, wherever they are and however they are cut."""

from __future__ import annotations

import errno
import os
import random
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envferry.base.direct_io import (
    BLOCK_BYTES,
    LEAST_DIRECT_BYTES,
    DirectReader,
    aligned_buffer,
    is_cached,
    write_direct,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

BUFFER_BYTES = 2 << 20
SIZE = 5 * LEAST_DIRECT_BYTES + 123
CONTENT = random.Random(1).randbytes(SIZE)
SHARED_MEMORY = Path("/dev/shm")


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    """Yield a descriptor of a file with the content, which is on the disk."""
    path = folder / f"content-{os.getpid()}"
    path.write_bytes(CONTENT)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        path.unlink()
        os.fsync(descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


def forget(descriptor: int) -> None:
    """Have the kernel drop what the page cache has of a file."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize("cached_bytes", [0, 2 * BLOCK_BYTES, SIZE])
@pytest.mark.parametrize("offset", [0, 1, 511, BLOCK_BYTES, SIZE - LEAST_DIRECT_BYTES - 5, SIZE])
@pytest.mark.parametrize("length", [0, 1, LEAST_DIRECT_BYTES - 1, LEAST_DIRECT_BYTES, SIZE + 1])
def test_the_bytes_are_those_of_the_file(
    tmp_path: Path, cached_bytes: int, offset: int, length: int
) -> None:
    reader = DirectReader(BUFFER_BYTES)
    with opened(tmp_path) as descriptor:
        forget(descriptor)
        os.pread(descriptor, cached_bytes, offset)
        target = bytearray(b"\xff" * (length + 1))
        count = reader.read_into(descriptor, memoryview(target)[:length], offset)
        expected = CONTENT[offset : offset + length]
        assert count == len(expected)
        assert target[:count] == expected
        assert target[count:] == b"\xff" * (length + 1 - count), "nothing is written beyond it"


def test_large_pieces_do_not_go_through_the_page_cache(tmp_path: Path) -> None:
    with opened(tmp_path) as descriptor:
        forget(descriptor)
        # Each look has the kernel read ahead, so none is at a place of another one.
        if is_cached(descriptor, 4 << 20):
            pytest.skip("this file system keeps what it has written")
        target = memoryview(bytearray(SIZE))
        assert DirectReader(BUFFER_BYTES).read_into(descriptor, target, 0) == SIZE
        assert not is_cached(descriptor, 2 << 20)
        assert target == CONTENT


def test_what_is_in_the_page_cache_is_taken_from_there(tmp_path: Path) -> None:
    """A build has just written the tree: its disk need not be asked."""
    with opened(tmp_path) as descriptor:
        os.pread(descriptor, SIZE, 0)
        reader = DirectReader(BUFFER_BYTES)
        assert reader.read_into(descriptor, memoryview(bytearray(SIZE)), 0) == SIZE
        assert not hasattr(reader.memory.threads, "memory"), "no read went past the page cache"


@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_refuses_gets_ordinary_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    """Neither O_DIRECT nor RWF_NOWAIT is known everywhere: NFS, FUSE, tmpfs of older kernels."""
    usual = os.preadv

    def refusing(descriptor: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        import fcntl

        if flags or fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(refusal, os.strerror(refusal))
        return usual(descriptor, buffers, offset)

    with opened(tmp_path) as descriptor:
        monkeypatch.setattr(os, "preadv", refusing)
        target = memoryview(bytearray(SIZE))
        assert DirectReader(BUFFER_BYTES).read_into(descriptor, target, 0) == SIZE
        assert target == CONTENT


@pytest.mark.skipif(not os.access(SHARED_MEMORY, os.W_OK), reason="no /dev/shm")
def test_a_file_in_memory_is_read() -> None:
    with opened(SHARED_MEMORY) as descriptor:
        target = memoryview(bytearray(SIZE))
        assert DirectReader(BUFFER_BYTES).read_into(descriptor, target, 0) == SIZE
        assert target == CONTENT


def test_a_python_without_the_flag_reads_as_usual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Builds for an older glibc have no `os.RWF_NOWAIT`."""
    monkeypatch.setattr("envferry.base.direct_io.NOWAIT", 0)
    with opened(tmp_path) as descriptor:
        forget(descriptor)
        target = memoryview(bytearray(SIZE))
        assert DirectReader(BUFFER_BYTES).read_into(descriptor, target, 0) == SIZE
        assert target == CONTENT


@pytest.mark.parametrize("lead", [0, 1, 512, BLOCK_BYTES])
@pytest.mark.parametrize("offset", [0, 1, BLOCK_BYTES])
@pytest.mark.parametrize("size", [0, 5, BLOCK_BYTES, SIZE])
def test_what_is_written_is_there(tmp_path: Path, lead: int, offset: int, size: int) -> None:
    """Out of memory that does not start on a page, too, or to such a place: through the cache."""
    content = aligned_buffer(lead + SIZE)[lead : lead + size]
    content[:] = CONTENT[:size]
    with (tmp_path / "file").open("wb") as stream:
        write_direct(stream.fileno(), content, offset)
    assert (tmp_path / "file").read_bytes() == (bytes(offset) if size else b"") + CONTENT[:size]


def test_what_is_written_does_not_go_through_the_page_cache(tmp_path: Path) -> None:
    content = aligned_buffer(SIZE)
    content[:] = CONTENT
    with (tmp_path / "usual").open("wb+") as stream:
        stream.write(CONTENT)
        os.fsync(stream.fileno())
        forget(stream.fileno())
        if is_cached(stream.fileno(), 0):
            pytest.skip("this file system keeps what it has written")
    with (tmp_path / "file").open("wb+") as stream:
        write_direct(stream.fileno(), content, 0)
        assert not is_cached(stream.fileno(), 0)
