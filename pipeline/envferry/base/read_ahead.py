"""Have the kernel read many small files from the disk at once (posix_fadvise(2), WILLNEED)."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from envferry.base.direct_io import is_cached

if TYPE_CHECKING:
    from collections.abc import Sequence

SAMPLES = 64
OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def read_ahead(paths: Sequence[str]) -> bool:
    """Begin to read files into the page cache, unless it has most of them; return whether it began.

    Read one after the other, as they are needed, each would be waited for: a disk is asked for
    one thing at a time then, where it could do dozens. What cannot be opened is skipped.
    """
    step = max(len(paths) // SAMPLES, 1)
    missing = [path for path in paths[::step] if not has_start(path)]
    # Opening those that are there already would cost as much as to read them.
    if len(missing) * 2 < len(paths[::step]):
        return False
    for path in paths:
        try:
            descriptor = os.open(path, OPEN_FILE)
        except OSError:
            continue
        try:
            with suppress(OSError):  # a pipe, or a file system that does not know it
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)
    return bool(paths)


def has_start(path: str) -> bool:
    """Whether the page cache has the start of a file; also of one that cannot be read."""
    try:
        descriptor = os.open(path, OPEN_FILE)
    except OSError:
        return True
    try:
        return is_cached(descriptor, 0)
    finally:
        os.close(descriptor)
