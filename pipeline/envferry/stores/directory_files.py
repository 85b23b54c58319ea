"""What a directory says of the files in it, as a store lists them."""

from __future__ import annotations

import errno
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO

from envferry.base.files import COPY_BYTES
from envferry.stores.port import Listed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def read_fully(descriptor: int, offset: int, length: int) -> bytes:
    """Read until `length` bytes are there or the file ends; one system call reads 2 GiB at most."""
    pieces: list[bytes] = []
    while length > 0 and (piece := os.pread(descriptor, length, offset)):
        pieces.append(piece)
        offset += len(piece)
        length -= len(piece)
    # One call answers nearly every read; a join would copy the whole answer.
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def copy_stream(source: BinaryIO, target: IO[bytes], advance: Callable[[int], None]) -> None:
    """Copy to the end, and say after each piece how many bytes it had."""
    while chunk := source.read(COPY_BYTES):
        target.write(chunk)
        advance(len(chunk))


def list_folder(top: Path, prefix: str) -> Iterator[Listed]:
    """Yield files and folders of one directory; a directory that is not there is empty."""
    try:
        entries = os.scandir(top)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            # Temporary files, journals and the lock: `check_key` allows no such names.
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield Listed.folder(f"{prefix}{entry.name}/")
            elif found := status_of(Path(entry.path)):
                yield listed(prefix + entry.name, found)


def listed(key: str, found: os.stat_result) -> Listed:
    """Return a file as a listing has it."""
    return Listed(key=key, size=found.st_size, modified=modified_time(found), stamp=stamp_of(found))


def status_of(path: Path) -> os.stat_result | None:
    """Return a file's status, or None when it was removed since it was listed."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def modified_time(status: os.stat_result) -> datetime:
    """Return when a file was last written, in UTC."""
    return datetime.fromtimestamp(status.st_mtime, timezone.utc)


def stamp_of(status: os.stat_result) -> str:
    """Return what differs when a file was replaced: each replacement is a file of its own."""
    # The time alone would not do: file systems tick every few milliseconds, and a value that is
    # replaced within one tick keeps it. The new file is made beside the old: its inode differs.
    return f"{status.st_mtime_ns}-{status.st_size}-{status.st_ino}"


def raise_unless_missing(error: OSError) -> None:
    """Raise what is in the way of a listing; a directory that is gone holds nothing."""
    if not isinstance(error, FileNotFoundError):
        raise error


def remove_if_empty(path: Path) -> bool:
    """Remove an empty directory; say whether it is gone."""
    try:
        path.rmdir()
    except FileNotFoundError:
        # Another process was faster: its parent may be empty by now.
        return True
    except OSError as error:
        # POSIX allows either.
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True
