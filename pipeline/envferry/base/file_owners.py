"""Who may change a file, or what a path leads to: what decides which programs root runs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

OTHERS_WRITE, GROUP_WRITES = stat.S_IWOTH, stat.S_IWGRP
MOST_LINKS = 40
"""Linux follows no more in one path."""


def who_else_may_change(path: Path, status: os.stat_result) -> str:
    """Say who besides root and this user can change a file; empty if no one can.

    Root uses only what no other user can change.
    """
    user = os.geteuid()
    reason = ""
    if not stat.S_ISREG(status.st_mode):
        reason = "is not a file"
    elif status.st_mode & OTHERS_WRITE:
        reason = "is writable by every user"
    elif status.st_uid not in (0, user):
        reason = f"belongs to the user {status.st_uid}, not to root or the user who runs envferry"
    elif user == 0 and status.st_mode & GROUP_WRITES and status.st_gid != 0:
        reason = f"can be written by the group {status.st_gid}, which root does not accept"
    return reason or who_may_replace(path)


def may_everybody_change(path: Path) -> str:
    """Say how every user can change a file; empty if they cannot.

    Less strict than `who_else_may_change`: in a container, root reads files that belong to the user
    who mounted them.
    """
    if path.stat().st_mode & OTHERS_WRITE:
        return "is writable by every user"
    for folder in deciding_folders(path):
        if is_open_to_everybody(folder.stat()):
            return f"lies in {folder}, where every user can replace it"
    return ""


def deciding_folders(path: Path) -> tuple[Path, ...]:
    """Return the folders that a path leads through, the nearest first: also those of its links.

    Whoever may change one of them decides which file the path means.
    """
    found: dict[Path, None] = {}
    here, links = Path("/"), 0
    # Not resolve(): it hides the folders in which links lie.
    left = [*reversed(path.absolute().parts[1:])]
    while left:
        part = left.pop()
        if part == "..":
            # The parent is the right one: links on the way to `here` were followed already.
            here = here.parent
            continue
        found[here] = None
        place = here / part
        if place.is_symlink() and links < MOST_LINKS:
            links += 1
            target = place.readlink()
            here = Path("/") if target.is_absolute() else here
            # The target is walked, too: whoever can change a folder on that way decides as well.
            left += [one for one in reversed(target.parts) if one != "/"]
        else:
            here = place
    return tuple(reversed(found))


def is_open_to_everybody(status: os.stat_result) -> bool:
    """Whether every user can replace the files in a folder."""
    # With the sticky bit, only the owner of a file, or of the folder, can replace it (unlink(2)).
    return bool(status.st_mode & OTHERS_WRITE) and not status.st_mode & stat.S_ISVTX


def who_may_replace(path: Path) -> str:
    """Say who may put something else in the place of a file, by one of the folders above it."""
    for folder in deciding_folders(path):
        status = folder.stat()
        if is_open_to_everybody(status):
            return f"lies in {folder}, where every user can replace it"
        if os.geteuid() == 0 and status.st_uid != 0:
            return f"lies in {folder}, which belongs to the user {status.st_uid}, not to root"
    return ""
