"""Which files of a tree changed since they were recorded: by inode, size and times."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class FileStamp(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A file or link as it was: any change to it changes one of these."""

    inode: int
    size: int
    """In bytes."""
    mtime_ns: int
    """When its content changed last, in nanoseconds since 1970."""
    ctime_ns: int
    """When anything of it changed last, its mode and number of links included."""

    @classmethod
    def of(cls, status: os.stat_result) -> FileStamp:
        """Take it from what the system says of a file."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def is_linked_from(self, before: FileStamp) -> bool:
        """Whether this is the file that it was before, apart from what a hard link changes."""
        mine, theirs = (
            (self.inode, self.size, self.mtime_ns),
            (before.inode, before.size, before.mtime_ns),
        )
        return mine == theirs


class StampedTree(msgspec.Struct, frozen=True, kw_only=True):
    """How the files of a tree were when it was finished: the part of a build's note for `pack`."""

    device: int
    files: dict[str, FileStamp]
    """By path. Empty where another build cannot start from the tree."""
    since: dict[str, int] = {}
    """The first ctime that was noted of each file that was hard-linked from the build before: the
    link gave it another one, and nothing else happened to it."""


TREE_NOTE = "tree.json"
"""Beside the folder that holds a build's tree."""


def scan_folders(tree: Path) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """Yield each folder of a tree with what is in it; below links to folders nothing is looked for.

    A folder is called by its path in the tree and ends in `/`; the tree itself is empty.
    """
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        with os.scandir(f"{tree}/{folder}") as found:
            entries = list(found)
        waiting += [
            f"{folder}{entry.name}/" for entry in entries if entry.is_dir(follow_symlinks=False)
        ]
        yield folder, entries


def stamp_files(tree: Path) -> Iterator[tuple[str, FileStamp]]:
    """Yield all files and links of a tree, links to folders included, by their path in it."""
    for folder, entries in scan_folders(tree):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                yield f"{folder}{entry.name}", FileStamp.of(entry.stat(follow_symlinks=False))
