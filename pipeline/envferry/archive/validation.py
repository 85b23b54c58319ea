"""Refuse an index that contradicts itself, or would write or point outside its tree."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

from envferry.archive.links import LinkCheck
from envferry.archive.members import FramePlan, Piece
from envferry.archive.tar import END_OF_ARCHIVE, MAX_OCTAL_SIZE, header_size, padding
from envferry.errors import IntegrityError
from envferry.names import ID_PATTERN, NAME_PATTERN, is_env_prefix

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from envferry.archive.index import FileEntry, Index

MAX_FRAME_BYTES = 64 << 20
"""No frame of ours holds more than a fourth of this: a larger one is a decompression bomb."""
MAX_DEPTH = 256
"""Folders within folders: what walks a tree may do so recursively."""
MAX_NAME_BYTES = 255
"""NAME_MAX of Linux: of one part of a path."""
MAX_PATH_BYTES = 3840
"""PATH_MAX of Linux less a prefix as long as conda's placeholder."""
MAX_LINK_BYTES = 4095
"""PATH_MAX of Linux less its final NUL."""
SHOWN = 200
NOWHERE = frozenset({"", ".", ".."})
"""What is no name within a directory."""
MODES = {"file": (0o644, 0o755), "directory": (0o755,), "symlink": (0o777,)}


def check_index(index: Index, what: str) -> None:
    """Raise IntegrityError, naming every fault, unless the index describes a safe tree."""
    faults = [*header_faults(index), *tree_faults(index.files, index.prefix)]
    if faults:
        shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if faults[5:] else "")
        message = f"the index of {what} is not safe to install: {shown}"
        raise IntegrityError(message, hint="do not use this archive; ask where it came from")


def tree_faults(files: Sequence[FileEntry], prefix: str) -> list[str]:
    """Return, in words, why these files are not a tree that may be installed; empty when they are.

    `pack` checks the same as `install`. It takes time linear in the length of all paths and link
    targets.
    """
    types = {entry.path: entry.type for entry in files}
    faults = [fault for entry in files for fault in entry_faults(entry, types)]
    if len(types) != len(files):
        counts = Counter(entry.path for entry in files)
        twice = (path for path, count in counts.items() if count > 1)
        faults.extend(f"the path {shortened(path)} occurs twice" for path in twice)
    # Links last: how they are followed relies on each path being in a directory of the tree.
    return faults or list(LinkCheck(files, prefix).faults())


def header_faults(index: Index) -> Iterator[str]:
    """Yield what is wrong with what the index says of the whole archive."""
    if not NAME_PATTERN.fullmatch(index.name) or not NAME_PATTERN.fullmatch(index.platform):
        yield f"{index.name!r} for {index.platform!r} is not a valid name of an environment"
    if not ID_PATTERN.fullmatch(index.id):
        yield f"{index.id!r} is not a valid id"
    if not is_env_prefix(index.prefix):
        yield f"{index.prefix!r} is not a valid prefix"
    # A tar header has eleven octal digits for the time as well.
    if not 0 <= index.mtime <= MAX_OCTAL_SIZE:
        yield f"{index.mtime} is not a valid time"
    end = 0
    for package in index.packages:
        if package.first_file != end or package.files < 0:
            yield f"the files of the package {package.name!r} are not contiguous"
        end = package.first_file + package.files
    if end != len(index.files):
        yield "some files belong to no package"


def edit_faults(entry: FileEntry) -> Iterator[str]:
    """Yield what is wrong with the places where a file holds the prefix."""
    end = 0
    for string in entry.edits.strings if entry.edits else ():
        fits = string.offset >= end and 0 < string.length <= string.capacity
        if not fits or not 0 < string.count <= string.length:
            yield f"{entry.path!r} has a prefix at an invalid position"
            return
        # What may be written counts, not what is there: edits must not reach into each other.
        end = string.offset + string.capacity
    if end > entry.size or (entry.edits and (entry.type != "file" or not entry.size)):
        yield f"{entry.path!r} has a prefix at an invalid position"
        return
    at = entry.edits.at if entry.edits else ()
    counted = sum(string.count for string in entry.edits.strings) if entry.edits else 0
    is_ordered = all(one < other for one, other in pairwise(at))
    # 0: the edits are of a text, which has no strings to count occurrences in.
    if at and not (is_ordered and at[0] >= 0 and at[-1] < entry.size and counted in (0, len(at))):
        yield f"{entry.path!r} has a prefix at an invalid position"


def path_fault(path: str) -> str:
    """Return what is wrong with a path of the tree; empty when nothing is."""
    if is_plain(path):
        return ""
    parts = path.split("/")
    # An absolute path has an empty first part, so this refuses it, too.
    if not path or "\0" in path or not NOWHERE.isdisjoint(parts):
        return f"{shortened(path)} is not a path inside the environment"
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return f"the path {shortened(path)} is not UTF-8"
    size, longest = len(encoded), max(map(len, encoded.split(b"/")))
    if len(parts) > MAX_DEPTH:
        return f"the path {shortened(path)} has {len(parts)} parts, at most {MAX_DEPTH} are allowed"
    if size > MAX_PATH_BYTES or longest > MAX_NAME_BYTES:
        return f"the path {shortened(path)} is {size} bytes long, which is too long to install"
    return ""


