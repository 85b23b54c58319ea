"""Any bytes of an archive, proven by its index: for who needs some of them and never reads all."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from blake3 import blake3

from envferry.archive.reader import damaged_frame
from envferry.archive.seek_table import encode_seek_table

if TYPE_CHECKING:
    from envferry.archive.reader import Archive


class ProvenBytes:
    """The bytes that an archive must have by its index, read from its file; for many threads.

    Of the archive, it keeps the frames and what follows them: lists of files take memory.
    """

    def __init__(self, archive: Archive) -> None:
        self.name = archive.name
        self.bytes = archive.bytes
        self.frames = archive.index.frames
        self.offsets = archive.offsets
        sizes = [(frame.size, frame.tar_size) for frame in self.frames]
        table = encode_seek_table([*sizes, (len(archive.index_frame), 0)])
        self.end = archive.index_frame + table
        """The index as it was read, and what follows from it: neither is read again."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; raise IntegrityError when a checksum is wrong.

        A frame of which only a part is wanted is read whole, for its checksum is of all of it.
        """
        end, pieces = offset + length, []
        first = bisect_right(self.offsets, offset) - 1
        for number, frame in enumerate(self.frames[first:], first):
            start = self.offsets[number]
            if start >= end:
                break
            compressed = self.bytes.read_at(start, frame.size)
            if blake3(compressed).hexdigest() != frame.blake3:
                raise damaged_frame(self.name, self.offsets, number, "its checksum is wrong")
            pieces.append(compressed[max(offset - start, 0) : end - start])
        if end > (start := self.offsets[-1]):
            pieces.append(self.end[max(offset - start, 0) : end - start])
        return b"".join(pieces)
