"""What an install has done so far, for the next one, should this one be cut off.

One line for each thing that the files alone do not tell; a torn last line counts as not written.
What the lines say is checked against the files before it is believed.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from envferry.archive.contents import Content

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

FRAME_LINE = re.compile(rb"frame (\d{1,9}) ([0-9a-f]{32})")
EDITED_LINE = re.compile(rb"edited (\d{1,9}) (\d{1,18}) ([0-9a-f]{32})")


@dataclass(frozen=True, slots=True)
class Noted:
    """What a journal says."""

    frames: dict[int, str] = field(default_factory=dict)
    """The XXH3-128 of the content in each frame that is a part of a large file."""
    edited: dict[int, Content] = field(default_factory=dict)
    """What files hold whose prefix was edited, by number."""


class Journal:
    """A file that grows by a line for each thing done; lines come from many threads."""

    def __init__(self, path: Path, subject: str) -> None:
        """Continue the journal at `path` when it is about `subject`, else start it."""
        self.path = path
        self.noted = read_journal(path, subject)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        is_new = self.noted is None
        self.descriptor = os.open(path, flags | (os.O_TRUNC if is_new else 0), 0o644)
        # The newline ends a torn line.
        os.write(self.descriptor, f"{subject}\n".encode() if is_new else b"\n")

    def note_frame(self, number: int, xxh128: str) -> None:
        """Note that a frame's part of a large file is written."""
        os.write(self.descriptor, b"frame %d %b\n" % (number, xxh128.encode()))

    def note_edited(self, number: int, content: Content) -> None:
        """Note what a file holds after its prefix was edited."""
        line = b"edited %d %d %b\n" % (number, content.size, content.xxh128.encode())
        os.write(self.descriptor, line)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self.descriptor)


def read_journal(path: Path, subject: str) -> Noted | None:
    """Read a journal; None when there is none about `subject`."""
    if not path.is_file():
        return None
    first, *lines = path.read_bytes().split(b"\n")
    if first != subject.encode():
        return None
    noted = Noted()
    for line in lines:
        if frame := FRAME_LINE.fullmatch(line):
            noted.frames[int(frame[1])] = frame[2].decode()
        elif edited := EDITED_LINE.fullmatch(line):
            noted.edited[int(edited[1])] = Content(int(edited[2]), edited[3].decode())
    return noted
