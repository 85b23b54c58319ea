"""Which files are those of an earlier pack, told without reading them (ADR 8).

A file with the same device, inode, size, mtime and ctime was not written to. A build that starts
from the one before hard-links its files, which gives them another ctime: it notes which one they
had. Where that cannot be relied on, no file has an identity, and all are read.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import msgspec

from envferry.archive.members import FileIdentity
from envferry.base.file_stamps import TREE_NOTE, FileStamp, StampedTree
from envferry.base.file_times import boot_id, has_own_times, next_tick
from envferry.base.files import read_own
from envferry.base.json import decode_json

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

HIDDEN = ".envferry-"
NO_TREE = StampedTree(device=0, files={})


class FileIdentities(msgspec.Struct, frozen=True, kw_only=True):
    """What tells the files of one tree from all others, in this boot of the kernel."""

    device: int = 0
    tick: int = 0
    """A time of the file system's clock before the tree was listed; 0: no file has an identity."""
    built: StampedTree = NO_TREE
    """How the build left the tree."""

    @classmethod
    def in_tree(cls, tree: Path) -> FileIdentities:
        """Prepare for the files of a tree that is to be listed from now on."""
        if not boot_id() or not has_own_times(tree):
            return cls()
        try:
            device, beside = tree.stat().st_dev, tree.parent.stat().st_dev
            # Whoever writes from now on gives a file a ctime that is not below the tick.
            tick = next_tick(tree.parent, HIDDEN) if device == beside else 0
        except OSError as error:
            log.info("every file is read: %s cannot be written to (%s)", tree.parent, error)
            return cls()
        return cls(device=device, tick=tick, built=_left_by_build(tree, device))

    def of(self, path: str, status: os.stat_result) -> FileIdentity | None:
        """Return what tells a file with this content from all others; None where nothing does."""
        # Other users can put files back in ways of their own.
        if status.st_uid not in (0, os.geteuid()) or status.st_dev != self.device:
            return None
        if status.st_ctime_ns >= self.tick:
            return None
        stamp = FileStamp.of(status)
        first = self.built.since.get(path) if self.built.files.get(path) == stamp else None
        return FileIdentity(
            device=self.device,
            inode=stamp.inode,
            size=stamp.size,
            mtime_ns=stamp.mtime_ns,
            ctime_ns=stamp.ctime_ns,
            first_ctime_ns=stamp.ctime_ns if first is None else first,
        )


def _left_by_build(tree: Path, device: int) -> StampedTree:
    """Return how the build left its tree; nothing of a tree that is not one of a build."""
    path = tree.parent.parent / TREE_NOTE
    try:
        # A note that another user wrote could bring any bytes into the next archive.
        note = decode_json(read_own(path), StampedTree)
    except FileNotFoundError:
        return NO_TREE
    except (OSError, msgspec.MsgspecError) as error:
        log.info("%s cannot be read: %s", path, error)
        return NO_TREE
    return note if note.device == device else NO_TREE
