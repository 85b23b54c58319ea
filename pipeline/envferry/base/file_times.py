"""Whether the times that a file system gives to files say that nothing was written to them.

The kernel sets a file's ctime at each write, change of mode, link or rename, and no program can set
it to what it was.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
import time
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
FILE_SYSTEMS = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # XFS
        0x9123683E,  # btrfs
        0xF2F52010,  # F2FS
        0xCA451A4E,  # bcachefs
        0x2FC12FC1,  # ZFS
        0x01021994,  # tmpfs
        0x794C7630,  # overlay, which has the times of the file system below it
    }
)
"""`f_type` of statfs(2): those of which this kernel keeps inode numbers and ctimes itself."""
CLOCK_WAIT_SECONDS = 2.5
"""The coarsest clocks of file systems tick every two seconds."""
LIBC = ctypes.CDLL(None, use_errno=True)


def boot_id() -> str:
    """Return the id of this boot; empty where the kernel does not say."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def has_own_times(directory: Path) -> bool:
    """Whether inode numbers and ctimes of a file system can be relied on."""
    answer = ctypes.create_string_buffer(512)  # struct statfs begins with f_type, a long
    if LIBC.statfs(os.fsencode(directory), answer) != 0:
        return False
    # Masked, as a long of 32 bits is negative for numbers such as that of btrfs.
    return ctypes.c_long.from_buffer(answer).value & 0xFFFFFFFF in FILE_SYSTEMS


def clock_of(directory: Path, hidden: str) -> int:
    """Return the time that a file gets now, in nanoseconds, by the file system's own clock."""
    # Where files without a name cannot be made, a kill leaves one of this name.
    with tempfile.TemporaryFile(dir=directory, prefix=hidden) as stream:
        return os.fstat(stream.fileno()).st_ctime_ns


def next_tick(directory: Path, hidden: str) -> int:
    """Return a time of the file system's clock that no file has yet; 0 if it stands still.

    A file is made in `directory` for a moment, its name begins with `hidden` if it needs one.
    Clocks tick every few milliseconds: a file that is written to in the tick in which it was looked
    at would keep its ctime.
    """
    before, end = clock_of(directory, hidden), time.monotonic() + CLOCK_WAIT_SECONDS
    while time.monotonic() < end:
        now = clock_of(directory, hidden)
        if now > before:
            return now
        time.sleep(0.001)
    return 0
