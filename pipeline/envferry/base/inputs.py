"""Files that people name: read up to a limit, and never waited for where nothing will come."""

from __future__ import annotations

import errno
import io
import os
import stat
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MOST_KEY_BYTES = 1 << 20


def read_input(path: Path, most: int) -> bytes:
    """Read a file, or a pipe as `<(command)` of a shell is one.

    Raises OSError as `open_input` does, and for more than `most` bytes; its `strerror` says why.
    """
    with open_input(path) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        message = f"it has more than {most:,} bytes"
        raise OSError(errno.EFBIG, message, str(path))
    return data


def open_input(path: Path) -> IO[bytes]:
    """Open a file, or a pipe that a process writes to.

    Raises OSError for a pipe that no process writes to: reading it would wait without end.
    """
    # Non-blocking: a pipe without a writer would block the open as well as the read.
    stream = open(path, "rb", buffering=0, opener=without_waiting)  # noqa: SIM115  (returned)
    if not stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode):
        os.set_blocking(stream.fileno(), True)
        return io.BufferedReader(stream)
    start = stream.read(io.DEFAULT_BUFFER_SIZE)
    # None: a process has the pipe open and has written nothing yet. Empty: none has it open.
    if start == b"":
        stream.close()
        raise OSError(errno.EPIPE, "it is a pipe that no process writes to", str(path))
    os.set_blocking(stream.fileno(), True)
    return io.BufferedReader(_Pipe(start or b"", stream))


def without_waiting(path: str, flags: int) -> int:
    """Open a descriptor, for `open`; without waiting for a writer of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


class _Pipe(io.RawIOBase):
    """A pipe of which the first bytes were read already."""

    def __init__(self, start: bytes, rest: io.FileIO) -> None:
        self.start, self.rest = start, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        part, self.start = self.start[: len(buffer)], self.start[len(buffer) :]
        if not part:
            return self.rest.readinto(buffer) or 0
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self.rest.close()
        super().close()
