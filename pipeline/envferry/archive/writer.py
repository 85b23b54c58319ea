"""Write an archive: read, check, compress and hash frames in parallel, in one pass."""

from __future__ import annotations

import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec
import xxhash
from blake3 import blake3

from envferry.archive.compression import DEFAULT_LEVEL, new_compressor
from envferry.archive.frame_packer import (
    FRAMES_AHEAD,
    FramePacker,
    PackedFrame,
    packed_in_order,
)
from envferry.archive.frame_reuse import FrameNotes
from envferry.archive.index import (
    FileEntry,
    FrameEntry,
    Index,
    PackageEntry,
    PrefixEdits,
    encode_index,
)
from envferry.archive.members import Member, Owner, Piece, cut_frames, sort_members
from envferry.archive.prefix_search import find_edits
from envferry.archive.seek_table import encode_seek_table
from envferry.archive.tar import END_OF_ARCHIVE
from envferry.archive.tee import Tee
from envferry.base.sha256 import IncrementalSha256
from envferry.models import ArchiveFacts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

    from envferry.archive.frame_reuse import EarlierFrames


class ArchiveStream(Protocol):
    """Where an archive is written to."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Append all of `data`."""


class ArchiveOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What an archive says of itself, and how it is compressed."""

    name: str
    platform: str
    prefix: str
    """The path that the environment was built at."""
    mtime: int
    """Modification time of every member, in seconds since 1970."""
    level: int = DEFAULT_LEVEL
    threads: int = 0
    """0: as many as there are cores."""
    tar_sha256: bool = True
    """Whether the SHA-256 of the tar stream is computed, which images name."""
    earlier: EarlierFrames | None = None
    """Where frames are taken from that need not be compressed again."""

    @property
    def workers(self) -> int:
        """How many threads compress."""
        return self.threads or os.cpu_count() or 1


class WrittenArchive(msgspec.Struct, frozen=True, kw_only=True):
    """What was written; sizes in bytes, digests in hex."""

    index: Index
    size: int
    xxh128: str
    blake3: str
    index_offset: int
    index_size: int
    index_blake3: str
    tar_sha256: str
    """Empty where it was not wanted."""
    notes: FrameNotes
    """What is known of each frame, for the next archive."""
    left_alone: tuple[tuple[str, str], ...] = ()
    """Path and format of the files that hold the prefix and keep it."""

    @property
    def facts(self) -> ArchiveFacts:
        """What a manifest says of it, under its one name."""
        return ArchiveFacts(
            file=f"{self.index.name}-{self.index.platform}-{self.index.id}.tar.zst",
            size=self.size,
            xxh128=self.xxh128,
            blake3=self.blake3,
            tar_size=self.index.tar_size,
            index_offset=self.index_offset,
            index_size=self.index_size,
            index_blake3=self.index_blake3,
            tar_sha256=self.tar_sha256,
        )


def write_archive(
    stream: ArchiveStream,
    members: Sequence[Member],
    *,
    options: ArchiveOptions,
    generate: Callable[[Sequence[FileEntry]], Iterable[Member]],
    advance: Callable[[int], None],
) -> WrittenArchive:
    """Write an archive of `members` to a stream and say what was written.

    When all of them are packed, `generate` is called with their index entries and returns the
    last members: what can be written only when it is known which files hold the prefix.
    `advance` is told the bytes of the tar stream as they are packed. Memory is bounded: a few
    frames for each thread. Raises HostError when a file changes while it is read.
    """
    with (
        ThreadPoolExecutor(options.workers, thread_name_prefix="pack") as pool,
        ArchiveWriter(stream, options=options, advance=advance) as writer,
    ):
        writer.add_group(sort_members(members), pool)
        writer.add_group(sort_members(tuple(generate(writer.files))), pool)
        return writer.finish()


class ArchiveWriter:
    """The growing archive: counters, checksums and index of what was written so far."""

    def __init__(
        self,
        stream: ArchiveStream,
        *,
        options: ArchiveOptions,
        advance: Callable[[int], None],
    ) -> None:
        self.options = options
        self.advance = advance
        self.files: list[FileEntry] = []
        self.frames: list[FrameEntry] = []
        self.plain: list[str] = []
        self.prefixed: list[int] = []
        self.packages: list[PackageEntry] = []
        self.left_alone: list[tuple[str, str]] = []
        self.tar_offset = 0
        self.size = 0
        self.tar_blake3 = blake3()
        self.tar_sha256 = IncrementalSha256() if options.tar_sha256 else None
        self.archive_xxh128, self.archive_blake3 = xxhash.xxh3_128(), blake3()
        # SHA-256 costs 0.6 s for each GB, more than all else that is done with a frame of known
        # bytes: the other digests and the disk do not wait for it.
        self.tar = Tee(one.update for one in (self.tar_sha256, self.tar_blake3) if one)
        self.archive = Tee((stream.write, self.archive_blake3.update, self.archive_xxh128.update))
        self.threads = ExitStack()

    def __enter__(self) -> ArchiveWriter:
        self.threads.enter_context(self.tar)
        self.threads.enter_context(self.archive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.threads.__exit__(kind, error, trace)

    def add_group(self, members: Sequence[Member], pool: ThreadPoolExecutor) -> None:
        """Pack members that are in archive order, after those already packed."""
        if not members:
            return
        entries = [member.entry for member in members]
        starts = group_starts(members)
        plans = cut_frames(entries, frozenset(starts), self.tar_offset)
        first_file, first_frame = len(self.files), len(self.frames)
        packer = FramePacker(
            members,
            level=self.options.level,
            prefix=self.options.prefix,
            mtime=self.options.mtime,
            earlier=self.options.earlier,
        )
        records = MemberRecords(members, self.options.prefix.encode())
        frame_owners = []
        for frame in packed_in_order(pool, packer, plans, self.options.workers + FRAMES_AHEAD):
            if frame.prefix_members:
                # The number of this frame: write_frame appends it next.
                self.prefixed.append(len(self.frames))
            self.plain.append(frame.plain)
            records.take(frame)
            # Last: its memory is free when it is hashed.
            release = partial(packer.reuse_buffer, frame.buffer)
            self.write_frame(frame.compressed, frame.raw, frame.entry, release)
            # A frame holds members of one owner alone, because each group begins a frame.
            frame_owners.append(members[frame.plan.pieces[0].member].owner)
        self.files.extend(records.entries())
        self.left_alone.extend(records.left_alone)
        self.packages.extend(
            package_entries(members, starts, frame_owners, first_file, first_frame)
        )

    def write_frame(
        self,
        compressed: bytes,
        raw: bytes | memoryview,
        entry: FrameEntry,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        """Append one compressed frame; `release` is called when what it holds is not read again."""
        self.tar.feed(raw, release)
        self.write(compressed)
        self.tar_offset += len(raw)
        self.frames.append(entry)
        self.advance(len(raw))

    def write(self, data: bytes) -> None:
        """Append bytes to the file and to its checksums."""
        self.archive.feed(data)
        self.size += len(data)

    def finish(self) -> WrittenArchive:
        """Write the end of the tar stream, the index and the seek table."""
        compressed = new_compressor(self.options.level).compress(END_OF_ARCHIVE)
        self.write_frame(compressed, END_OF_ARCHIVE, FrameEntry.of(compressed, len(END_OF_ARCHIVE)))
        self.plain.append(blake3(END_OF_ARCHIVE).hexdigest())
        self.tar.drain()
        index = Index(
            name=self.options.name,
            platform=self.options.platform,
            prefix=self.options.prefix,
            # Over the uncompressed stream: a new zstd or another level does not change the id.
            id=self.tar_blake3.hexdigest()[:12],
            tar_size=self.tar_offset,
            mtime=self.options.mtime,
            frames=tuple(self.frames),
            files=tuple(self.files),
            packages=tuple(self.packages),
        )
        index_frame = encode_index(index)
        index_offset = self.size
        self.write(index_frame)
        # The index counts as a frame without content, so that the table's sizes add up.
        sizes = [(frame.size, frame.tar_size) for frame in self.frames]
        self.write(encode_seek_table([*sizes, (len(index_frame), 0)]))
        self.archive.drain()
        return WrittenArchive(
            index=index,
            size=self.size,
            xxh128=self.archive_xxh128.hexdigest(),
            blake3=self.archive_blake3.hexdigest(),
            index_offset=index_offset,
            index_size=len(index_frame),
            index_blake3=blake3(index_frame).hexdigest(),
            tar_sha256=self.tar_sha256.hex() if self.tar_sha256 else "",
            notes=FrameNotes(
                plain=tuple(self.plain),
                prefix=self.options.prefix,
                prefixed=tuple(self.prefixed),
            ),
            left_alone=tuple(self.left_alone),
        )


class MemberRecords:
    """Collects what the index says of each member, from frames in archive order."""

    def __init__(self, members: Sequence[Member], prefix: bytes) -> None:
        self.members = members
        self.prefix = prefix
        self.offsets: dict[int, int] = {}
        self.checksums: dict[int, str] = {}
        self.edits: dict[int, PrefixEdits] = {}
        self.left_alone: list[tuple[str, str]] = []
        self.large_hash = xxhash.xxh3_128()
        self.large_tail = b""
        self.large_has_prefix = False

    def take(self, frame: PackedFrame) -> None:
        """Note offsets, checksums and prefix edits of the members in one frame."""
        position = 0
        self.checksums.update(frame.checksums)
        for piece in frame.plan.pieces:
            content = position + piece.header_size
            if piece.start == 0:
                self.offsets[piece.member] = frame.plan.tar_offset + content
            entry = self.members[piece.member].entry
            has_prefix = piece.member in frame.prefix_members
            data = frame.raw[content : content + piece.length]
            if piece.length != entry.size and entry.type == "file":
                self.take_large(piece, data, has_prefix=has_prefix)
            elif has_prefix and holds_edits(entry):
                self.note_edits(piece.member, bytes(data))
            position += piece.size

    def take_large(self, piece: Piece, data: memoryview, *, has_prefix: bool) -> None:
        """Note a piece of a file that is spread over several frames."""
        if piece.start == 0:
            self.large_hash = xxhash.xxh3_128()
            self.large_tail, self.large_has_prefix = b"", False
        self.large_hash.update(data)
        # Every piece but the last is longer than the prefix, so the tail of one piece is enough.
        overlap = len(self.prefix) - 1
        # The prefix may lie across a cut, where neither frame's own search finds it.
        seam = self.large_tail + bytes(data[:overlap])
        self.large_has_prefix |= has_prefix or self.prefix in seam
        self.large_tail = bytes(data[-overlap:])
        entry = self.members[piece.member].entry
        if piece.start + piece.length == entry.size:
            self.checksums[piece.member] = self.large_hash.hexdigest()
            # The frames that held it are gone: it is read once more, and mapped, for it may exceed
            # the memory.
            source = self.members[piece.member].source
            if self.large_has_prefix and holds_edits(entry) and isinstance(source, str):
                with (
                    Path(source).open("rb") as stream,
                    mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
                ):
                    self.note_edits(piece.member, content)

    def note_edits(self, number: int, content: bytes | mmap.mmap) -> None:
        """Note where a file holds the prefix."""
        member = self.members[number]
        finding = find_edits(content, self.prefix, member.recorded)
        if finding.edits:
            self.edits[number] = finding.edits
        if finding.left_alone:
            self.left_alone.append((member.entry.path, finding.left_alone))

    def entries(self) -> Iterator[FileEntry]:
        """Yield the finished index entries, in order."""
        for number, member in enumerate(self.members):
            yield msgspec.structs.replace(
                member.entry,
                offset=self.offsets[number],
                xxh128=self.checksums.get(number, ""),
                edits=self.edits.get(number),
            )


def holds_edits(entry: FileEntry) -> bool:
    """Whether a prefix in this file is to be edited when it moves.

    Byte code names its source file only for tracebacks, in strings whose length is stored before
    them, and the import system replaces that name when it loads the file: it stays as it is.
    """
    return entry.type == "file" and not entry.path.endswith(".pyc")


def group_starts(members: Sequence[Member]) -> list[int]:
    """Return the numbers of the members with which a new owner begins."""
    return [
        number
        for number, member in enumerate(members)
        if number == 0 or member.owner != members[number - 1].owner
    ]


def package_entries(
    members: Sequence[Member],
    starts: list[int],
    frame_owners: list[Owner],
    first_file: int,
    first_frame: int,
) -> Iterator[PackageEntry]:
    """Yield, for each owner, the run of files and of frames that are its own."""
    ends = [*starts[1:], len(members)]
    frame = 0
    for start, end in zip(starts, ends, strict=True):
        owner = members[start].owner
        frames = 0
        while frame + frames < len(frame_owners) and frame_owners[frame + frames] == owner:
            frames += 1
        yield PackageEntry(
            name=owner.name,
            kind=owner.kind,
            version=owner.version,
            build=owner.build,
            first_file=first_file + start,
            files=end - start,
            first_frame=first_frame + frame,
            frames=frames,
        )
        frame += frames
