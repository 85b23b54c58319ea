"""Compare an installed tree with the index of its archive, at the speed of the disk."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Literal

import msgspec

from envferry.archive.contents import (
    READ_FILE,
    Content,
    checksum,
    expected_content,
    in_parallel,
    is_directory,
    lost_directories,
)
from envferry.archive.extraction import TOP_MODE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from envferry.archive.index import FileEntry, Index
    from envferry.archive.prefixes import Relocation

WRITE_BITS = 0o222
CACHE = "__pycache__"
TOP = "."
"""How the directory that holds a whole tree is called: no index names it."""


class FileDifference(msgspec.Struct, frozen=True, kw_only=True):
    """One path that is not as it was installed."""

    path: str
    kind: Literal["changed", "missing", "extra"]
    package: str
    """The package it belongs to, for what is extra the one whose directory it is in; or empty."""
    reason: str = ""
    shared_with: tuple[str, ...] = ()
    """The other installations (`NAME@ID`) of which this very file is a part."""


class InstalledTree(msgspec.Struct, frozen=True, kw_only=True):
    """A tree and all that says what it must be."""

    root: Path
    index: Index
    relocation: Relocation
    edited: Mapping[str, Content]
    """What files hold whose prefix was edited when they were installed."""


def compare_tree(
    tree: InstalledTree, *, quick: bool, advance: Callable[[int], None]
) -> list[FileDifference]:
    """Return what differs, in the order of the paths.

    Every file is read and its checksum compared; with `quick`, size, mode and modification time
    have to do. `advance` is told the bytes that are done. Byte code that Python wrote for modules
    of the environment is not a difference.
    """
    numbers = range(len(tree.index.files))
    differences = [
        *top_faults(tree),
        *faults_among(tree, numbers, quick=quick, advance=advance),
        *extras(tree),
    ]
    return sorted(differences, key=lambda difference: difference.path)


def top_faults(tree: InstalledTree) -> Iterator[FileDifference]:
    """Yield what is wrong with the directory that holds the tree."""
    reason = directory_fault(str(tree.root), TOP_MODE)
    if reason:
        kind: Literal["changed", "missing"] = "missing" if reason == "missing" else "changed"
        yield FileDifference(path=TOP, kind=kind, package="", reason=reason)


def faults_among(
    tree: InstalledTree,
    numbers: Iterable[int],
    *,
    quick: bool,
    advance: Callable[[int], None] = lambda count: None,
) -> list[FileDifference]:
    """Return what is changed or missing among the files with these numbers."""
    files = tree.index.files
    comparison = Comparison(tree, quick=quick)

    def work(batch: list[int]) -> list[FileDifference]:
        found = [
            comparison.difference(number, reason)
            for number in batch
            if (reason := comparison.fault(files[number]))
        ]
        advance(sum(files[number].size for number in batch))
        return found

    return [item for batch in in_parallel(tree.index, numbers, work) for item in batch]


class Comparison:
    """One tree, compared entry by entry from many threads."""

    def __init__(self, tree: InstalledTree, *, quick: bool) -> None:
        self.tree = tree
        self.root = str(tree.root)
        self.quick = quick
        self.mtime_ns = tree.index.mtime * 10**9
        self.owners = package_of_file(tree.index)
        self.lost = lost_directories(str(tree.root), tree.index)

    def difference(self, number: int, reason: str) -> FileDifference:
        """Describe an entry that is not as it must be."""
        kind: Literal["changed", "missing"] = "missing" if reason == "missing" else "changed"
        path = self.tree.index.files[number].path
        return FileDifference(path=path, kind=kind, package=self.owners[number], reason=reason)

    def fault(self, entry: FileEntry) -> str:
        """Return what is wrong with an entry, nothing when it is right."""
        path = f"{self.root}/{entry.path}"
        # What is found there all the same lies behind a link, in another tree.
        if entry.path.rpartition("/")[0] in self.lost:
            return "missing"
        if entry.type == "file":
            return self.file_fault(path, entry)
        if entry.type == "directory":
            return directory_fault(path, entry.mode)
        try:
            status = os.lstat(path)
        except OSError as error:
            return open_fault(error)
        if not stat.S_ISLNK(status.st_mode):
            return "not a symbolic link"
        link = os.readlink(path)  # noqa: PTH115  (Path would normalise it)
        return "" if link == self.tree.relocation.move_link(entry.link) else f"links to {link}"

    def file_fault(self, path: str, entry: FileEntry) -> str:
        """Return what is wrong with a file."""
        try:
            descriptor = -1 if self.quick else os.open(path, READ_FILE)
        except OSError as error:
            return open_fault(error)
        try:
            return self.opened_fault(path, descriptor, entry)
        except OSError as error:
            return open_fault(error)
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def opened_fault(self, path: str, descriptor: int, entry: FileEntry) -> str:
        """Return what is wrong with a file that is open, or with its status when `quick`."""
        wanted = expected_content(entry, self.tree.edited)
        status = os.lstat(path) if descriptor < 0 else os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return "not a regular file"
        if status.st_size != wanted.size:
            return f"{status.st_size} bytes, expected {wanted.size}"
        if not is_mode(stat.S_IMODE(status.st_mode), entry.mode):
            return f"mode {stat.S_IMODE(status.st_mode):o}, expected {entry.mode:o}"
        if descriptor < 0:
            # All files of an archive have one time, so any other one tells of a write.
            return "" if status.st_mtime_ns == self.mtime_ns else "different modification time"
        if entry.size and checksum(descriptor) != wanted:
            return "different content"
        return ""


def read_only(mode: int) -> int:
    """Return the mode that a file has while installations share it."""
    return mode & ~WRITE_BITS


def is_mode(found: int, wanted: int) -> bool:
    """Whether a file has the archive's mode, or that of a file that is or was shared."""
    return found in (wanted, read_only(wanted))


