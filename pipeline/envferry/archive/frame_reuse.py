"""Compressed frames of an earlier archive, for a new one that holds the same in the same place."""

from __future__ import annotations

import logging
import time
from threading import Lock
from typing import TYPE_CHECKING

import msgspec

from envferry.archive.compression import new_compressor
from envferry.archive.index import FrameEntry
from envferry.errors import IntegrityError, NotFound, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.archive.members import FramePlace, FramePlan
    from envferry.archive.reader import Archive

log = logging.getLogger(__name__)


class FrameReuse(msgspec.Struct, frozen=True, kw_only=True):
    """How much of an archive was taken from an earlier one."""

    archive: str = ""
    """The earlier archive; empty when there was none."""
    frames: int = 0
    size: int = 0
    """Compressed bytes."""


class FrameNotes(msgspec.Struct, frozen=True, kw_only=True):
    """What the process that compressed an archive's frames notes of each, by number."""

    plain: tuple[str, ...]
    """BLAKE3 of what the frame holds."""
    prefix: str = ""
    """The prefix that was looked for in it; empty in notes that do not say."""
    prefixed: tuple[int, ...] = ()
    """The frames in which it was seen."""
    sources: tuple[str, ...] = ()
    """What each was made of, as `frame_source` has it; empty where only its bytes tell."""


class ReusedFrame(msgspec.Struct, frozen=True, kw_only=True):
    """A frame that need not be compressed."""

    compressed: bytes
    entry: FrameEntry
    number: int
    """Of the earlier archive."""


class KnownFrame(msgspec.Struct, frozen=True, kw_only=True):
    """A frame of an earlier archive that is made of files that were not written to since."""

    number: int
    """Of the earlier archive."""
    plain: str
    """BLAKE3 of what it holds."""
    has_prefix: bool
    checksums: tuple[str, ...]
    """XXH3-128 of the whole file of each piece; empty of what is not a file."""

    def checksums_of(self, plan: FramePlan) -> Iterator[tuple[int, str]]:
        """Yield the numbers of a plan's files, and XXH3-128 of each."""
        for piece, checksum in zip(plan.pieces, self.checksums, strict=True):
            if checksum:
                yield piece.member, checksum


class FasterWay:
    """Which of two ways to a frame takes less time: to take it from afar, or to compress it."""

    TRIES = 4
    """Frames that go each way before they are compared."""

    def __init__(self) -> None:
        self.counting = Lock()
        self.seconds = {"take": 0.0, "compress": 0.0}
        self.sizes = {"take": 0, "compress": 0}
        self.counts = {"take": 0, "compress": 0}

    def note(self, way: str, seconds: float, size: int) -> None:
        """Note how long a frame took that holds so many bytes."""
        with self.counting:
            self.seconds[way] += seconds
            self.sizes[way] += size
            self.counts[way] += 1

    def is_to_take(self) -> bool:
        """Whether the next frame is to be taken, where it can be."""
        with self.counting:
            for way in ("take", "compress"):
                if self.counts[way] < self.TRIES:
                    return way == "take"
            take, compress = (self.seconds[way] / self.sizes[way] for way in self.seconds)
            return take <= compress


