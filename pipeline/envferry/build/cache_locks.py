"""Locks of the download cache: of one entry, and of the whole."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from envferry.errors import TargetOccupied

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


ENTRY_LOCK = ".lock"
"""Locked while an entry is filled; its time says when the entry was last asked for."""


@contextmanager
def entry_lock(directory: Path, *, using: bool = True) -> Iterator[None]:
    """Hold the lock of one cache entry, waiting while another thread or process fills it.

    Its time says when the entry was last used: who only looks at it changes none.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ENTRY_LOCK).open("a") as stream:
        # flock and not lockf: it belongs to the open file, so threads of one process exclude each
        # other, too. The kernel drops it when its holder is killed.
        fcntl.flock(stream, fcntl.LOCK_EX)
        if using:
            os.utime(stream.fileno())
        yield


@contextmanager
def cache_lock(root: Path, *, shared: bool) -> Iterator[None]:
    """Hold the cache: shared by all who use its files, alone to remove some.

    Raises TargetOccupied when it cannot be had alone; who shares it waits for a removal to end.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / ENTRY_LOCK).open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"a build or a lock is using the cache {root}"
            raise TargetOccupied(message, hint="wait for it to end, then try again") from error
        yield
