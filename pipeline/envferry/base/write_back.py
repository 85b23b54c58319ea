"""Have the kernel write to the disk what the page cache has of new files."""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Python has os.sync(), which flushes every file system of the machine, but not syncfs(2).
LIBC = ctypes.CDLL(None, use_errno=True)
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
PERIOD_SECONDS = 1.0
"""Between two flushes: long enough for the kernel to write many small files at once."""


@contextmanager
def flushing(path: str) -> Iterator[None]:
    """Flush the file system that holds `path`, again and again in the block and once behind it.

    Otherwise the disk would be idle while files are made, and waited for at the end. Raises OSError
    when the last flush fails, or what the block raises.
    """
    # Opened before the first flush: an error that an earlier one meets is told to this descriptor,
    # too, so the earlier ones need not tell it.
    last = os.open(path, DIRECTORY)
    ended = Event()
    try:
        thread = Thread(target=_flush_until, args=(ended, os.open(path, DIRECTORY)), daemon=True)
        thread.start()
        try:
            yield
        finally:
            # Not waited for where the block fails: a slow disk may be why it was interrupted.
            ended.set()
        _flush(last, path)
        thread.join()
    finally:
        os.close(last)


def sync_file_system(path: str) -> None:
    """Flush the file system that holds `path`: one call instead of an fsync for each file."""
    descriptor = os.open(path, DIRECTORY)
    try:
        _flush(descriptor, path)
    finally:
        os.close(descriptor)


def _flush_until(ended: Event, descriptor: int) -> None:
    """Flush a file system every now and then, and close its descriptor at the end."""
    try:
        while not ended.wait(PERIOD_SECONDS) and LIBC.syncfs(descriptor) == 0:
            pass
    finally:
        os.close(descriptor)


def _flush(descriptor: int, path: str) -> None:
    if LIBC.syncfs(descriptor) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
