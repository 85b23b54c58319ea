"""A file that says what was done so far, to resume after a crash: a line for each thing.

The first line says what the file is about. A last line without its end is what a crash tore: it
does not count, and goes before another line is written. Nothing else is ever changed in place.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

import msgspec

if TYPE_CHECKING:
    from pathlib import Path


J = TypeVar("J", bound="LineJournal")


class JournalText(msgspec.Struct, frozen=True):
    """What a journal says: hints, to be checked before they are believed."""

    subject: str
    """The first line: what all others are about."""
    lines: tuple[str, ...]
    size: int
    """The bytes of all whole lines."""


class LineJournal:
    """A journal that is being written; lines come from many threads."""

    def __init__(self, path: Path, subject: str) -> None:
        """Go on with the journal at `path` if it is about `subject`, else begin it."""
        found = read_journal(path)
        is_continued = found is not None and found.subject == subject
        self.lines = found.lines if found and is_continued else ()
        """What an earlier run noted."""
        # O_APPEND: the kernel puts each line at the end, whichever thread writes it.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o644)
        # A torn last line would swallow the next one. Another subject's lines go altogether.
        os.ftruncate(self._descriptor, found.size if found and is_continued else 0)
        if not is_continued:
            self.note(subject)

    def note(self, line: str) -> None:
        """Append a line; one write, so that lines of other threads are not mixed with it."""
        # No fsync: what a power loss takes is done again, and all lines are checked when read.
        os.write(self._descriptor, f"{line}\n".encode())

    def close(self) -> None:
        """Write no more: a thread that is left behind gets an OSError, not another's file."""
        # -1 before the close: the kernel gives the number to the next file that is opened.
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)

    def __enter__(self: J) -> J:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_journal(path: Path) -> JournalText | None:
    """Read the whole lines of a journal; None without a file or a single whole line."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    size = data.rfind(b"\n") + 1
    if not size:
        return None
    subject, *lines = data[: size - 1].decode(errors="replace").split("\n")
    return JournalText(subject, tuple(lines), size)
