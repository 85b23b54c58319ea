"""An archive's tar stream with all paths below the prefix: the layer that adds it to a system."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from envferry.archive.compression import new_compressor
from envferry.archive.index import FileEntry
from envferry.archive.tar import tar_header

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.archive.reader import Archive


def root_frames(archive: Archive) -> Iterator[bytes]:
    """Yield the frame with the directories above the prefix, then one for each frame.

    They follow from the archive alone.
    """
    yield _head(archive)
    for number in range(len(archive.plans)):
        yield root_frame(archive, number)


def root_frame(archive: Archive, number: int) -> bytes:
    """Return one frame with its members' paths below the prefix; for any thread.

    One that holds only a part of a file stays as it is, and so does the end of the archive.
    """
    plan, index = archive.plans[number], archive.index
    start = archive.offsets[number]
    compressed = archive.bytes.read_at(start, index.frames[number].size)
    # Decoded even where the compressed bytes are returned unchanged: that is what checks them.
    raw = archive.decode_frame(number, compressed)
    if not any(piece.header_size for piece in plan.pieces):
        return compressed
    parts: list[bytes | memoryview] = []
    view, position = memoryview(raw), 0
    for piece in plan.pieces:
        if piece.header_size:
            parts.append(tar_header(_rooted(index.files[piece.member], index.prefix), index.mtime))
        parts.append(view[position + piece.header_size : position + piece.size])
        position += piece.size
    # A compressor for each call: zstandard's objects must not be used by two threads at once.
    return new_compressor().compress(b"".join(parts))


def _head(archive: Archive) -> bytes:
    """Return the frame with the prefix itself and the directories above it."""
    parts = archive.index.prefix.strip("/").split("/")
    paths = ("/".join(parts[:count]) for count in range(1, len(parts) + 1))
    entries = (FileEntry(path=path, type="directory", mode=0o755) for path in paths)
    headers = (tar_header(entry, archive.index.mtime) for entry in entries)
    return new_compressor().compress(b"".join(headers))


def _rooted(entry: FileEntry, prefix: str) -> FileEntry:
    path = f"{prefix.strip('/')}/{entry.path}"
    return msgspec.structs.replace(entry, path=path)
