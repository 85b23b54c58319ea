"""Bytes that come from elsewhere while they are written: in parallel, and checked at their end."""

from __future__ import annotations

import os
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import msgspec
import xxhash
from blake3 import blake3
from msgspec.structs import replace

from envferry.base.workers import Workers
from envferry.errors import IntegrityError
from envferry.stores.port import KeyTaken, stat_whole
from envferry.stores.source import ContentSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from envferry.stores.port import Store
    from envferry.stores.source import Piece

REQUEST_BYTES = 8 << 20
"""What a server is asked for at once."""
READERS = 6
REQUESTS_AHEAD = 12
"""Answers that may wait in memory for their turn to be hashed: 96 MiB."""
T = TypeVar("T")


def receive(
    content: ContentSource,
    count: int,
    take: Callable[[int], tuple[Iterable[Piece], T]],
    ahead: int,
) -> list[T]:
    """Take parts 0 to `count` in parallel, at most `ahead` at once; return the result of each.

    `take` returns a part's bytes, in pieces, and what became of it. They are hashed in order while
    others are on their way; in the end IntegrityError is raised if the whole is not what it must
    be.
    """
    fast, strong = xxhash.xxh3_128(), blake3()
    results = []
    _keep_memory()
    with Workers(min(READERS, ahead), "receive") as pool:
        for pieces, result in in_order(pool, take, count, ahead):
            for data in pieces:
                if content.digests:
                    fast.update(data)
                    strong.update(data)
                content.watch(data)
            results.append(result)
    if content.digests:
        content.require(fast.hexdigest(), strong.hexdigest())
    return results


def _keep_memory() -> None:
    """Let the C library keep the memory of pieces for the next ones.

    glibc gives back blocks over a threshold, which the largest one that was freed raises (mallopt,
    M_MMAP_THRESHOLD); each piece then costs the kernel as many page faults as it has pages.
    Measured: 0.7 s of system time become 0.2 s for 511 MB. The block itself is never used.
    """
    bytes(2 * REQUEST_BYTES)


def in_order(pool: Workers, obtain: Callable[[int], T], count: int, ahead: int) -> Iterator[T]:
    """Yield `obtain(0)`, `obtain(1)`, … worked out in parallel, a bounded number ahead."""
    waiting: deque[Future[T]] = deque()
    for number in range(count):
        waiting.append(pool.submit(obtain, number))
        # This bounds the memory: nothing more is asked for before the oldest answer is taken.
        if len(waiting) == ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def content_of_bytes(data: bytes, key: str) -> ContentSource:
    """Return bytes as a source without known digests."""
    return ContentSource(
        name=key,
        size=len(data),
        token=blake3(data).hexdigest(),
        read_at=lambda offset, length: data[offset : offset + length],
        digests=None,
    )


@contextmanager
def content_of_file(path: Path, digests: tuple[str, str] | None = None) -> Iterator[ContentSource]:
    """Yield a file as a source; without `digests` (XXH3-128, BLAKE3) nothing is compared.

    How far an interrupted upload got is noted beside it, where its next upload finds that.
    """
    with path.open("rb") as stream:
        descriptor = stream.fileno()
        status = os.fstat(descriptor)
        yield ContentSource(
            name=str(path),
            size=status.st_size,
            token=f"{path.name}.{status.st_mtime_ns}.{status.st_size}",
            read_at=lambda offset, length: os.pread(descriptor, length, offset),
            digests=digests,
            journal=path.with_name(f".{path.name}.upload"),
            hint="pack the environment again, or fetch it again",
        )


def create_or_read(
    store: Store, key: str, content: ContentSource, advance: Callable[[int], None]
) -> None:
    """Write a value, or let `content.watch` see the one that is there; its size must be right."""
    there = stat_whole(store, key)
    if there is None:
        seen = _Seen(content)
        try:
            store.receive(key, replace(content, watch=seen.watch), advance)
        except KeyTaken:  # another writer was faster
            there = store.stat(key)
            # KeyTaken comes before the first byte or after the last one: all of it was seen.
            if seen.size:
                return
    if there is None:
        return
    if there.size != content.size:
        message = f"{key} in {store.url} has {there.size} bytes, {content.size} are expected"
        raise IntegrityError(message, hint="remove that file, then run the command again")
    # Watched in the same order as if it had been written: the watcher compares it.
    for offset in range(0, content.size, REQUEST_BYTES):
        data = store.read(key, offset, min(REQUEST_BYTES, content.size - offset))
        try:
            content.watch(data)
        except IntegrityError as error:
            message = f"{key} in {store.url}, left by an earlier run, is damaged"
            raise IntegrityError(message, hint="remove it, then run the command again") from error
        advance(len(data))


class _Seen(msgspec.Struct):
    """Counts the bytes that were watched, to tell KeyTaken at the end from KeyTaken at once."""

    content: ContentSource
    size: int = 0

    def watch(self, data: Piece) -> None:
        """Let it be watched."""
        self.size += len(data)
        self.content.watch(data)