def directory_fault(path: str, mode: int) -> str:
    """Return what is wrong with a directory, nothing when it is right.

    A directory may have the set-group-id bit of the one that it was made in.
    """
    try:
        status = os.lstat(path)
    except OSError as error:
        return open_fault(error)
    if not stat.S_ISDIR(status.st_mode):
        return "not a directory"
    found = stat.S_IMODE(status.st_mode) & 0o777
    return "" if found == mode else f"mode {found:o}, expected {mode:o}"


def open_fault(error: OSError) -> str:
    """Return what is wrong with a file that cannot be opened or read."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "missing"
    # What O_NOFOLLOW says of a link (open(2)).
    if error.errno == errno.ELOOP:
        return "a symbolic link"
    return f"cannot be read: {error.strerror}"


def package_of_file(index: Index) -> list[str]:
    """Return the name of the package that each file belongs to, by file number."""
    owners = [""] * len(index.files)
    for package in index.packages:
        for number in range(package.first_file, package.first_file + package.files):
            owners[number] = package.name
    return owners


def extras(tree: InstalledTree) -> Iterator[FileDifference]:
    """Yield what is in the tree but not in the index; of a new directory only itself."""
    known = {entry.path for entry in tree.index.files}
    found = list(unknown_paths(str(tree.root), "", known))
    # It goes through the whole index, for what most trees do not have.
    owners = package_of_directory(tree.index) if found else {}
    for path in found:
        package = owners.get(path.rpartition("/")[0], "")
        yield FileDifference(path=path, kind="extra", package=package)


def package_of_directory(index: Index) -> dict[str, str]:
    """Return the package whose files a directory holds, for those that hold one package's only."""
    owners: dict[str, set[str]] = {}
    for entry, package in zip(index.files, package_of_file(index), strict=True):
        if entry.type != "directory":
            owners.setdefault(entry.path.rpartition("/")[0], set()).add(package)
    return {directory: min(found) for directory, found in owners.items() if len(found) == 1}


def unknown_paths(root: str, below: str, known: set[str]) -> Iterator[str]:
    """Yield what is not known below a directory."""
    if not is_directory(f"{root}/{below}".rstrip("/")):
        return
    with os.scandir(f"{root}/{below}") as found:
        # Closed before those below are opened: a tree may be 256 folders deep.
        items = list(found)
    for item in items:
        path = f"{below}{item.name}"
        is_folder = item.is_dir(follow_symlinks=False)
        if path in known:
            if is_folder:
                yield from unknown_paths(root, f"{path}/", known)
        # Python makes the folder as well: what is in it decides.
        elif is_folder and item.name == CACHE:
            yield from unknown_paths(root, f"{path}/", known)
        elif source_of(path) not in known:
            yield path


def source_of(path: str) -> str:
    """Return the module that byte code was made from; empty for what is not byte code."""
    directory, _, name = path.rpartition("/")
    if not name.endswith(".pyc") or not directory.endswith(CACHE):
        return ""
    return f"{directory.removesuffix(CACHE)}{name.split('.')[0]}.py"