def is_plain(path: str) -> bool:
    """Whether a path is so short and simple that nothing can be wrong: nearly all of them are."""
    # Between slashes, each part is one. Shorter than the longest name, none of them is longer, nor
    # are there too many.
    around = f"/{path}/"
    return (
        len(path) <= MAX_NAME_BYTES
        and path.isascii()
        and "\0" not in path
        and "//" not in around
        and "/./" not in around
        and "/../" not in around
    )


def shortened(path: str) -> str:
    """Return a path as errors show it: on one line, and not a page of it."""
    return repr(path if len(path) <= SHOWN else f"{path[: SHOWN // 2]}…{path[-SHOWN // 2 :]}")


def entry_faults(entry: FileEntry, types: Mapping[str, str]) -> Iterator[str]:
    """Yield what is wrong with one entry, given the types of all paths."""
    fault = path_fault(entry.path)
    parent = entry.path.rpartition("/")[0]
    if fault:
        yield fault
    # So nothing is ever written by way of a link.
    elif parent and types.get(parent) != "directory":
        yield f"the parent directory of {shortened(entry.path)} is not in the archive"
    if entry.mode not in MODES[entry.type]:
        yield f"{shortened(entry.path)} has the invalid mode {entry.mode:o}"
    if entry.size < 0 or (entry.type != "file" and entry.size):
        yield f"{shortened(entry.path)} has the invalid size {entry.size}"
    if entry.link or entry.type == "symlink":
        yield from link_faults(entry)
    if entry.edits:
        yield from edit_faults(entry)


def link_faults(entry: FileEntry) -> Iterator[str]:
    """Yield what is wrong with the target of one entry, and with an entry that has one."""
    name = shortened(entry.path)
    if (entry.type == "symlink") != bool(entry.link) or "\0" in entry.link:
        yield f"{name} has the invalid link target {shortened(entry.link)}"
    if len(entry.link) > MAX_LINK_BYTES:
        yield f"{name} is a link to a path of {len(entry.link)} characters, which is too long"
    if not is_utf8(entry.link):
        yield f"{name} is a link to {shortened(entry.link)}, which is not UTF-8"


def is_utf8(text: str) -> bool:
    """Whether a path can be written as UTF-8: os.fsdecode leaves surrogates where it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
        self.sizes = [frame.tar_size for frame in index.frames]
        # Before a frame is read: whoever decompresses one allocates what it claims.
        if any(not 0 < size <= MAX_FRAME_BYTES for size in self.sizes):
            msg = "a frame claims an impossible size"
            raise self.fault(msg)

    def fault(self, reason: str) -> IntegrityError:
        """Return the error for an index that contradicts itself."""
        message = f"the index of {self.what} contradicts itself: {reason}"
        return IntegrityError(message, hint="copy or fetch the archive again")

    def frame_size(self) -> int:
        """Return the bytes of the tar stream that the current frame holds."""
        if len(self.plans) >= len(self.sizes):
            msg = "it has too few frames for its files"
            raise self.fault(msg)
        return self.sizes[len(self.plans)]

    def add(self, number: int, entry: FileEntry) -> None:
        """Lay one member, header first, over the current frame and the next ones."""
        header = header_size(entry)
        content = entry.size if entry.type == "file" else 0
        if self.used == self.frame_size():
            self.next_frame()
        if self.tar_offset + self.used + header != entry.offset:
            msg = f"{entry.path!r} is not at the expected offset"
            raise self.fault(msg)
        start = 0
        while True:
            room = self.frame_size() - self.used - header
            length = min(content - start, room)
            is_last = start + length == content
            fill = padding(content) if is_last else 0
            # A header or padding that is cut in two; only content may go on in the next frame.
            if room < 0 or fill > room - length:
                msg = f"{entry.path!r} is split at an invalid position"
                raise self.fault(msg)
            self.pieces.append(
                Piece(member=number, start=start, length=length, header_size=header, padding=fill)
            )
            self.used += header + length + fill
            if is_last:
                return
            start, header = start + length, 0
            self.next_frame()

    def next_frame(self) -> None:
        """Close the current frame, which must be full."""
        if self.used != self.frame_size():
            msg = "a frame is larger than its files"
            raise self.fault(msg)
        self.plans.append(FramePlan(pieces=tuple(self.pieces), tar_offset=self.tar_offset))
        self.tar_offset += self.used
        self.pieces, self.used = [], 0

    def finish(self) -> list[FramePlan]:
        """Close the last frame of files; what remains must be the end of the tar stream."""
        if self.used:
            self.next_frame()
        end = self.tar_offset + len(END_OF_ARCHIVE)
        if self.sizes[len(self.plans) :] != [len(END_OF_ARCHIVE)] or end != self.index.tar_size:
            msg = "its files and frames do not cover the whole stream"
            raise self.fault(msg)
        return [*self.plans, FramePlan(pieces=(), tar_offset=self.tar_offset)]
