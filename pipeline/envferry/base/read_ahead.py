"""Have files read from the disk into the page cache before they are needed."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import TYPE_CHECKING

from envferry.base.direct_io import is_cached

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SAMPLES = 64
STEP_BYTES = 16 << 20
OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def read_ahead(paths: Sequence[str]) -> bool:
    """Begin to read small files, unless most of them are there; return whether it began.

    Read one after the other, as they are needed, each would be waited for: a disk is asked for
    one thing at a time then, where it could do dozens. What cannot be opened is skipped.
    """
    step = max(len(paths) // SAMPLES, 1)
    missing = [path for path in paths[::step] if not has_start(path)]
    # Opening those that are there already would cost as much as to read them.
    if len(missing) * 2 < len(paths[::step]):
        return False
    for path in paths:
        try:
            descriptor = os.open(path, OPEN_FILE)
        except OSError:
            continue
        try:
            with suppress(OSError):  # a pipe, or a file system that does not know it
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)
    return bool(paths)


def has_start(path: str) -> bool:
    """Whether the page cache has the start of a file; also of one that cannot be read."""
    try:
        descriptor = os.open(path, OPEN_FILE)
    except OSError:
        return True
    try:
        return is_cached(descriptor, 0)
    finally:
        os.close(descriptor)


@contextmanager
def reading_ahead(descriptor: int, size: int) -> Iterator[None]:
    """Read a large file of `size` bytes from its start while the block does something else.

    Step by step: a disk that was asked for all of it at once would let others wait. As much as half
    of the free memory has room for; what is there already costs nothing.
    """
    limit = min(size, free_memory() // 2)
    places = range(0, limit, max(limit // SAMPLES, STEP_BYTES))
    if all(is_cached(descriptor, place) for place in places):
        yield
        return
    ended = Event()
    thread = Thread(target=_read_until, args=(ended, descriptor, limit), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _read_until(ended: Event, descriptor: int, limit: int) -> None:
    """Read a file up to a limit, for the page cache alone."""
    buffer = bytearray(min(STEP_BYTES, limit))
    with suppress(OSError):  # whoever needs these bytes meets the same error
        for offset in range(0, limit, STEP_BYTES):
            if ended.is_set() or not os.preadv(descriptor, [buffer], offset):
                return


def free_memory() -> int:
    """Return how many bytes of memory can be used without swapping; 0 where nothing says so."""
    with suppress(OSError, ValueError), open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123
        for line in lines:
            name, _, amount = line.partition(":")
            if name == "MemAvailable":
                return int(amount.removesuffix(" kB\n")) * 1024
    return 0
