"""Refuse an index that lies, or that would write or point outside its tree."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from envferry.archive.members import FramePlan, Piece
from envferry.archive.tar import END_OF_ARCHIVE, MAX_OCTAL_SIZE, padding, tar_header
from envferry.errors import IntegrityError
from envferry.models import ID_PATTERN, NAME_PATTERN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from envferry.archive.index import FileEntry, Index

MAX_FRAME_BYTES = 64 << 20
"""No frame of ours holds more than a fourth of this: a larger one is a decompression bomb."""
MAX_LINKS = 40
MODES = {"file": (0o644, 0o755), "directory": (0o755,), "symlink": (0o777,)}


def check_index(index: Index, what: str) -> None:
    """Raise IntegrityError, naming every fault, unless the index describes a safe tree."""
    types = {entry.path: entry.type for entry in index.files}
    links = {entry.path: entry.link for entry in index.files if entry.type == "symlink"}
    faults = list(header_faults(index))
    faults.extend(fault for entry in index.files for fault in entry_faults(entry, types))
    if len(types) != len(index.files):
        faults.append("a path occurs twice")
    if not faults:
        faults = [
            f"{path!r} links to {link!r}, outside the environment"
            for path, link in links.items()
            if leaves_tree(path, links, index.prefix)
        ]
    if faults:
        shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if faults[5:] else "")
        message = f"the index of {what} is not safe to install: {shown}"
        raise IntegrityError(message, hint="do not use this archive; ask where it came from")


def header_faults(index: Index) -> Iterator[str]:
    """Yield what is wrong with what the index says of the whole archive."""
    if not NAME_PATTERN.fullmatch(index.name) or not NAME_PATTERN.fullmatch(index.platform):
        yield f"{index.name!r} for {index.platform!r} is no name of an environment"
    if not ID_PATTERN.fullmatch(index.id):
        yield f"{index.id!r} is no id"
    if not is_sane_prefix(index.prefix):
        yield f"{index.prefix!r} is no prefix"
    if not 0 <= index.mtime <= MAX_OCTAL_SIZE:
        yield f"{index.mtime} is no time"
    end = 0
    for package in index.packages:
        if package.first_file != end or package.files < 0:
            yield f"the files of the package {package.name!r} are not a run of their own"
        end = package.first_file + package.files
    if end != len(index.files):
        yield "the packages do not have all files"


def is_sane_prefix(prefix: str) -> bool:
    """Whether a path can be one that an environment lives at."""
    is_printable = all(character >= " " for character in prefix)
    return (
        is_printable
        and prefix != "/"
        and posixpath.isabs(prefix)
        and (posixpath.normpath(prefix) == prefix)
    )


def edit_faults(entry: FileEntry) -> Iterator[str]:
    """Yield what is wrong with the places where a file holds the prefix."""
    end = 0
    for string in entry.edits.strings if entry.edits else ():
        fits = string.offset >= end and 0 < string.length <= string.capacity
        if not fits or not 0 < string.count <= string.length:
            yield f"{entry.path!r} has a prefix where none can be"
            return
        end = string.offset + string.capacity
    if end > entry.size or (entry.edits and (entry.type != "file" or not entry.size)):
        yield f"{entry.path!r} has a prefix where none can be"


def entry_faults(entry: FileEntry, types: Mapping[str, str]) -> Iterator[str]:
    """Yield what is wrong with one entry, given the types of all paths."""
    parts = entry.path.split("/")
    if not entry.path or "\0" in entry.path or any(part in ("", ".", "..") for part in parts):
        yield f"{entry.path!r} is no path inside the environment"
    elif len(parts) > 1 and types.get(entry.path.rpartition("/")[0]) != "directory":
        yield f"{entry.path!r} lies in no directory of the archive"
    if entry.mode not in MODES[entry.type]:
        yield f"{entry.path!r} has mode {entry.mode:o}"
    if entry.size < 0 or (entry.type != "file" and entry.size):
        yield f"{entry.path!r} has size {entry.size}"
    if (entry.type == "symlink") != bool(entry.link) or "\0" in entry.link:
        yield f"{entry.path!r} has link target {entry.link!r}"
    yield from edit_faults(entry)


def leaves_tree(path: str, links: dict[str, str], prefix: str) -> bool:
    """Whether following the link at `path`, and the links on its way, leads out of the tree."""
    rest = path.split("/")
    here: list[str] = []
    followed = 0
    while rest:
        part = rest.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            if not here:
                return True
            here.pop()
            continue
        here.append(part)
        link = links.get("/".join(here))
        if link is None:
            continue
        followed += 1
        if followed > MAX_LINKS:
            return True
        here.pop()
        if link.startswith("/"):
            if not posixpath.normpath(link).startswith(prefix + "/"):
                return True
            link, here = link.removeprefix(prefix), []
        rest = [*link.split("/"), *rest]
    return False


def plan_frames(index: Index, what: str) -> list[FramePlan]:
    """Return which pieces of which files each frame holds, as the sizes in the index say.

    Raises IntegrityError unless files and frames cover the tar stream exactly, no header is cut
    and every frame is of a sane size.
    """
    cutter = FrameCutter(index, what)
    for number, entry in enumerate(index.files):
        cutter.add(number, entry)
    return cutter.finish()


class FrameCutter:
    """Lays the members of an index over its frames."""

    def __init__(self, index: Index, what: str) -> None:
        self.index = index
        self.what = what
        self.plans: list[FramePlan] = []
        self.pieces: list[Piece] = []
        self.tar_offset = 0
        self.used = 0
        if any(not 0 < frame.tar_size <= MAX_FRAME_BYTES for frame in index.frames):
            raise self.fault("a frame claims an impossible size")

    def fault(self, reason: str) -> IntegrityError:
        """Return the error for an index that contradicts itself."""
        message = f"the index of {self.what} contradicts itself: {reason}"
        return IntegrityError(message, hint="copy or fetch the archive again")

    def frame_size(self) -> int:
        """Return the bytes of the tar stream that the current frame holds."""
        if len(self.plans) >= len(self.index.frames):
            raise self.fault("its files need more frames than there are")
        return self.index.frames[len(self.plans)].tar_size

    def add(self, number: int, entry: FileEntry) -> None:
        """Lay one member, header first, over the current frame and the next ones."""
        header = tar_header(entry, self.index.mtime)
        content = entry.size if entry.type == "file" else 0
        if self.used == self.frame_size():
            self.next_frame()
        if self.tar_offset + self.used + len(header) != entry.offset:
            raise self.fault(f"{entry.path!r} is not where it must be")
        start = 0
        while True:
            room = self.frame_size() - self.used - len(header)
            length = min(content - start, room)
            is_last = start + length == content
            fill = padding(content) if is_last else 0
            if room < 0 or fill > room - length:
                raise self.fault(f"{entry.path!r} is cut where it must not be")
            piece = Piece(member=number, start=start, length=length, header=header, padding=fill)
            self.pieces.append(piece)
            self.used += piece.size
            if is_last:
                return
            start, header = start + length, b""
            self.next_frame()

    def next_frame(self) -> None:
        """Close the current frame, which must be full."""
        if self.used != self.frame_size():
            raise self.fault("a frame is larger than its files")
        self.plans.append(FramePlan(pieces=tuple(self.pieces), tar_offset=self.tar_offset))
        self.tar_offset += self.used
        self.pieces, self.used = [], 0

    def finish(self) -> list[FramePlan]:
        """Close the last frame of files; what remains must be the end of the tar stream."""
        if self.used:
            self.next_frame()
        sizes = [frame.tar_size for frame in self.index.frames[len(self.plans) :]]
        end = self.tar_offset + len(END_OF_ARCHIVE)
        if sizes != [len(END_OF_ARCHIVE)] or end != self.index.tar_size:
            raise self.fault("its files and frames do not cover the whole stream")
        return [*self.plans, FramePlan(pieces=(), tar_offset=self.tar_offset)]
