"""Files that lie on the disk alone are on their way before they are needed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from envferry.base.direct_io import is_cached
from envferry.base.read_ahead import free_memory, has_start, read_ahead, reading_ahead
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

COUNT = 200
LARGE = 40 << 20


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Small files that the page cache has."""
    found = []
    for number in range(COUNT):
        path = tmp_path / f"{number}.py"
        path.write_bytes(b"# a module\n" * number)
        found.append(str(path))
    return found


def forget(path: str) -> None:
    """Have the kernel drop what the page cache has of a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def test_what_is_there_is_not_asked_for(paths: list[str]) -> None:
    assert not read_ahead(paths)
    assert not read_ahead([])


def test_what_is_on_the_disk_is_read(paths: list[str], tmp_path: Path) -> None:
    for path in paths:
        forget(path)
    if has_start(paths[-1]):
        pytest.skip("this file system keeps what it has written")
    # Files that are gone, or no files, stop nothing.
    os.mkfifo(tmp_path / "pipe")
    paths = [*paths, str(tmp_path / "missing"), str(tmp_path), str(tmp_path / "pipe")]
    assert read_ahead(paths)
    # Of most the start was never looked at, which alone would have it read.
    wait_until(lambda: all(map(has_start, paths[1::2])), "the kernel has read them")


def test_a_large_file_is_read_while_something_else_is_done(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(LARGE))
    forget(str(path))
    with path.open("rb") as stream:
        if is_cached(stream.fileno(), LARGE - 1):
            pytest.skip("this file system keeps what it has written")
        with reading_ahead(stream.fileno(), LARGE):
            wait_until(lambda: is_cached(stream.fileno(), LARGE - 1), "the end has been read")
        # What is there is left alone, and what has no end, or cannot be read, stops nothing.
        with reading_ahead(stream.fileno(), LARGE):
            pass
        with reading_ahead(stream.fileno(), 100 * LARGE):
            pass
    with path.open("ab") as unreadable, reading_ahead(unreadable.fileno(), LARGE):
        pass


def test_free_memory_is_less_than_all() -> None:
    assert 1 << 26 < free_memory() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
