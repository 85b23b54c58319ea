"""Open what may be hostile, as an install does."""

from __future__ import annotations

from contextlib import suppress

import xxhash
import zstandard

from envferry.archive.index import (
    INDEX_MAGIC,
    SKIPPABLE_INDEX,
    decode_index,
    skippable_frame,
)
from envferry.archive.prefixes import Relocation
from envferry.archive.reader import Archive, Source
from envferry.archive.validation import check_index, plan_frames
from envferry.errors import PipelineError


def open_and_read(data: bytes) -> None:
    """Open and read an archive as far as it goes; every error must be ours."""
    with suppress(PipelineError):
        read_all(Memory(data))


def require_error_of_ours(text: bytes) -> None:
    """Decode and check an index; what it passes must lie inside its tree."""
    compressed = zstandard.ZstdCompressor().compress(text)
    payload = INDEX_MAGIC + xxhash.xxh3_128_digest(compressed) + compressed
    try:
        index = decode_index(skippable_frame(SKIPPABLE_INDEX, payload), "index")
        check_index(index, "index")
        plan_frames(index, "index")
        Relocation(index.prefix, "/srv/e", index).check(index)
    except PipelineError:
        return
    for entry in index.files:
        assert not entry.path.startswith("/")
        assert ".." not in entry.path.split("/")


class Memory:
    """An archive in memory."""

    name = "forged.tar.zst"

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read_at(self, offset: int, length: int) -> bytes:
        """Return a part of it."""
        assert offset >= 0
        return self.data[offset : offset + length]


def read_all(source: Source) -> None:
    """Read every frame of an archive."""
    archive = Archive(source)
    for number in range(len(archive.plans)):
        [*archive.read_run([number])]
