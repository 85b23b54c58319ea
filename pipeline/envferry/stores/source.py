"""A value that a store is to read from elsewhere while it writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import msgspec
import xxhash
from blake3 import blake3

from envferry.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Piece: TypeAlias = "bytes | memoryview"
PIECE_BYTES = 4 << 20
CHECK_HINT = "run `envferry check` on the registry it comes from"


def _unwatched(data: Piece) -> None:
    """Watch nothing."""


class ContentSource(msgspec.Struct, frozen=True, kw_only=True):
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
    tar_sha256: str = ""
    """The SHA-256 of what it decompresses to, if its manifest says it: an image names it."""
    journal: Path | None = None
    """Where a store may note what it has sent; None: an interrupted upload starts again."""
    hint: str = CHECK_HINT
    """What to do about one that is damaged."""
    watch: Callable[[Piece], None] = _unwatched
    """Gets all bytes, in order; what it gets changes afterwards."""
    read_proven: Callable[[int, int], bytes] | None = None
    """Reads as `read_at` does, and raises IntegrityError for a byte that the `digests` are not of.
    A store that copies the rest may rely on it, and then reads neither that nor for `watch`."""
    read_into: Callable[[int, memoryview], None] | None = None
    """Fills memory with the bytes from an offset; where they lie on a disk of this machine."""

    def part(
        self, number: int, start: int, size: int, watch: Callable[[Piece], None]
    ) -> ContentSource:
        """Return some of the bytes as a value of its own, of which no digest is known."""
        read_at, read_into = self.read_at, self.read_into
        return ContentSource(
            name=self.name,
            size=size,
            # Each part is taken up on its own, and must not take another's pieces for its own.
            token=f"{self.token}.{number}",
            read_at=lambda offset, length: read_at(start + offset, length),
            read_into=read_into and (lambda offset, memory: read_into(start + offset, memory)),
            digests=None,
            watch=watch,
        )

    def pieces(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield `length` bytes from `offset`, a few megabytes at a time."""
        end = offset + length
        for start in range(offset, end, PIECE_BYTES):
            yield self.read_at(start, min(PIECE_BYTES, end - start))

    def read(self) -> bytes:
        """Return a small value, checked."""
        data = self.read_at(0, self.size)
        self.watch(data)
        self.require(xxhash.xxh3_128_hexdigest(data), blake3(data).hexdigest())
        return data

    def require(self, fast: str, strong: str) -> None:
        """Raise IntegrityError unless these digests are the right ones."""
        # Without known digests each is compared with itself: `watch` alone has decided.
        expected = self.digests or (fast, strong)
        for algorithm, digest, wanted in zip(
            ("XXH3-128", "BLAKE3"), (fast, strong), expected, strict=True
        ):
            if digest != wanted:
                message = (
                    f"{self.name} is damaged: {algorithm} is {digest}, the manifest says {wanted}"
                )
                raise IntegrityError(message, hint=self.hint)
