"""Write an archive: read, check, compress and hash frames in parallel, in one pass."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Protocol

import msgspec
import xxhash
from blake3 import blake3

from envferry.archive.compression import DEFAULT_LEVEL, new_compressor
from envferry.archive.frame_packer import (
    FRAMES_AHEAD,
    FramePacker,
    packed_in_order,
)
from envferry.archive.frame_reuse import FrameNotes
from envferry.archive.index import (
    FileEntry,
    FrameEntry,
    Index,
    PackageEntry,
    encode_index,
)
from envferry.archive.member_records import MemberRecords
from envferry.archive.members import Member, Owner, cut_frames, sort_members
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
    """Where frames are taken from that need not be compressed again. For the SHA-256, all of them
    must be read: it must know none by its sources then."""

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
        self.sources: list[str] = []
        self.prefixed: list[int] = []
        self.packages: list[PackageEntry] = []
        self.left_alone: list[tuple[str, str]] = []
        self.tar_offset = 0
        self.size = 0
        self.tar_sha256 = IncrementalSha256() if options.tar_sha256 else None
        self.archive_xxh128, self.archive_blake3 = xxhash.xxh3_128(), blake3()
        # SHA-256 costs 0.6 s for each GB, more than all else that is done with a frame of known
        # bytes: the other digests and the disk do not wait for it.
        self.tar = Tee((self.tar_sha256.update,) if self.tar_sha256 else ())
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
        frame_owners, sources = [], []
        for frame in packed_in_order(pool, packer, plans, self.options.workers + FRAMES_AHEAD):
            if frame.has_prefix:
                # The number of this frame: write_frame appends it next.
                self.prefixed.append(len(self.frames))
            self.plain.append(frame.plain)
            records.take(frame)
            # Last: its memory is free when it is hashed.
            if frame.raw is not None and frame.buffer is not None:
                self.tar.feed(frame.raw, partial(packer.reuse_buffer, frame.buffer))
            self.write_frame(frame.compressed, frame.entry)
            sources.append((frame.plan, frame.source))
            # A frame holds members of one owner alone, because each group begins a frame.
            frame_owners.append(members[frame.plan.pieces[0].member].owner)
        self.files.extend(records.entries())
        self.left_alone.extend(records.left_alone)
        # What holds the prefix is read each time: that it is edited, or why not, is found in it.
        self.sources.extend("" if records.is_to_read(plan) else source for plan, source in sources)
        self.packages.extend(
            package_entries(members, starts, frame_owners, first_file, first_frame)
        )

    def write_frame(self, compressed: bytes, entry: FrameEntry) -> None:
        """Append one compressed frame."""
        self.write(compressed)
        self.tar_offset += entry.tar_size
        self.frames.append(entry)
        self.advance(entry.tar_size)

    def write(self, data: bytes) -> None:
        """Append bytes to the file and to its checksums."""
        self.archive.feed(data)
        self.size += len(data)

    def finish(self) -> WrittenArchive:
        """Write the end of the tar stream, the index and the seek table."""
        compressed = new_compressor(self.options.level).compress(END_OF_ARCHIVE)
        self.tar.feed(END_OF_ARCHIVE)
        self.tar.drain()
        self.write_frame(compressed, FrameEntry.of(compressed, len(END_OF_ARCHIVE)))
        self.plain.append(blake3(END_OF_ARCHIVE).hexdigest())
        self.sources.append("")
        index = Index(
            name=self.options.name,
            platform=self.options.platform,
            prefix=self.options.prefix,
            id=archive_id(self.plain),
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
                sources=tuple(self.sources),
            ),
            left_alone=tuple(self.left_alone),
        )


def archive_id(plain: Sequence[str]) -> str:
    """Return the id of an archive, given the BLAKE3 of what each frame holds, in hex.

    Of the uncompressed stream: a new zstd or another level does not change the id.
    """
    return blake3(b"".join(map(bytes.fromhex, plain))).hexdigest()[:12]


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
