"""All that is in a tree, and what of it cannot be read."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Literal, NamedTuple

from envferry.archive.validation import path_fault, shortened
from envferry.pack.file_identity import FileIdentities

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from envferry.archive.members import FileIdentity

NOT_CARRIED = frozenset(
    {
        *("pkgs", "envs", "conda-bld", ".conda_lock", "users", "conda-recipes", ".index"),
        *(".unionfs", ".nonadmin", "python.app", "Launcher.app", "__clobbers__"),
    }
)
"""What conda and conda-pack keep beside an environment's files, in its own folder; rattler's last
one holds the files that lost against another package's."""
LEFTOVERS = ("~", ".DS_STORE")


class TreeEntry(NamedTuple):
    """One file, folder or link."""

    path: str
    """Relative to the tree, by way of no link."""
    kind: Literal["file", "directory", "symlink"]
    size: int = 0
    executable: bool = False
    link: str = ""
    is_empty: bool = False
    identity: FileIdentity | None = None
    """Of a file; None where only its content tells it from others."""


class TreeWalk:
    """Yields what is below a folder, whatever its depth; what is unfit goes to `faults`."""

    def __init__(self, tree: Path, owned: Iterable[str] = ()) -> None:
        """Walk `tree`, where packages have the files `owned`."""
        self.root = str(tree)
        self.owned = {path.partition("/")[0] for path in owned}
        # Before the first look: after it, a file may be written to unseen.
        self.identities = FileIdentities.in_tree(tree)
        self.user = os.geteuid()
        self.faults: list[str] = []
        """Why something that was found cannot be carried, in words that name it."""

    def __iter__(self) -> Iterator[TreeEntry]:
        """Walk from the root down, without recursion."""
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            items = self.scan(folder)
            if folder:
                yield TreeEntry(folder, "directory", is_empty=not items)
            for item in items:
                path = f"{folder}/{item.name}" if folder else item.name
                # The rule of `install`, applied where the path can still be changed.
                if fault := path_fault(path):
                    self.faults.append(fault)
                elif item.is_dir(follow_symlinks=False):
                    waiting.append(path)
                else:
                    yield from self.found(path, item)

    def scan(self, folder: str) -> list[os.DirEntry[str]]:
        """Return what is in a folder, in the order of the names."""
        try:
            with os.scandir(f"{self.root}/{folder}") as entries:
                items = sorted(entries, key=lambda item: item.name)
        except OSError as error:
            self.faults.append(f"the folder {shortened(folder)} cannot be read: {error.strerror}")
            return []
        return items if folder else [item for item in items if self.is_carried(item.name)]

    def found(self, path: str, item: os.DirEntry[str]) -> Iterator[TreeEntry]:
        """Yield what is not a folder."""
        try:
            status = item.stat(follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                yield TreeEntry(path, "symlink", link=os.readlink(item.path))  # noqa: PTH115
            elif not stat.S_ISREG(status.st_mode):
                self.faults.append(f"{shortened(path)} is a socket, pipe or device")
            elif not self.is_readable(item, status):
                self.faults.append(f"{shortened(path)} cannot be read: Permission denied")
            else:
                executable = bool(status.st_mode & 0o111)
                identity = self.identities.of(path, status)
                yield TreeEntry(path, "file", status.st_size, executable, identity=identity)
        except OSError as error:
            self.faults.append(f"{shortened(path)} cannot be read: {error.strerror}")

    def is_readable(self, item: os.DirEntry[str], status: os.stat_result) -> bool:
        """Whether this user can read a file."""
        # Nearly all are this user's, whose mode has the answer: 60,000 calls are 0.2 s.
        if status.st_uid == self.user and status.st_mode & stat.S_IRUSR:
            return True
        # Reading goes by the effective user, access(2) by the real one.
        return os.access(item.path, os.R_OK, effective_ids=True)

    def is_carried(self, name: str) -> bool:
        """Whether something in the environment's own folder belongs to it."""
        is_other = name in NOT_CARRIED or name.endswith(LEFTOVERS)
        # A package may have a folder of such a name: then it is part of the environment.
        return name in self.owned or not is_other
