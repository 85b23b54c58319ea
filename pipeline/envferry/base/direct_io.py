"""Read and write large pieces of files past the page cache (`O_DIRECT`, open(2)).

A copy into the page cache costs a core a second for each one or two gigabytes; a disk of today
takes and gives them as fast without. A file system that cannot do it gets ordinary calls.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
from threading import local

log = logging.getLogger(__name__)

BLOCK_BYTES = 4096
"""A multiple of every disk's logical block: offset, length and memory are aligned to it."""
REFUSALS = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)
"""Missing in Pythons that were built with a C library before glibc 2.26."""
LEAST_DIRECT_BYTES = 1 << 20
"""What is shorter is read through the page cache, whose readahead has it by then."""


class ThreadMemory:
    """Memory that starts on a page, for each thread its own, which it uses again and again."""

    def __init__(self, size: int) -> None:
        """Have so many bytes for each thread that asks for them."""
        self.size = size
        self.threads = local()

    def of_this_thread(self) -> memoryview:
        """Return the memory of the calling thread, with what it has left in it."""
        if not hasattr(self.threads, "memory"):
            self.threads.memory = aligned_buffer(self.size)
        memory: memoryview = self.threads.memory
        return memory


# O_DIRECT is a flag of the open file, not of a call: only one thread may use a descriptor at a
# time.
class DirectWriter:
    """Writes large pieces, each thread by way of an aligned buffer of its own."""

    def __init__(self, buffer_bytes: int) -> None:
        """Take buffers of so many bytes, a multiple of BLOCK_BYTES: a usual piece."""
        self.memory = ThreadMemory(buffer_bytes)

    def write(self, descriptor: int, content: memoryview, offset: int) -> None:
        """Write all of `content` at `offset`.

        Where that is a multiple of BLOCK_BYTES, whole blocks go to the disk before this returns;
        what follows them, less than a block, goes into the page cache.
        """
        buffer = self.memory.of_this_thread()
        for start in range(0, len(content), len(buffer)):
            part = content[start : start + len(buffer)]
            buffer[: len(part)] = part
            write_direct(descriptor, buffer[: len(part)], offset + start)


class DirectReader:
    """Reads large pieces past the page cache, unless it has where they begin."""

    def __init__(self, buffer_bytes: int) -> None:
        """Take buffers of so many bytes, a multiple of BLOCK_BYTES: a usual piece."""
        # A block more: what is wanted may begin and end within one.
        self.buffer_bytes = buffer_bytes
        self.memory = ThreadMemory(buffer_bytes + BLOCK_BYTES)

    def read_into(self, descriptor: int, target: memoryview, offset: int) -> int:
        """Fill `target` with a file's bytes from `offset`; return how many, fewer at its end.

        Only the calling thread may use the descriptor. Raises OSError when a read fails.
        """
        done = 0
        if len(target) >= LEAST_DIRECT_BYTES and not is_cached(descriptor, offset):
            while rest := target[done:]:
                if not (count := self.read_blocks(descriptor, rest, offset + done)):
                    break
                done += count
        # What is left: all of it, or nothing, or a refusal.
        while rest := target[done:]:
            if not (count := os.preadv(descriptor, [rest], offset + done)):
                break
            done += count
        return done

    def read_blocks(self, descriptor: int, target: memoryview, offset: int) -> int:
        """Read past the page cache; return how many bytes, 0 at the end or where it is refused."""
        buffer = self.memory.of_this_thread()
        lead = offset % BLOCK_BYTES
        wanted = min(len(target), self.buffer_bytes)
        whole = -(-(lead + wanted) // BLOCK_BYTES) * BLOCK_BYTES
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
            count = os.preadv(descriptor, [buffer[:whole]], offset - lead)
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            return 0
        finally:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
        found = min(max(count - lead, 0), wanted)
        target[:found] = buffer[lead : lead + found]
        return found


def is_cached(descriptor: int, offset: int) -> bool:
    """Whether the page cache has a byte of a file; also where nothing says so."""
    if not NOWAIT:
        return True
    try:
        # One byte: the kernel reads ahead as much as was asked for.
        os.preadv(descriptor, [bytearray(1)], offset, NOWAIT)
    except BlockingIOError:
        return False
    except OSError as error:
        # A file system, or a sandbox, that does not know it. An ordinary read tells what is wrong.
        log.debug("the page cache is not asked: %s", error)
    return True


class DirectStream:
    """Appends to an empty file, a full aligned buffer at a time; `flush` writes what is left."""

    def __init__(self, descriptor: int, buffer_bytes: int) -> None:
        self.descriptor = descriptor
        self.buffer = aligned_buffer(buffer_bytes)
        self.filled = 0
        self.offset = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append all of `data`."""
        rest = memoryview(data)
        while rest:
            count = min(len(rest), len(self.buffer) - self.filled)
            self.buffer[self.filled : self.filled + count] = rest[:count]
            self.filled += count
            rest = rest[count:]
            if self.filled == len(self.buffer):
                write_blocks(self.descriptor, self.buffer, self.offset)
                self.offset += self.filled
                self.filled = 0

    def flush(self) -> None:
        """Write the last bytes, by way of the page cache; nothing can follow them."""
        write_all(self.descriptor, self.buffer[: self.filled], self.offset)
        self.offset += self.filled
        self.filled = 0


def aligned_buffer(size: int) -> memoryview:
    """Return memory that starts on a page, as direct writes need it."""
    return memoryview(mmap.mmap(-1, size))


def write_direct(descriptor: int, content: memoryview, offset: int) -> None:
    """Write all of `content`, memory that starts on a page, at `offset`.

    Where that is a multiple of BLOCK_BYTES, whole blocks go to the disk before this returns; what
    follows them, less than a block, goes into the page cache.
    """
    whole = 0 if offset % BLOCK_BYTES else len(content) - len(content) % BLOCK_BYTES
    if whole:
        write_blocks(descriptor, content[:whole], offset)
    write_all(descriptor, content[whole:], offset + whole)


def write_blocks(descriptor: int, blocks: memoryview, offset: int) -> None:
    """Write whole aligned blocks past the page cache, or through it where that is refused."""
    # Set for these blocks alone: what follows them is not aligned, and would be refused.
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
        write_all(descriptor, blocks, offset)
        return
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
    # From the start again: what was written before the refusal are the same bytes.
    write_all(descriptor, blocks, offset)


def write_all(descriptor: int, content: memoryview, offset: int) -> None:
    """Write all of `content` at `offset`."""
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written
