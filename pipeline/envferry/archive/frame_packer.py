"""Read, check and compress the frames of an archive, in many threads."""

from __future__ import annotations

import os
import time
from bisect import bisect_right
from collections import deque
from queue import Empty, SimpleQueue
from threading import local
from typing import TYPE_CHECKING

import msgspec
import xxhash
from blake3 import blake3
from msgspec.structs import replace

from envferry import __version__
from envferry.archive.compression import new_compressor
from envferry.archive.index import FrameEntry
from envferry.archive.members import FRAME_BYTES
from envferry.archive.prefix_search import WIDE_TEXTS
from envferry.archive.tar import tar_header
from envferry.base.direct_io import DirectReader
from envferry.base.file_times import boot_id
from envferry.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from concurrent.futures import Future, ThreadPoolExecutor

    from envferry.archive.frame_reuse import EarlierFrames, KnownFrame, ReusedFrame
    from envferry.archive.members import FramePlace, FramePlan, Member, Piece

WIDE_MARKS = tuple(mark for mark, _ in WIDE_TEXTS)
FRAMES_AHEAD = 1
"""Finished frames that may wait for their turn, besides the one that each thread works on."""


class PackedFrame(msgspec.Struct, frozen=True, kw_only=True):
    """One frame, read and compressed."""

    plan: FramePlan
    raw: memoryview | None
    """What the frame holds of the tar stream; None where it is known, and was not read."""
    buffer: bytearray | None
    """Where `raw` lies; the packer takes it back."""
    compressed: bytes
    entry: FrameEntry
    plain: str
    """BLAKE3 of what the frame holds."""
    source: str
    """What the frame is made of, as `frame_source` says."""
    known: KnownFrame | None = None
    """What an earlier archive says of its files, none of which is edited; then this counts."""
    checksums: dict[int, str]
    """XXH3-128 of each file that lies whole in the frame and was read, by member number."""
    prefix_members: frozenset[int]
    """The members in which the prefix was seen, and texts that hold it in two bytes a letter."""

    @property
    def has_prefix(self) -> bool:
        """Whether the prefix may be in it."""
        return self.known.has_prefix if self.known else bool(self.prefix_members)


class FramePacker:
    """Turns frame plans into compressed frames; called from many threads."""

    def __init__(
        self,
        members: Sequence[Member],
        *,
        level: int,
        prefix: str,
        mtime: int,
        earlier: EarlierFrames | None = None,
    ) -> None:
        self.seed = msgspec.msgpack.encode((__version__, boot_id(), prefix, mtime))
        self.members = members
        self.earlier = earlier
        self.level = level
        self.prefix = prefix
        self.mtime = mtime
        self.threads = local()
        # A piece of a large file has FRAME_BYTES.
        self.direct = DirectReader(FRAME_BYTES)
        self.buffers: SimpleQueue[bytearray] = SimpleQueue()

    def pack(self, plan: FramePlan) -> PackedFrame:
        """Take a frame whose files are known, or read, check, hash and compress its pieces."""
        source = frame_source(plan, self.members, self.seed)
        place = (self.members[plan.pieces[0].member].entry.path, plan.pieces[0].start, plan.size)
        known = self.earlier.known(place, source, self.prefix) if self.earlier else None
        if self.earlier is None or known is None:
            return self.read(plan, place, source)
        taken = self.earlier.take(place, known.plain, None)
        if taken is not None:
            return unread_frame(plan, source, known, taken)
        # Damaged by now, or slower to get than to make.
        frame = self.read(plan, place, source)
        require_unchanged(frame, known, self.members)
        # The whole of it: of a large file, other frames may not have been read.
        return replace(frame, known=known)

    def read(self, plan: FramePlan, place: FramePlace, source: str) -> PackedFrame:
        """Read, check, hash and compress the pieces of one frame."""
        size = plan.size
        buffer = self.next_buffer(size)
        raw = memoryview(buffer)[:size]
        checksums: dict[int, str] = {}
        starts: list[int] = []
        wide: set[int] = set()
        position = 0
        for piece in plan.pieces:
            member = self.members[piece.member]
            starts.append(position)
            content = position + piece.header_size
            end = content + piece.length
            if piece.header_size:
                raw[position:content] = tar_header(member.entry, self.mtime)
            if not read_piece(member, piece, raw[content:end], self.direct):
                source = ""  # it is not what was listed
            # The buffer may hold the bytes of an earlier frame: the zeros have to be written.
            raw[end : end + piece.padding] = bytes(piece.padding)
            if member.entry.type == "file" and piece.length == member.entry.size:
                checksums[piece.member] = xxhash.xxh3_128_hexdigest(raw[content:end])
            if piece.start == 0 and bytes(raw[content : content + 2]) in WIDE_MARKS:
                wide.add(piece.member)  # whether it holds the prefix is seen when it is read
            position += piece.size
        # A frame of another archive is believed by this digest: XXH3 could be forged.
        plain = blake3(raw).hexdigest()
        taken = self.earlier.take(place, plain, buffer) if self.earlier else None
        compressed, entry = (taken.compressed, taken.entry) if taken else self.compressed(raw)
        # A frame with the same bytes lacks the prefix as it did then: one search is spared.
        is_clean = taken and self.earlier and self.earlier.lacks(self.prefix, taken.number)
        found = () if is_clean else self.members_with_prefix(buffer, size, plan, starts)
        return PackedFrame(
            plan=plan,
            raw=raw,
            buffer=buffer,
            compressed=compressed,
            entry=entry,
            plain=plain,
            source=source,
            checksums=checksums,
            prefix_members=frozenset({*found, *wide}),
        )

    def compressed(self, raw: memoryview) -> tuple[bytes, FrameEntry]:
        """Compress what a frame holds."""
        # One for each thread: zstandard's objects must not be used by two at once.
        if not hasattr(self.threads, "compressor"):
            self.threads.compressor = new_compressor(self.level)
        started = time.monotonic()
        compressed: bytes = self.threads.compressor.compress(raw)
        if self.earlier:
            self.earlier.note_compression(time.monotonic() - started, len(raw))
        return compressed, FrameEntry.of(compressed, len(raw))

    def next_buffer(self, size: int) -> bytearray:
        """Return memory for a frame: one that was used before, for the kernel clears new memory."""
        try:
            buffer = self.buffers.get_nowait()
        except Empty:
            buffer = bytearray()
        # One that is too small is dropped, so the buffers that stay grow with the frames.
        return buffer if len(buffer) >= size else bytearray(size)

    def reuse_buffer(self, buffer: bytearray) -> None:
        """Have the memory of a frame that is done with used again."""
        self.buffers.put(buffer)

    def members_with_prefix(
        self, buffer: bytearray, size: int, plan: FramePlan, starts: list[int]
    ) -> Iterator[int]:
        """Yield the members of a frame in whose bytes the prefix occurs."""
        # One search for each frame, not for each file: the interpreter's lock is held meanwhile.
        prefix = self.prefix.encode()
        found = buffer.find(prefix, 0, size)
        while found >= 0:
            which = bisect_right(starts, found) - 1
            yield plan.pieces[which].member
            # That a member holds it is all that counts here: the search goes on behind that member.
            following = starts[which + 1] if which + 1 < len(starts) else size
            found = buffer.find(prefix, following, size)


