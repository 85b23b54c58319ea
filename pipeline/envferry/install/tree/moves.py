"""Exchange and move directories, also on file systems that rename files only."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING

from envferry import process
from envferry.base.files import remove_tree
from envferry.errors import HostError, PipelineError

if TYPE_CHECKING:
    from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
# fcntl.h and linux/fs.h.
AT_FDCWD = -100
RENAME_EXCHANGE = 2


def exchange(first: Path, second: Path) -> bool:
    """Let two directories change names in one step; return False where that cannot be."""
    try:
        rename = LIBC.renameat2
    except AttributeError:  # glibc before 2.28
        return False
    names = (AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second))
    # Whatever the reason, such as EINVAL where the file system cannot: the caller has another way.
    return bool(rename(*names, RENAME_EXCHANGE) == 0)


def move_directory(source: Path, target: Path) -> None:
    """Rename a directory; copy it, then remove it, where it cannot be renamed.

    Overlay file systems answer EXDEV for a directory of a lower layer, such as a container's image.
    """
    if renamed(source, target):
        return
    # With owners, links, access lists and times: that is what `cp -a` is for.
    try:
        process.run(["cp", "-a", "--", source, target])
    except PipelineError as error:
        remove_tree(target)
        message = f"cannot move {source} to {target}: {error.message}"
        raise HostError(message, hint="free some space there, or move it yourself") from error
    except BaseException:
        # An interrupted copy must not be taken for the directory itself.
        remove_tree(target)
        raise
    remove_tree(source)


def discard_directory(path: Path, trash: Path) -> None:
    """Remove a directory, out of its place in one step where that can be."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    # Left by a killed command: a directory cannot be renamed over one that holds something.
    if trash.exists():
        remove_tree(trash)
    remove_tree(trash if renamed(path, trash) else path)


def renamed(source: Path, target: Path) -> bool:
    """Rename a directory; return False where only copying it helps."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return False
        raise
    return True
