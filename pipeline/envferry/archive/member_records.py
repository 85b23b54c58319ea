"""What the index says of each member, gathered from frames while they are packed."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import xxhash

from envferry.archive.prefix_search import find_edits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from envferry.archive.frame_packer import PackedFrame
    from envferry.archive.index import FileEntry, PrefixEdits
    from envferry.archive.members import FramePlan, Member, Piece


class MemberRecords:
    """Collects what the index says of each member, from frames in archive order."""

    def __init__(self, members: Sequence[Member], prefix: bytes) -> None:
        self.members = members
        self.prefix = prefix
        self.offsets: dict[int, int] = {}
        self.checksums: dict[int, str] = {}
        self.edits: dict[int, PrefixEdits] = {}
        self.left_alone: list[tuple[str, str]] = []
        self.to_read: set[int] = set()
        self.large_hash = xxhash.xxh3_128()
        self.large_tail = b""
        self.large_has_prefix = False

    def is_to_read(self, plan: FramePlan) -> bool:
        """Whether a frame has to be read the next time, even if its files are the same."""
        return any(piece.member in self.to_read for piece in plan.pieces)

    def take(self, frame: PackedFrame) -> None:
        """Note offsets, checksums and prefix edits of the members in one frame."""
        position = 0
        for piece in frame.plan.pieces:
            if piece.start == 0:
                self.offsets[piece.member] = frame.plan.tar_offset + position + piece.header_size
            position += piece.size
        if not frame.source:
            # Of a file that was not what was listed, no frame is believed.
            self.to_read.update(piece.member for piece in frame.plan.pieces)
        if frame.known:
            self.checksums.update(frame.known.checksums_of(frame.plan))
        elif frame.raw is not None:
            self.checksums.update(frame.checksums)
            self.take_content(frame, frame.raw)

    def take_content(self, frame: PackedFrame, raw: memoryview) -> None:
        """Note prefix edits of the members in one frame, and checksums of large ones."""
        position = 0
        for piece in frame.plan.pieces:
            content = position + piece.header_size
            entry = self.members[piece.member].entry
            has_prefix = piece.member in frame.prefix_members
            data = raw[content : content + piece.length]
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
        # Whatever was found: with another record of conda's, it would be something else.
        self.to_read.add(number)
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
