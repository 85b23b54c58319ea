"""What an install has done so far, so that the next one can resume it.

One line for each thing that the files alone do not tell (docs/format.md, the host). What the lines
say is checked against the files before it is believed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from envferry.archive.contents import Content
from envferry.base.journal import LineJournal, read_journal

if TYPE_CHECKING:
    from pathlib import Path

# The digits are bounded: int() raises ValueError for more than 4,300 of them.
FRAME_LINE = re.compile(r"frame ([0-9]{1,9}) ([0-9a-f]{32})")
EDITED_LINE = re.compile(r"edited ([0-9]{1,9}) ([0-9]{1,18}) ([0-9a-f]{32})")


class JournalContent(msgspec.Struct, frozen=True):
    """What a journal says."""

    frames: dict[int, str] = msgspec.field(default_factory=dict)
    """The XXH3-128 of the content in each frame that is a part of a large file."""
    edited: dict[int, Content] = msgspec.field(default_factory=dict)
    """What files hold whose prefix was edited, by number."""


class InstallJournal(LineJournal):
    """The journal of one install; lines come from many threads."""

    def note_frame(self, number: int, xxh128: str) -> None:
        """Note that a frame's part of a large file is written."""
        self.note(f"frame {number} {xxh128}")

    def note_edited(self, number: int, content: Content) -> None:
        """Note what a file holds after its prefix was edited."""
        self.note(f"edited {number} {content.size} {content.xxh128}")


def read_noted(path: Path, subject: str) -> JournalContent | None:
    """Read a journal; None without one about `subject`."""
    found = read_journal(path)
    # Of another archive or another prefix: the numbers in its lines mean other files.
    if found is None or found.subject != subject:
        return None
    noted = JournalContent()
    for line in found.lines:
        # A line in neither form is skipped: what it noted is done again.
        if frame := FRAME_LINE.fullmatch(line):
            noted.frames[int(frame[1])] = frame[2]
        elif edited := EDITED_LINE.fullmatch(line):
            noted.edited[int(edited[1])] = Content(int(edited[2]), edited[3])
    return noted
