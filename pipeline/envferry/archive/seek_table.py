"""The seek table at the end of an archive, in zstd's published seekable format 0.1.0.

https://github.com/facebook/zstd/blob/dev/contrib/seekable_format/zstd_seekable_compression_format.md
"""

from __future__ import annotations

import struct

from envferry.archive.index import skippable_frame
from envferry.errors import IntegrityError

SKIPPABLE_SEEK_TABLE = 0x184D2A5E
SEEKABLE_MAGIC = 0x8F92EAB1
FOOTER = struct.Struct("<IBI")
"""Number of frames, descriptor (0: no checksums in the table), magic."""
ENTRY = struct.Struct("<II")
"""Compressed and uncompressed size of one frame."""
# A skippable frame begins with its magic number and its length, 32 bits each.
FRAME_HEADER_BYTES = 8


def encode_seek_table(sizes: list[tuple[int, int]]) -> bytes:
    """Return the seek table for frames of (compressed, uncompressed) sizes in bytes."""
    entries = b"".join(ENTRY.pack(*size) for size in sizes)
    payload = entries + FOOTER.pack(len(sizes), 0, SEEKABLE_MAGIC)
    return skippable_frame(SKIPPABLE_SEEK_TABLE, payload)


def seek_table_size(footer: bytes, what: str) -> int:
    """Return how many bytes the whole table takes, from the last 9 bytes of an archive."""
    if len(footer) == FOOTER.size:
        frames, descriptor, magic = FOOTER.unpack(footer)
        # Bit 7 of the descriptor would make entries 12 bytes long, with a checksum each.
        if magic == SEEKABLE_MAGIC and descriptor == 0:
            return FRAME_HEADER_BYTES + int(frames) * ENTRY.size + FOOTER.size
    message = f"{what} does not end with a seek table: it is cut off, or not an envferry archive"
    raise IntegrityError(message, hint="copy or fetch it again")


def decode_seek_table(table: bytes, what: str) -> list[tuple[int, int]]:
    """Return the (compressed, uncompressed) sizes that a whole seek table lists."""
    payload = table[FRAME_HEADER_BYTES : -FOOTER.size]
    header = (SKIPPABLE_SEEK_TABLE, len(table) - FRAME_HEADER_BYTES)
    if len(payload) % ENTRY.size or struct.unpack("<II", table[:FRAME_HEADER_BYTES]) != header:
        message = f"the seek table of {what} is damaged"
        raise IntegrityError(message, hint="copy or fetch the archive again")
    return [(compressed, size) for compressed, size in ENTRY.iter_unpack(payload)]
