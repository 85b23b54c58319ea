"""Decompress one zstd frame into memory that is there already."""

from __future__ import annotations

import zstandard

BLOCK_HEADER_BYTES = 3
REPEATED_BYTE = 1
"""The type of a block that is one byte, however many times."""
CHECKSUM_BYTES = 4


class Decompressor:
    """Decompresses frames; only one thread may use it."""

    def __init__(self) -> None:
        self.zstd = zstandard.ZstdDecompressor()

    def fill(self, memory: memoryview, frame: memoryview) -> None:
        """Fill `memory` with what a frame holds.

        Raises ZstdError unless `frame` is one whole frame, nothing behind it, that says it holds
        exactly as many bytes and does.
        """
        if zstandard.frame_content_size(frame) != len(memory):
            msg = "its size is not the one in the index"
            raise zstandard.ZstdError(msg)
        # zstandard's reader would be content with a frame's content, whatever follows and even if
        # its checksum is cut off. Other tools would not: they read on.
        unused = len(frame) - frame_length(frame)
        if unused:
            msg = f"{unused} bytes of unused data follow" if unused > 0 else "it is cut off"
            raise zstandard.ZstdError(msg)
        # All input is there and all output has room: libzstd writes straight into `memory`.
        with self.zstd.stream_reader(frame) as reader:
            count = reader.readinto(memory)
        if count != len(memory):
            msg = f"it holds {count} bytes, not {len(memory)}"
            raise zstandard.ZstdError(msg)


def frame_length(frame: memoryview) -> int:
    """Return how many bytes a frame takes by its headers (RFC 8878); too many if it is cut off.

    Raises ZstdError for what does not begin as a frame does.
    """
    position = zstandard.frame_header_size(frame)
    has_checksum = zstandard.get_frame_parameters(frame).has_checksum
    while position < len(frame):
        header = int.from_bytes(frame[position : position + BLOCK_HEADER_BYTES], "little")
        is_last, kind, size = header & 1, header >> 1 & 3, header >> 3
        position += BLOCK_HEADER_BYTES + (1 if kind == REPEATED_BYTE else size)
        if is_last:
            return position + CHECKSUM_BYTES * has_checksum
    return len(frame) + BLOCK_HEADER_BYTES
