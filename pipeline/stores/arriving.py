"""Bytes that come from elsewhere while they are written: in parallel, and checked at their end."""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import xxhash
from blake3 import blake3

from pipeline.direct_io import DirectWriter
from pipeline.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

PIECE_BYTES = 8 << 20
NEAR_PIECE_BYTES = 1 << 20
"""Where reading begins at no cost, on a disk: pieces that stay in the processor's cache."""
READERS = 6
PIECES_AHEAD = 12
"""Pieces that may wait in memory for their turn to be hashed: 96 MiB."""
JOURNAL_LINE = re.compile(r"(\d{1,6}) ([0-9a-f]{32})")
T = TypeVar("T")


def _unwatched(data: bytes) -> None:
    """Watch nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """A value that a store is to read while it writes it; it counts only if its digests are right.

    What has arrived when a transfer breaks off stays for the next one of the same `token`.
    """

    name: str
    """What errors call it."""
    size: int
    token: str
    """Tells it from all others, for taking up what has arrived; its BLAKE3, for example."""
    read_at: Callable[[int, int], bytes]
    """Returns `length` bytes from `offset`; from any thread."""
    digests: tuple[str, str] | None
    """The XXH3-128 and the BLAKE3 that its manifest says; None where `watch` decides."""
    journal: Path | None = None
    """Where a store may note what it has sent; None: an interrupted upload starts again."""
    watch: Callable[[bytes], None] = _unwatched
    """Gets all bytes, in order."""
    piece_bytes: int = PIECE_BYTES
    """How much is best read at once."""

    def read(self) -> bytes:
        """Return a small value, checked."""
        data = self.read_at(0, self.size)
        self.watch(data)
        self.require(xxhash.xxh3_128_hexdigest(data), blake3(data).hexdigest())
        return data

    def require(self, fast: str, strong: str) -> None:
        """Raise IntegrityError unless these digests are the right ones."""
        expected = self.digests or (fast, strong)
        for algorithm, digest, wanted in zip(
            ("XXH3-128", "BLAKE3"), (fast, strong), expected, strict=True
        ):
            if digest != wanted:
                message = (
                    f"{self.name} is damaged: {algorithm} is {digest}, the manifest says {wanted}"
                )
                raise IntegrityError(message, hint="run `envferry check` where it comes from")


def receive(
    incoming: Incoming, count: int, take: Callable[[int], tuple[bytes, T]], ahead: int
) -> list[T]:
    """Take pieces 0 to `count` in parallel, at most `ahead` in memory; return what came of each.

    `take` returns a piece's bytes and what became of it. They are hashed in order while others are
    on their way; in the end IntegrityError is raised if the whole is not what it must be.
    """
    fast, strong = xxhash.xxh3_128(), blake3()
    results = []
    _keep_memory()
    # Closed here, whatever happens: no thread may outlive what it writes to.
    with closing(in_order(take, count, ahead)) as arriving:
        for data, result in arriving:
            if incoming.digests:
                fast.update(data)
                strong.update(data)
            incoming.watch(data)
            results.append(result)
    if incoming.digests:
        incoming.require(fast.hexdigest(), strong.hexdigest())
    return results


def _keep_memory() -> None:
    """Let the C library keep the memory of pieces for the next ones.

    glibc gives back blocks over a threshold, which the largest one that was freed raises (mallopt,
    M_MMAP_THRESHOLD); each piece then costs the kernel as many page faults as it has pages.
    Measured: 0.7 s of system time become 0.2 s for 511 MB. Nobody touches this block.
    """
    bytes(2 * PIECE_BYTES)


def in_order(
    obtain: Callable[[int], T], count: int, ahead: int = PIECES_AHEAD
) -> Generator[T, None, None]:
    """Yield `obtain(0)`, `obtain(1)`, … worked out in parallel, a bounded number ahead."""
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(min(READERS, ahead), thread_name_prefix="receive")
    try:
        for number in range(count):
            waiting.append(pool.submit(obtain, number))
            if len(waiting) == ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(slots=True)
class PartialFile:
    """The part of a file that has arrived, and the journal of its pieces.

    The journal's first line names the file by its token, every further one a piece and its
    XXH3-128: what a power loss took away is noticed and read again. Who writes holds the journal's
    lock.
    """

    target: Path
    size: int
    token: str
    piece_bytes: int = PIECE_BYTES
    pieces: dict[int, str] = field(default_factory=dict)
    descriptor: int = -1
    journal_guard: threading.Lock = field(default_factory=threading.Lock)
    writer: DirectWriter = field(init=False)

    def __post_init__(self) -> None:
        self.writer = DirectWriter(self.piece_bytes)

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
        return -(-self.size // self.piece_bytes)

    @property
    def missing_bytes(self) -> int:
        """How many bytes have not arrived."""
        return self.size - sum(self.extent(number)[1] for number in self.pieces)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Open the file with the pieces of an earlier run; remove both when none is left to keep.

        The journal goes last, for it is the lock.
        """
        header = f"{self.token} {self.piece_bytes}"
        lines: list[str] = []
        if self.journal.exists() and self.path.exists():
            lines = self.journal.read_text(errors="replace").splitlines()
        if lines[:1] == [header]:
            matches = (JOURNAL_LINE.fullmatch(line) for line in lines[1:])
            self.pieces = {
                int(match[1]): match[2] for match in matches if match and int(match[1]) < self.count
            }
        else:
            self.path.unlink(missing_ok=True)
            self.journal.write_text(header + "\n")
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            yield
        finally:
            os.close(self.descriptor)
            if not self.pieces:
                self.path.unlink(missing_ok=True)
                self.journal.unlink(missing_ok=True)

    def extent(self, number: int) -> tuple[int, int]:
        """Return offset and length of a piece."""
        offset = number * self.piece_bytes
        return offset, min(self.piece_bytes, self.size - offset)

    def obtain(self, number: int, read_at: Callable[[int, int], bytes]) -> bytes:
        """Return a piece: the one that is there already and right, else a new one, written."""
        data = self._stored(number)
        if data is None:
            data = read_at(*self.extent(number))
            self._keep(number, data)
        return data

    def _stored(self, number: int) -> bytes | None:
        """Return a piece that is there already, or None when it is not, or is not right."""
        if number not in self.pieces:
            return None
        offset, length = self.extent(number)
        data = os.pread(self.descriptor, length, offset)
        return data if xxhash.xxh3_128_hexdigest(data) == self.pieces[number] else None

    def _keep(self, number: int, data: bytes) -> None:
        """Write a piece, then note it."""
        # A descriptor of its own: how it writes is not to change under other threads.
        descriptor = os.open(self.path, os.O_WRONLY)
        try:
            self.writer.write(descriptor, memoryview(data), number * self.piece_bytes)
        finally:
            os.close(descriptor)
        digest = xxhash.xxh3_128_hexdigest(data)
        with self.journal_guard, self.journal.open("a") as stream:
            stream.write(f"{number} {digest}\n")
            self.pieces[number] = digest
