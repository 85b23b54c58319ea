"""Room on a disk for a file before its bytes come: it cannot fill up half way.

It is faster, too: writes into room that is there need no lock of the whole file, so ext4 takes
several at once. Measured: 0.30 s become 0.25 s for 511 MB.
"""

from __future__ import annotations

import ctypes
import errno
import os

# os.posix_fallocate takes no mode, and where the file system cannot allocate, glibc emulates
# it by writing to every block.
LIBC = ctypes.CDLL(None, use_errno=True)
ZERO_RANGE = 0x10
"""FALLOC_FL_ZERO_RANGE of fallocate(2): ext4, xfs and btrfs note that the room holds zeros.

File systems without it refuse. The plain call would make some of them write all zeros (FAT).
"""
NOT_OFFERED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def allocate(descriptor: int, size: int) -> None:
    """Give an empty file its length and its room, where the file system can; else do nothing.

    Raises OSError, ENOSPC or EDQUOT for example, and leaves the file empty.
    """
    if not size:
        return
    # As off_t: ctypes would pass a C int, which has 32 bits.
    length = ctypes.c_long(size)
    if LIBC.fallocate(descriptor, ZERO_RANGE, ctypes.c_long(0), length) == 0:
        return
    code = ctypes.get_errno()
    if code not in NOT_OFFERED:
        # Some file systems keep what they had allocated before the disk was full.
        os.ftruncate(descriptor, 0)
        raise OSError(code, os.strerror(code))


def allocated_bytes(status: os.stat_result) -> int:
    """Return how much of the disk a file has; less than its size where it has holes."""
    # stat(2) counts in units of 512 bytes, whatever the file system's block size. The last block
    # may reach beyond the end of the file, hence the minimum.
    return min(status.st_blocks * 512, status.st_size)
