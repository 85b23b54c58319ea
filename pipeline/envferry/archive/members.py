"""What goes into an archive, in which order, and where the frames are cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from envferry.archive.tar import BLOCK, header_size, padding

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from envferry.archive.index import FileEntry

FRAME_BYTES = 8 << 20
"""A frame ends at the first file boundary past this; larger files are cut at multiples of it."""


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """The package that members belong to; sorts as its group stands in the archive."""

    rank: int = 0
    """0: without an owner, 1: a package, 2: generated while packing."""
    name: str = ""
    kind: Literal["conda", "pypi", "none", "generated"] = "none"
    version: str = ""
    build: str = ""

    @property
    def sort_key(self) -> tuple[int, str, str]:
        """Where this owner's members stand."""
        return (self.rank, self.name, self.kind)


NO_OWNER = Owner()
GENERATED = Owner(rank=2, kind="generated")


class Recorded(NamedTuple):
    """What conda noted of the prefix in a file when it linked it."""

    mode: Literal["text", "binary", "none"]
    """How the file holds the prefix; `none` when its package has it as it is."""
    placeholder_length: int = 0
    """Bytes of the placeholder that the package has instead."""
    sha256: str = ""
    """Of the file in its package."""


# gc=False: as many as there are files, and none is part of a cycle.
class FileIdentity(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a file was like when a tree was listed; whatever is written to it changes that."""

    device: int
    inode: int
    size: int
    """Bytes."""
    mtime_ns: int
    ctime_ns: int
    first_ctime_ns: int
    """The ctime before builds hard-linked it, which gave it others and changed nothing else."""

    def is_of(self, status: os.stat_result) -> bool:
        """Whether a file is still that one, and as it was."""
        return (self.device, self.inode, self.size, self.mtime_ns, self.ctime_ns) == (
            *(status.st_dev, status.st_ino, status.st_size),
            *(status.st_mtime_ns, status.st_ctime_ns),
        )

    @property
    def lasting(self) -> tuple[int, ...]:
        """What stays the same as long as its content does."""
        return (self.device, self.inode, self.size, self.mtime_ns, self.first_ctime_ns)


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One file, directory or symbolic link to be packed."""

    entry: FileEntry
    """Path, type, mode, size and link target; offset and checksum are not known yet."""
    owner: Owner
    source: str | bytes = b""
    """The content of a file, or the path it is read from: a `Path` for each would take seconds."""
    head: bytes = b""
    """What takes the place of the first bytes of the content."""
    recorded: Recorded | None = None
    """What conda noted of the file; None where it noted nothing."""
    identity: FileIdentity | None = None
    """Of a file that is read from a path; None where only its content tells it from others."""


# gc=False: as many as there are files, and none is part of a cycle.
class Piece(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A part of a member that one frame holds."""

    member: int
    """Its number in the archive."""
    start: int
    """Where in the member's content this piece starts."""
    length: int
    """Bytes of content."""
    header_size: int
    """Bytes of the tar header, which the first piece of a member begins with; 0 in others."""
    padding: int
    """Zero bytes after it, in the last piece."""

    @property
    def size(self) -> int:
        """Bytes of the tar stream."""
        return self.header_size + self.length + self.padding


FramePlace = tuple[str, int, int]
"""Where a frame begins: a path, an offset in that file, and how many bytes the frame holds."""


class FramePlan(msgspec.Struct, frozen=True, kw_only=True):
    """The pieces that one zstd frame holds."""

    pieces: tuple[Piece, ...]
    tar_offset: int
    """Where in the tar stream the frame starts."""

    @property
    def size(self) -> int:
        """Bytes of the tar stream that the frame holds."""
        return sum(piece.size for piece in self.pieces)


def sort_members(members: Sequence[Member]) -> list[Member]:
    """Return members in archive order: by owner, then path."""
    # Part of the archive's bytes: another order is another id.
    return sorted(members, key=lambda member: (member.owner.sort_key, member.entry.path))


def cut_frames(
    entries: Sequence[FileEntry], group_starts: frozenset[int], tar_offset: int = 0
) -> Iterator[FramePlan]:
    """Cut the tar stream of `entries` into frames.

    A frame starts where a group of one owner starts (`group_starts` holds the numbers of first
    members) and ends at the first member boundary past FRAME_BYTES. A file over FRAME_BYTES starts
    a frame of its own and is cut at multiples of FRAME_BYTES of its content. So the frames of a
    package depend on that package alone.
    """
    pieces: list[Piece] = []
    size = 0
    for number, entry in enumerate(entries):
        content = entry.size if entry.type == "file" else 0
        is_large = content > FRAME_BYTES
        if pieces and (number in group_starts or is_large or size >= FRAME_BYTES):
            yield FramePlan(pieces=tuple(pieces), tar_offset=tar_offset)
            tar_offset += size
            pieces, size = [], 0
        for piece in cut_member(number, content, header_size(entry)):
            pieces.append(piece)
            size += piece.size
            # Behind its last piece, too: the next file begins a frame, however short this one is.
            if is_large:
                yield FramePlan(pieces=tuple(pieces), tar_offset=tar_offset)
                tar_offset += size
                pieces, size = [], 0
    if pieces:
        yield FramePlan(pieces=tuple(pieces), tar_offset=tar_offset)


def cut_member(number: int, content: int, header: int) -> Iterator[Piece]:
    """Cut one member's content of so many bytes into pieces of at most FRAME_BYTES."""
    start = 0
    # Not `while start < content`: what has no content has a header, and so a piece.
    while True:
        length = min(content - start, FRAME_BYTES)
        is_last = start + length == content
        yield Piece(
            member=number,
            start=start,
            length=length,
            header_size=header if start == 0 else 0,
            padding=padding(content) if is_last else 0,
        )
        if is_last:
            return
        start += length


# A large file is cut at multiples of FRAME_BYTES: only its last piece may need padding.
assert FRAME_BYTES % BLOCK == 0
