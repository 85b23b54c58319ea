"""Ask the kernel whether any process has a file of a tree open.

It grants a write lease (fcntl(2), F_SETLEASE) to a file's owner only while no other process has it
open, runs it or has it mapped: in any container, and of any user.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from envferry.archive.contents import READ_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator

UNRELIABLE = ("overlay", "nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "lustre", "gpfs", "beegfs")
"""File systems that grant leases without knowing all who have a file open."""


def why_not_free(tree: Path) -> str:
    """Say why a process may have a file of a tree open; empty when none has."""
    kind = file_system_of(tree)
    if kind in UNRELIABLE or kind.startswith("fuse"):
        return f"its file system ({kind}) does not report which files are open"
    with ignoring_sigio():
        for parent, _, names in os.walk(tree, onerror=reraise):
            for name in names:
                reason = file_reason(f"{parent}/{name}")
                if reason:
                    return reason
    return ""


def file_reason(path: str) -> str:
    """Say why a process may have a file open; empty when none has, or for what is not a file."""
    try:
        descriptor = os.open(path, READ_FILE)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOENT, errno.ENXIO):
            return ""  # a link, gone, or a socket
        return f"{path} cannot be opened ({error.strerror})"
    try:
        # Given back at once: closing would do that, too.
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return f"{path} is open in some process"
        return f"the kernel does not report whether {path} is open ({error.strerror})"
    finally:
        os.close(descriptor)
    return ""


@contextmanager
def ignoring_sigio() -> Iterator[None]:
    """Ignore SIGIO: a process that opens a file at the wrong moment has it sent to us."""
    # Only the main thread may set a handler (signal.signal).
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGIO, before)


def reraise(error: OSError) -> None:
    """Raise the error of a directory that cannot be read: os.walk would skip it."""
    raise error


def file_system_of(path: Path) -> str:
    """Return the kind of file system that a path is on; empty where /proc does not say."""
    device = path.stat().st_dev
    numbers = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        # The number of optional fields varies: a lone `-` ends them (proc(5), mountinfo).
        mount, _, kind = line.partition(" - ")
        if mount.split(" ")[2] == numbers:
            return kind.split(" ")[0]
    return ""