def frame_source(plan: FramePlan, members: Sequence[Member], seed: bytes) -> str:
    """Return what tells, without reading a file, what a frame holds: a BLAKE3, or nothing.

    It is of all that the bytes follow from: the paths and modes, the identities of files that are
    read from a path, the content of others. `seed` is what else they follow from.
    """
    digest = blake3(seed)
    for piece in plan.pieces:
        member = members[piece.member]
        entry = member.entry
        content: bytes | tuple[int, ...]
        if isinstance(member.source, bytes):
            content = member.source
        else:
            if not member.identity:
                return ""
            content = member.identity.lasting
        digest.update(
            msgspec.msgpack.encode(
                (
                    *(entry.path, entry.type, entry.mode, entry.size, entry.link),
                    *(piece.start, piece.length, piece.header_size, piece.padding),
                    *(member.head, content),
                )
            )
        )
    return digest.hexdigest()


def unread_frame(
    plan: FramePlan, source: str, known: KnownFrame, taken: ReusedFrame
) -> PackedFrame:
    """Return a frame of which no file was read."""
    return PackedFrame(
        plan=plan,
        raw=None,
        buffer=None,
        compressed=taken.compressed,
        entry=taken.entry,
        plain=known.plain,
        source=source,
        known=known,
        checksums={},
        prefix_members=frozenset(),
    )


def require_unchanged(frame: PackedFrame, known: KnownFrame, members: Sequence[Member]) -> None:
    """Raise HostError when a frame is not what it was, though none of its files was written to."""
    if frame.plain == known.plain:
        return
    path = members[frame.plan.pieces[0].member].source
    message = f"{path!s}, or a file behind it, changed though nothing was written to it"
    raise HostError(message, hint="check the disk, then build it again with `--from-scratch`")


def packed_in_order(
    pool: ThreadPoolExecutor, packer: FramePacker, plans: Iterable[FramePlan], ahead: int
) -> Iterator[PackedFrame]:
    """Pack frames in many threads, yield them in order, hold at most `ahead` of them."""
    waiting: deque[Future[PackedFrame]] = deque()
    try:
        for plan in plans:
            waiting.append(pool.submit(packer.pack, plan))
            # The bound on memory: each future holds a frame, both plain and compressed.
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # After an error, leaving the pool would wait for all frames that have not begun.
        for future in waiting:
            future.cancel()


def read_piece(member: Member, piece: Piece, target: memoryview, direct: DirectReader) -> bool:
    """Fill `target` with a piece of a member's content.

    Return whether it comes from the file that was listed, as that was then. A folder above it may
    have changed its name meanwhile, which no time of the file tells.
    """
    if isinstance(member.source, bytes):
        target[:] = member.source[piece.start : piece.start + piece.length]
        return True
    try:
        # O_NOFOLLOW: listed as a file; a link that took its place leads elsewhere.
        descriptor = os.open(member.source, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        message = f"cannot read {member.source}: {error.strerror}"
        raise HostError(
            message, hint="stop the program that writes to it, then pack again"
        ) from error
    try:
        is_listed = member.identity is None or member.identity.is_of(os.fstat(descriptor))
        # The tar header has promised so many bytes already: a shorter file cannot be packed.
        if direct.read_into(descriptor, target, piece.start) < piece.length:
            message = f"{member.source} shrank while it was being packed"
            raise HostError(message, hint="stop the program that writes to it, then pack again")
    except OSError as error:
        message = f"cannot read {member.source}: {error.strerror}"
        raise HostError(
            message, hint="check the disk, and that this user can read the file"
        ) from error
    finally:
        os.close(descriptor)
    # After the read, which fills the piece from its start.
    if piece.start == 0 and member.head:
        target[: len(member.head)] = member.head
    return is_listed
