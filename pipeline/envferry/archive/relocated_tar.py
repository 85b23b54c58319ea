"""An archive as a plain tar stream for another prefix: for programs that make images of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from xxhash import xxh3_128, xxh3_128_hexdigest

from envferry.archive.contents import Content
from envferry.archive.extraction import RUN_BYTES
from envferry.archive.tar import END_OF_ARCHIVE, has_header, padding, tar_header
from envferry.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envferry.archive.index import FileEntry
    from envferry.archive.members import Piece
    from envferry.archive.prefixes import Relocation
    from envferry.archive.reader import Archive


class RelocatedTar(msgspec.Struct):
    """The tar stream of an archive, with the edits that its prefix calls for."""

    archive: Archive
    relocation: Relocation
    advance: Callable[[int], None]
    edited: dict[str, Content] = msgspec.field(default_factory=dict)
    """What the edited files hold, by path; complete when the stream has ended."""
    _digest: xxh3_128 = msgspec.field(default_factory=xxh3_128)
    _held: list[bytes] = msgspec.field(default_factory=list)
    """The content so far of a file that is edited when it is whole."""

    def __iter__(self) -> Iterator[bytes | memoryview]:
        """Yield the stream; each frame is read, checked and decompressed once.

        Raises IntegrityError for damaged bytes, HostError where the prefix does not fit.
        """
        self.relocation.check(self.archive.index)
        numbers = range(len(self.archive.plans))
        for run in self.archive.cut_runs(numbers, RUN_BYTES):
            for number, raw in zip(run, self.archive.read_run(run), strict=True):
                yield from self._frame(number, raw)
                self.advance(len(raw))

    def _frame(self, number: int, raw: memoryview) -> Iterator[bytes | memoryview]:
        plan = self.archive.plans[number]
        position = 0
        for piece in plan.pieces:
            entry = self.archive.index.files[piece.member]
            content = position + piece.header_size
            end = content + piece.length
            is_padded = raw[end : end + piece.padding] == bytes(piece.padding)
            is_header = has_header(bytes(raw[position:content]), entry, self.archive.index.mtime)
            if not (is_header and is_padded):
                raise self.archive.damaged(number, f"the tar stream contradicts {entry.path!r}")
            self._check(entry, piece, raw[content:end])
            if entry.type == "symlink" or self.relocation.changes(entry):
                yield from self._moved(entry, piece, raw[content:end])
            else:
                yield raw[position : end + piece.padding]
            position = end + piece.padding
        if not plan.pieces:
            if raw != END_OF_ARCHIVE:
                raise self.archive.damaged(number, "the tar stream does not end here")
            yield raw

    def _check(self, entry: FileEntry, piece: Piece, content: memoryview) -> None:
        """Compare a file with its checksum, when its last piece has come."""
        if entry.type != "file":
            return
        # One digest serves all files: their pieces follow each other in the stream.
        if piece.start == 0:
            self._digest.reset()
        self._digest.update(content)
        is_whole = piece.start + piece.length == entry.size
        if is_whole and entry.size and self._digest.hexdigest() != entry.xxh128:
            message = f"{self.archive.name} holds another {entry.path!r} than its index says"
            raise IntegrityError(message, hint="copy or fetch the archive again")

    def _moved(self, entry: FileEntry, piece: Piece, content: memoryview) -> Iterator[bytes]:
        """Yield a link or a file as it is under the new prefix, once all of it is there."""
        mtime = self.archive.index.mtime
        if entry.type == "symlink":
            link = self.relocation.move_link(entry.link)
            # A new header also for a link that stays as it is: it has the same bytes.
            yield tar_header(msgspec.structs.replace(entry, link=link), mtime)
            return
        # The header comes first and has the size, which is known when all of the file is edited.
        self._held.append(bytes(content))
        if piece.start + piece.length < entry.size:
            return
        whole = self.relocation.edit(b"".join(self._held), entry)
        self._held.clear()
        self.edited[entry.path] = Content(len(whole), xxh3_128_hexdigest(whole))
        yield tar_header(msgspec.structs.replace(entry, size=len(whole)), mtime)
        yield whole
        yield bytes(padding(len(whole)))