class EarlierFrames:
    """The frames of an earlier archive, handed out only when they are proven; for many threads.

    The path of a frame's first file says where to look, and nothing else: what counts is that the
    frame holds the new bytes, and that its own bytes are those which its archive was made with.
    """

    def __init__(
        self, archive: Archive, notes: FrameNotes | None, *, is_remote: bool = False
    ) -> None:
        """Offer an archive's frames.

        The notes must come from the process that compressed the frames. Without them each frame is
        decompressed and compared: an index may say what it likes. Of one that `is_remote`, frames
        are taken as long as that is faster than to compress them, and it can be reached.
        """
        self.archive = archive
        self.notes = notes
        self.faster = FasterWay() if is_remote else None
        self.is_lost = False
        self.counting = Lock()
        self.taken_frames = 0
        self.taken_bytes = 0
        self.prefixed = frozenset(notes.prefixed if notes else ())
        self.numbers: dict[FramePlace, int] = {}
        for number, plan in enumerate(archive.plans):
            for first in plan.pieces[:1]:  # the last frame holds the end, and no file
                path = archive.index.files[first.member].path
                self.numbers[path, first.start, archive.index.frames[number].tar_size] = number

    @property
    def reuse(self) -> FrameReuse:
        """What was taken so far."""
        return FrameReuse(
            archive=self.archive.name, frames=self.taken_frames, size=self.taken_bytes
        )

    @property
    def knows_sources(self) -> bool:
        """Whether frames may be known by the files that they are made of."""
        return bool(self.notes and self.notes.sources)

    def known(self, place: FramePlace, source: str, prefix: str) -> KnownFrame | None:
        """Return what is noted of a frame that is made of what this one was made of, if anything.

        `source` is what `frame_source` says of the new frame.
        """
        number, notes = self.numbers.get(place), self.notes
        if not source or number is None or notes is None or notes.prefix != prefix:
            return None
        if notes.sources[number : number + 1] != (source,):
            return None
        files, plan = self.archive.index.files, self.archive.plans[number]
        return KnownFrame(
            number=number,
            plain=notes.plain[number],
            has_prefix=number in self.prefixed,
            checksums=tuple(files[piece.member].xxh128 for piece in plan.pieces),
        )

    def take(self, place: FramePlace, plain: str, raw: bytearray | None) -> ReusedFrame | None:
        """Return the compressed frame that holds the first bytes of `raw`, None without proof.

        `plain` is the BLAKE3 of these bytes; `place` says how many they are. Without notes they are
        needed; else they may be None.
        """
        number = self.numbers.get(place)
        if number is None or (self.notes and self.notes.plain[number] != plain):
            return None
        if self.faster is None:
            return self.proven(number, raw)
        if self.is_lost or not self.faster.is_to_take():
            return None
        started = time.monotonic()
        try:
            return self.proven(number, raw)
        except (StoreError, NotFound) as error:
            # What is not taken is compressed: no pack fails for it, or waits for it again.
            log.info("no more frames are taken from %s: %s", self.archive.name, error)
            self.is_lost = True
            return None
        finally:
            self.faster.note("take", time.monotonic() - started, place[2])

    def note_compression(self, seconds: float, size: int) -> None:
        """Note how long it took to compress so many bytes instead of taking them."""
        if self.faster:
            self.faster.note("compress", seconds, size)

    def proven(self, number: int, raw: bytearray | None) -> ReusedFrame | None:
        """Return a frame that is what its archive was made with, and holds `raw`; else None."""
        archive, expected = self.archive, self.archive.index.frames[number]
        # The notes say what was written; the disk may hold something else by now, so it is hashed
        # below.
        compressed = archive.bytes.read_at(archive.offsets[number], expected.size)
        entry = FrameEntry.of(compressed, expected.tar_size)
        if entry.blake3 != expected.blake3:
            log.info("frame %d of %s is damaged: it is compressed again", number, archive.name)
            return None
        if not self.notes and not self.holds(number, compressed, raw):
            return None
        # `+=` on an attribute is not atomic.
        with self.counting:
            self.taken_frames += 1
            self.taken_bytes += entry.size
        return ReusedFrame(compressed=compressed, entry=entry, number=number)

    def lacks(self, prefix: str, number: int) -> bool:
        """Whether it is known that a frame does not hold the prefix."""
        notes = self.notes
        return bool(notes and notes.prefix == prefix and number not in self.prefixed)

    def holds(self, number: int, compressed: bytes, raw: bytearray | None) -> bool:
        """Whether a frame decompresses to the first bytes of `raw`."""
        try:
            return raw is not None and raw.startswith(self.archive.decode_frame(number, compressed))
        except IntegrityError as error:
            log.info("a frame is compressed again: %s", error)
            return False

    def is_compressed_as(self, level: int) -> bool:
        """Whether the largest frame is what compressing it here, at this level, gives.

        Another level or another version of zstd gives other bytes. Raises IntegrityError when the
        frame is damaged.
        """
        frames = self.archive.index.frames
        # Not the last frame, whose 1,024 zero bytes would prove little.
        number = max(range(len(frames) - 1), key=lambda each: frames[each].size, default=0)
        (raw,) = self.archive.read_run([number])
        start = self.archive.offsets[number]
        compressed = self.archive.bytes.read_at(start, frames[number].size)
        return new_compressor(level).compress(raw) == compressed
