"""A file that arrives in pieces: those that are there, and the room for the others."""

from __future__ import annotations

import os
import re
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
import xxhash
from blake3 import blake3

from envferry.base.direct_io import (
    BLOCK_BYTES,
    DirectWriter,
    aligned_buffer,
    write_all,
    write_blocks,
)
from envferry.base.files import require_space
from envferry.base.journal import LineJournal, read_journal
from envferry.errors import IntegrityError
from envferry.stores.fallocate import allocate, allocated_bytes
from envferry.stores.port import Incomplete
from envferry.stores.receive import REQUEST_BYTES, REQUESTS_AHEAD, receive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from envferry.stores.source import ContentSource, Piece

PIECE_BYTES = 2 << 20
"""What is written and noted at once: it stays in a core's cache. A request has several of them."""
PIECE_LINE = re.compile(r"([0-9]{1,6}) ([0-9a-f]{32})")
WRITERS = 4
BUFFERS = 6
"""Pieces in memory where one thread reads and hashes and others write."""


class PartialFile(msgspec.Struct):
    """The part of a file that has arrived, and the journal of its pieces.

    The journal's first line names the file by its token, every further one a piece and its
    XXH3-128, from wherever it came: what a power loss took away is noticed and read again. Who
    writes holds the journal's lock.
    """

    target: Path
    size: int
    token: str
    pieces: dict[int, str] = msgspec.field(default_factory=dict)
    descriptor: int = -1
    notes: LineJournal | None = None
    """The journal while the file is open."""
    writers: dict[int, int] = msgspec.field(default_factory=dict)
    """A descriptor for each thread: how it writes is not to change under another."""
    direct: DirectWriter = msgspec.field(default_factory=lambda: DirectWriter(PIECE_BYTES))

    @classmethod
    def of(cls, target: Path, content: ContentSource) -> PartialFile:
        """Return what is to become the file `target`."""
        return cls(target, content.size, content.token)

    @property
    def path(self) -> Path:
        """The partial file; hidden, and in the directory that the whole will be in."""
        return self.target.with_name(f".{self.target.name}.partial")

    @property
    def journal(self) -> Path:
        """The journal, which is also what a running transfer locks."""
        return self.target.with_name(f".{self.target.name}.pieces")

    @property
    def count(self) -> int:
        """How many pieces make the whole."""
        return -(-self.size // PIECE_BYTES)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Open the file with the pieces of an earlier run; remove both when none is left to keep.

        The journal goes last, for it is the lock.
        """
        # The size belongs to it: with another one, the same numbers name other bytes.
        subject = f"{self.token} {PIECE_BYTES}"
        found = read_journal(self.journal)
        if found and found.subject == subject and self.path.exists():
            matches = (PIECE_LINE.fullmatch(line) for line in found.lines)
            self.pieces = {
                int(match[1]): match[2] for match in matches if match and int(match[1]) < self.count
            }
        else:
            self.path.unlink(missing_ok=True)
            # Emptied, not removed: it is the lock that the caller holds.
            self.journal.write_bytes(b"")
        # Without O_TRUNC: the pieces of the earlier run are in it.
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        self.notes = LineJournal(self.journal, subject)
        try:
            yield
        finally:
            # Before the lock's file goes: a thread that is left behind fails, and notes nothing.
            self.notes.close()
            for descriptor in (self.descriptor, *self.writers.values()):
                os.close(descriptor)
            # A thread that an interrupt left behind must not write elsewhere.
            self.writers.clear()
            self.descriptor = -1
            # Nothing to resume: named, refused, or broken off before the first piece.
            if not self.pieces:
                self.path.unlink(missing_ok=True)
                self.journal.unlink(missing_ok=True)

    def reserve(self, what: str) -> None:
        """Take the room that the missing bytes need; raise HostError when the disk lacks it.

        `what` is what errors call the transfer.
        """
        there = os.fstat(self.descriptor)
        # Allocated blocks, not the length: a file with holes takes its room only as it is filled.
        require_space(self.target.parent, self.size - allocated_bytes(there), what)
        # Only a new file: FALLOC_FL_ZERO_RANGE would wipe the pieces that are there.
        if not there.st_size:
            allocate(self.descriptor, self.size)

    def receive(self, content: ContentSource, advance: Callable[[int], None]) -> None:
        """Bring the pieces that are missing, and make them durable.

        Raises IntegrityError, and keeps none of them, when the whole is not what it must be.
        """
        try:
            if content.read_into:
                self._receive_local(content, content.read_into, advance)
            else:
                self._receive_remote(content, advance)
        except Incomplete:
            raise  # bytes that are not there, a disk that was pulled out: what has come is right
        except IntegrityError:
            self.pieces.clear()
            raise
        # All pieces are on the disk before the caller gives the file its name.
        os.fsync(self.descriptor)

    def _receive_remote(self, content: ContentSource, advance: Callable[[int], None]) -> None:
        """Send several requests at once."""

        def take(number: int) -> tuple[tuple[Piece], None]:
            start = number * REQUEST_BYTES
            data = self._obtain(start, min(REQUEST_BYTES, self.size - start), content.read_at)
            advance(len(data))
            return (data,), None

        receive(content, -(-self.size // REQUEST_BYTES), take, REQUESTS_AHEAD)

    def _receive_local(
        self,
        content: ContentSource,
        read_into: Callable[[int, memoryview], None],
        advance: Callable[[int], None],
    ) -> None:
        """Read and hash in this thread, while a piece is in its core's cache; others write it."""
        fast, strong = xxhash.xxh3_128(), blake3()
        # O_DIRECT wants memory that starts on a page; the few buffers are used again and again.
        buffers = [aligned_buffer(PIECE_BYTES) for _ in range(min(BUFFERS, self.count))]
        writing: list[Future[None] | None] = [None] * len(buffers)
        with ThreadPoolExecutor(WRITERS, thread_name_prefix="write") as pool:
            for number in range(self.count):
                # A buffer is used again when what it held has been written.
                slot = number % BUFFERS
                if (before := writing[slot]) is not None:
                    before.result()
                offset, length = self.extent(number)
                data, writing[slot] = buffers[slot][:length], None
                # Either way the hashes below see it: the digests are those of the whole.
                if self._load(number, data):
                    advance(length)
                else:
                    read_into(offset, data)
                    writing[slot] = pool.submit(self._keep_aligned, number, data, advance)
                if content.digests:
                    fast.update(data)
                    strong.update(data)
                content.watch(data)
            for written in writing:
                if written is not None:
                    written.result()
        if content.digests:
            content.require(fast.hexdigest(), strong.hexdigest())

    def extent(self, number: int) -> tuple[int, int]:
        """Return offset and length of a piece."""
        offset = number * PIECE_BYTES
        return offset, min(PIECE_BYTES, self.size - offset)

    def _obtain(self, start: int, length: int, read_at: Callable[[int, int], bytes]) -> Piece:
        """Return some pieces: intact local ones as they are; the others are requested."""
        numbers = range(start // PIECE_BYTES, -(-(start + length) // PIECE_BYTES))
        # Nothing of it is here: the answer is passed on as it is, without a copy.
        if self.pieces.keys().isdisjoint(numbers):
            return self._request(numbers, read_at)
        memory = memoryview(bytearray(length))
        missing = [one for one in numbers if not self._load(one, self._part(memory, start, one))]
        for run in _runs(missing):
            found = self._request(run, read_at)
            offset = run[0] * PIECE_BYTES - start
            memory[offset : offset + len(found)] = found
        return memory

    def _request(self, numbers: range, read_at: Callable[[int, int], bytes]) -> bytes:
        """Read pieces that follow each other, and write them."""
        start, (last, length) = numbers[0] * PIECE_BYTES, self.extent(numbers[-1])
        data = read_at(start, last + length - start)
        for number in numbers:
            self._keep(number, self._part(memoryview(data), start, number))
        return data

    def _part(self, memory: memoryview, start: int, number: int) -> memoryview:
        """Return where a piece is in memory that begins with the byte `start`."""
        offset, length = self.extent(number)
        return memory[offset - start : offset - start + length]

    def _load(self, number: int, memory: memoryview) -> bool:
        """Fill memory with a piece of an earlier run; return whether it exists and is intact."""
        if number not in self.pieces:
            return False
        offset, length = self.extent(number)
        found = os.preadv(self.descriptor, [memory], offset)
        # The note may have reached the disk and the piece not: a power loss keeps no order.
        return found == length and xxhash.xxh3_128_hexdigest(memory) == self.pieces[number]

    def _keep(self, number: int, data: memoryview) -> None:
        """Write a piece, then note it."""
        self.direct.write(self._writer(), data, number * PIECE_BYTES)
        self._note(number, data)

    def _keep_aligned(self, number: int, data: memoryview, advance: Callable[[int], None]) -> None:
        """Write a piece from memory that starts on a page, then note it."""
        offset, whole = number * PIECE_BYTES, len(data) - len(data) % BLOCK_BYTES
        write_blocks(self._writer(), data[:whole], offset)
        write_all(self._writer(), data[whole:], offset + whole)
        self._note(number, data)
        advance(len(data))

    def _writer(self) -> int:
        thread = threading.get_ident()
        # No lock: each thread looks up and sets its own key only.
        if thread not in self.writers:
            self.writers[thread] = os.open(self.path, os.O_WRONLY)
        return self.writers[thread]

    def _note(self, number: int, data: memoryview) -> None:
        # Of the memory, not of the disk: a piece that the disk lost then fails to match.
        digest = xxhash.xxh3_128_hexdigest(data)
        assert self.notes is not None
        self.notes.note(f"{number} {digest}")
        self.pieces[number] = digest


def _runs(numbers: Sequence[int]) -> Iterator[range]:
    """Yield what follows each other of some ascending numbers."""
    first = 0
    for place, number in enumerate(numbers, 1):
        if place == len(numbers) or numbers[place] != number + 1:
            yield range(numbers[first], number + 1)
            first = place
