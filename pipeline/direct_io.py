"""Write large pieces of files past the page cache (`O_DIRECT`, open(2)).

A copy into the page cache costs a core a second for each one or two gigabytes; a disk of today
takes them as fast without. A file system that cannot do it gets ordinary writes.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from threading import local

BLOCK_BYTES = 4096
"""A multiple of every disk's logical block: offset, length and memory are aligned to it."""
REFUSALS = frozenset({errno.EINVAL, errno.EOPNOTSUPP})


class DirectWriter:
    """Writes pieces of up to `piece_bytes`, each thread by way of an aligned buffer of its own."""

    def __init__(self, piece_bytes: int) -> None:
        self.piece_bytes = piece_bytes
        self.threads = local()

    def write(self, descriptor: int, content: memoryview, offset: int) -> None:
        """Write all of `content` at `offset`, a multiple of BLOCK_BYTES.

        Its whole blocks go to the disk before this returns; what follows them, less than a block,
        goes into the page cache.
        """
        whole = len(content) - len(content) % BLOCK_BYTES
        done = self._write_blocks(descriptor, content[:whole], offset) if whole else 0
        write_all(descriptor, content[done:], offset + done)

    def _write_blocks(self, descriptor: int, content: memoryview, offset: int) -> int:
        """Write whole blocks directly; return how many bytes the file system took that way."""
        if not hasattr(self.threads, "buffer"):
            self.threads.buffer = memoryview(mmap.mmap(-1, self.piece_bytes))
        buffer = self.threads.buffer[: len(content)]
        buffer[:] = content
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
            write_all(descriptor, buffer, offset)
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            return 0
        else:
            return len(content)
        finally:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)


def write_all(descriptor: int, content: memoryview, offset: int) -> None:
    """Write all of `content` at `offset`."""
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written
