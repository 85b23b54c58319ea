"""Folders that the host makes in a tree that packages' code has written to: never behind a link."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class PlainFolders:
    """Makes folders of a tree in which nothing runs any more."""

    def __init__(self, tree: Path) -> None:
        """Prepare for a tree that is there."""
        self.known = {str(tree)}

    def make(self, folder: str) -> None:
        """Make a folder of the tree, and those above it.

        Raises NotADirectoryError where one of them is a link or a file: it could lead anywhere.
        """
        if folder in self.known:
            return
        self.make(folder.rpartition("/")[0])
        try:
            os.mkdir(folder, 0o755)  # noqa: PTH102
            os.chmod(folder, 0o755)  # noqa: PTH101
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(folder).st_mode):
                message = f"{folder} is not a folder of its own"
                raise NotADirectoryError(message) from None
        self.known.add(folder)
