"""Open an archive: find its index, read and check its frames."""

from __future__ import annotations

import os
from threading import local
from typing import TYPE_CHECKING, Protocol

import zstandard
from blake3 import blake3

from envferry.archive.decompression import Decompressor
from envferry.archive.index import Index, decode_index
from envferry.archive.seek_table import FOOTER, decode_seek_table, seek_table_size
from envferry.archive.validation import check_index, plan_frames
from envferry.errors import IntegrityError, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from envferry.archive.members import FramePlan

TAIL_BYTES = 128 << 10
"""Read first, from the end: the seek table of an archive of 100 GB and mostly the index, too."""


class Source(Protocol):
    """Where the bytes of an archive come from; called from many threads."""

    @property
    def name(self) -> str:
        """What errors call it."""
        ...

    @property
    def size(self) -> int:
        """The bytes of the whole archive."""
        ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; fewer only at the end."""
        ...


class FileSource:
    """An archive in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            message = f"cannot read {path}: {error.strerror}"
            raise NotFound(message) from error
        # Of the open file: its path may name another one by now.
        self.size = os.fstat(self.descriptor).st_size

    @property
    def name(self) -> str:
        """What errors call it."""
        return str(self.path)

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; fewer only at the end."""
        # pread(2) has a position of its own: threads share the descriptor.
        return os.pread(self.descriptor, length, offset)

    def __enter__(self) -> FileSource:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


class CachedTail:
    """A source of which the end is read once and kept: no byte is read twice."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.start = max(source.size - TAIL_BYTES, 0)
        self.tail = source.read_at(self.start, source.size - self.start)

    def missing(self, offset: int, length: int) -> int:
        """Return how many of these bytes lie before the tail."""
        return min(max(self.start - offset, 0), length)

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; from any thread."""
        count = self.missing(offset, length)
        head = self.source.read_at(offset, count) if count else b""
        if count == length:
            return head
        end = offset + length - self.start
        return head + self.tail[max(offset - self.start, 0) : end]


class Archive:
    """An open archive whose index is read and safe."""

    def __init__(self, source: Source) -> None:
        """Read the seek table and the index from the end of `source`.

        Raises IntegrityError when the archive is cut off, damaged or not safe to install.
        """
        self.source = source
        self.name = source.name
        self.bytes = CachedTail(source)
        self.index, self.index_frame, self.opening_bytes = read_index(self.bytes)
        check_index(self.index, self.name)
        self.plans: list[FramePlan] = plan_frames(self.index, self.name)
        self.offsets = frame_offsets(self.index)
        self.threads = local()

    def fetch_bytes(self, numbers: Iterable[int]) -> int:
        """Return exactly how many bytes of the archive are read to have these frames, all in all.

        Those of the index and the seek table are counted, those read with them only once.
        """
        frames = self.index.frames
        return self.opening_bytes + sum(
            self.bytes.missing(self.offsets[number], frames[number].size) for number in numbers
        )

    def cut_runs(self, numbers: Sequence[int], run_bytes: int) -> Iterator[list[int]]:
        """Yield frames that follow each other, as many as fit `run_bytes`, at least one."""
        run: list[int] = []
        size = 0
        for number in numbers:
            frame = self.index.frames[number].size
            if run and (number != run[-1] + 1 or size + frame > run_bytes):
                yield run
                run, size = [], 0
            run.append(number)
            size += frame
        if run:
            yield run

    def read_run(
        self, numbers: Sequence[int], memory_for: Callable[[int], memoryview] | None = None
    ) -> Iterator[memoryview]:
        """Read frames that follow each other at once; yield what each holds of the tar stream.

        For any thread. `memory_for` returns memory of a frame's `tar_size` for its number; it may
        return the same for the next frame. Without it each gets memory of its own. Raises
        IntegrityError when a checksum or a size is wrong.
        """
        start, last = self.offsets[numbers[0]], numbers[-1]
        length = self.offsets[last] + self.index.frames[last].size - start
        # A view: to cut a run into frames copies nothing.
        compressed = memoryview(self.bytes.read_at(start, length))
        for number in numbers:
            offset = self.offsets[number] - start
            memory = (memory_for or self.new_memory)(number)
            yield self.decode_frame(
                number, compressed[offset : offset + self.index.frames[number].size], memory
            )

    def new_memory(self, number: int) -> memoryview:
        """Return memory for what a frame holds."""
        return memoryview(bytearray(self.index.frames[number].tar_size))

    def decode_frame(
        self, number: int, compressed: bytes | memoryview, memory: memoryview | None = None
    ) -> memoryview:
        """Return what a compressed frame holds; raise IntegrityError for a damaged one.

        It is put into `memory`, which has as many bytes, or into new memory.
        """
        # BLAKE3 and not XXH3: a signature covers it, and it costs 2 % of an install.
        if blake3(compressed).hexdigest() != self.index.frames[number].blake3:
            raise self.damaged(number, "its checksum is wrong")
        # One for each thread: zstandard's objects must not be used by two at once.
        if not hasattr(self.threads, "decompressor"):
            self.threads.decompressor = Decompressor()
        raw = self.new_memory(number) if memory is None else memory
        try:
            self.threads.decompressor.fill(raw, memoryview(compressed))
        except zstandard.ZstdError as error:
            raise self.damaged(number, str(error)) from error
        return raw

    def damaged(self, number: int, reason: str) -> IntegrityError:
        """Return the error for a damaged frame."""
        return damaged_frame(self.name, self.offsets, number, reason)


def damaged_frame(name: str, offsets: Sequence[int], number: int, reason: str) -> IntegrityError:
    """Return the error for a damaged frame; `offsets` are those of all frames and of the end."""
    message = (
        f"{name} is damaged in frame {number} of {len(offsets) - 1} "
        f"(byte {offsets[number]}): {reason}"
    )
    return IntegrityError(message, hint="copy or fetch the archive again")


def read_index(kept: CachedTail) -> tuple[Index, bytes, int]:
    """Return the index of an archive, the frame that holds it, and the bytes read for that."""
    source = kept.source
    table_size = seek_table_size(kept.tail[-FOOTER.size :], source.name)
    table_start = source.size - table_size
    sizes: list[tuple[int, int]] = []
    # A footer can claim more frames than the file has room for: then `sizes` stays empty, which is
    # refused below.
    if table_start >= 0:
        sizes = decode_seek_table(kept.read_at(table_start, table_size), source.name)
    # From here on, whatever follows from the table lies within the file.
    if not sizes or min(sizes)[0] <= 0 or sum(compressed for compressed, _ in sizes) != table_start:
        message = f"the seek table of {source.name} does not add up to its size"
        raise IntegrityError(message, hint="copy or fetch the archive again")
    # The last entry of the table is the index: a frame without content.
    index_size = sizes[-1][0]
    index_start = table_start - index_size
    index_frame = kept.read_at(index_start, index_size)
    index = decode_index(index_frame, source.name)
    # Other tools seek by the table, we read by the index: they must see the same stream.
    if [(frame.size, frame.tar_size) for frame in index.frames] != sizes[:-1]:
        message = f"index and seek table of {source.name} contradict each other"
        raise IntegrityError(message, hint="copy or fetch the archive again")
    early = kept.missing(table_start, table_size) + kept.missing(index_start, index_size)
    return index, index_frame, len(kept.tail) + early


def frame_offsets(index: Index) -> list[int]:
    """Return where in the archive each frame starts."""
    offsets = [0]
    for frame in index.frames:
        offsets.append(offsets[-1] + frame.size)
    return offsets
