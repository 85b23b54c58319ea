"""What of an upload has arrived at a store: a journal beside the file, for the next attempt."""

from __future__ import annotations

import json
import logging
import re
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import msgspec

from envferry.base.files import exclusive_lock
from envferry.base.journal import LineJournal, read_journal
from envferry.base.json import decode_json
from envferry.errors import TargetOccupied

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

# S3 numbers at most 10,000 parts. The quotes are part of an ETag (RFC 9110, 8.8.3), which goes
# back to the server as it came.
PART_LINE = re.compile(r'([0-9]{1,5}) ([0-9a-f]{32}) ("?[\w-]{1,100}"?)')


class _Upload(msgspec.Struct, frozen=True):
    """The first line of an upload's journal: the upload, and what it will become."""

    target: str
    upload: str


class UploadJournal(msgspec.Struct):
    """What of an upload has arrived: beside the file, so that a killed push is taken up again.

    The first line names the upload, every further one a part, the XXH3-128 of its bytes and its
    ETag. A part counts only if the file still has these bytes.
    """

    path: Path | None
    """None when another process uploads the same file: then nothing is noted."""
    parts: dict[int, tuple[str, str]] = msgspec.field(default_factory=dict)
    journal: LineJournal | None = None

    def resume(self, target: str) -> str | None:
        """Return the id of an unfinished upload to `target`, with the parts that have arrived."""
        found = read_journal(self.path) if self.path else None
        if found is None:
            return None
        try:
            named = decode_json(found.subject, _Upload)
        except msgspec.MsgspecError:
            return None
        # Another bucket, key or number of parts: that upload's parts are cut in another way.
        if named.target != target:
            return None
        # A line that does not match is no error: its part is sent again.
        matches = (PART_LINE.fullmatch(line) for line in found.lines)
        self.parts = {int(match[1]): (match[2], match[3]) for match in matches if match}
        self._open(found.subject)
        return named.upload

    def begin(self, target: str, upload_id: str) -> None:
        """Note a new upload."""
        # `resume` may have read the parts of an upload that is gone: the new one has none of them.
        self.parts = {}
        # On one line, as each note of a journal is; `to_json` writes several.
        self._open(json.dumps({"target": target, "upload": upload_id}))

    def note(self, number: int, digest: str, etag: str) -> None:
        """Note a part that has arrived; from any thread."""
        if self.journal is not None:
            self.journal.note(f"{number} {digest} {etag}")

    def end(self) -> None:
        """Forget the upload: it is complete, or gone."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Write no more; a file that was only locked goes."""
        if self.journal is not None:
            self.journal.close()
        # `exclusive_lock` made it, and no upload came of it.
        elif self.path is not None and self.path.exists() and not self.path.stat().st_size:
            self.path.unlink()

    def _open(self, subject: str) -> None:
        if self.path is not None:
            if self.journal is not None:
                self.journal.close()
            self.journal = LineJournal(self.path, subject)


@contextmanager
def journal_at(path: Path | None) -> Iterator[UploadJournal]:
    """Open the journal of an upload, and hold it; a second process gets one that is blind."""
    if path is None:
        yield UploadJournal(None)
        return
    with ExitStack() as stack:
        journal = UploadJournal(path)
        try:
            stack.enter_context(exclusive_lock(path, str(path)))
        except TargetOccupied:
            # Two pushes of one file: the second one sends without notes, rather than wait or fail.
            journal = UploadJournal(None)
        except PermissionError:
            log.info("%s: not writable, an interrupted push starts again", path.parent)
            journal = UploadJournal(None)
        stack.callback(journal.close)
        yield journal
