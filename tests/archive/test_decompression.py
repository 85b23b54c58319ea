"""One zstd frame, whole and alone: what is cut off, followed by anything or changed is refused."""

from __future__ import annotations

import random

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from envferry.archive.compression import new_compressor
from envferry.archive.decompression import Decompressor, frame_length

NOISE = random.Random(1).randbytes(300_000)
CONTENTS = {
    "one byte": b"x",
    "text": b"a text that comes again and again\n" * 20_000,
    "noise": NOISE,
    "zeros": bytes(500_000),
    "mixed": NOISE + bytes(400_000) + NOISE[:1000] * 50,
}
SKIPPABLE = b"\x5a\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"any"
EMPTY = zstandard.ZstdCompressor().compress(b"")


def filled(frame: bytes, size: int) -> bytes:
    """Return what a frame holds that is said to hold so many bytes."""
    memory = memoryview(bytearray(size))
    Decompressor().fill(memory, memoryview(frame))
    return bytes(memory)


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("has_checksum", [True, False])
@pytest.mark.parametrize("level", [1, 3, 19])
def test_a_frame_is_as_long_as_its_headers_say(
    content: bytes, has_checksum: bool, level: int
) -> None:
    frame = zstandard.ZstdCompressor(level, write_checksum=has_checksum).compress(content)
    assert frame_length(memoryview(frame)) == len(frame)
    assert filled(frame, len(content)) == content
    for kept in {len(frame) - 1, len(frame) - 4, len(frame) - 5, len(frame) // 2, 12, 5, 0}:
        if kept < len(frame):
            with pytest.raises(zstandard.ZstdError):
                filled(frame[: max(kept, 0)], len(content))


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize(
    "more", [b"\0", b"\xff" * 3, SKIPPABLE, EMPTY, new_compressor().compress(b"more")]
)
def test_nothing_may_follow_a_frame(content: bytes, more: bytes) -> None:
    """Not even what holds nothing: other tools pass it over, or fail at it."""
    frame = new_compressor().compress(content) + more
    with pytest.raises(zstandard.ZstdError, match=f"{len(more)} bytes of unused data"):
        filled(frame, len(content))


@pytest.mark.parametrize("frame", [SKIPPABLE, EMPTY, SKIPPABLE + EMPTY, b"", bytes(100)])
def test_what_holds_nothing_is_no_frame_of_ours(frame: bytes) -> None:
    with pytest.raises(zstandard.ZstdError):
        filled(frame, 1)


@pytest.mark.parametrize("difference", [-1, 1])
def test_a_frame_of_another_size_is_not_decompressed(difference: int) -> None:
    frame = new_compressor().compress(CONTENTS["text"])
    with pytest.raises(zstandard.ZstdError, match="size is not the one in the index"):
        filled(frame, len(CONTENTS["text"]) + difference)


def test_after_a_damaged_frame_the_next_is_read() -> None:
    frame = new_compressor().compress(CONTENTS["mixed"])
    decompressor, memory = Decompressor(), memoryview(bytearray(len(CONTENTS["mixed"])))
    for place in range(20, len(frame), len(frame) // 7):
        damaged = bytearray(frame)
        damaged[place] ^= 0x10
        with pytest.raises(zstandard.ZstdError):
            decompressor.fill(memory, memoryview(damaged))
        decompressor.fill(memory, memoryview(frame))
        assert memory == CONTENTS["mixed"]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_what_is_taken_is_what_zstd_itself_takes(data: st.DataObject) -> None:
    """Bytes changed, cut off, put behind: the same frames are taken, and give the same bytes."""
    content = data.draw(st.sampled_from([CONTENTS["text"], CONTENTS["mixed"], b"x" * 40]))
    has_checksum = data.draw(st.booleans())
    changed = bytearray(zstandard.ZstdCompressor(write_checksum=has_checksum).compress(content))
    for _ in range(data.draw(st.integers(0, 2))):
        # Half of them in the first bytes, which are headers.
        last = data.draw(st.sampled_from([min(20, len(changed)), len(changed)])) - 1
        changed[data.draw(st.integers(0, last))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([0, 0, 1, 3, 4, 8]))
    frame = bytes(changed[: len(changed) - cut]) + data.draw(st.binary(max_size=4))
    try:
        expected = None
        if zstandard.frame_content_size(frame) == len(content):
            expected = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError:
        expected = None
    if expected is None:
        with pytest.raises(zstandard.ZstdError):
            filled(frame, len(content))
    else:
        assert filled(frame, len(content)) == expected
