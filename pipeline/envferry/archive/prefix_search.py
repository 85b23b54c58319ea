"""Where files hold the prefix they were built at, so that they can get another one.

For files of conda packages, conda's records decide; for all others their bytes do, and where these
leave a doubt, the file is left alone: an edit changes the size of a text, and pads the C strings of
a binary file with NUL (conda/core/portability.py), which hardly any other format survives.
"""

from __future__ import annotations

import codecs
import re
from bisect import bisect_left
from string import ascii_letters, digits
from typing import TYPE_CHECKING, NamedTuple

from envferry.archive.binary_formats import (
    CONTROL,
    ELF,
    Searchable,
    elf_string_ranges,
    is_text,
    known_format,
)
from envferry.archive.index import BinaryString, PrefixEdits
from envferry.base.sha256 import sha256_hex

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from envferry.archive.members import Recorded

PATH_BYTES = bytes(sorted({*b"/_.+~-", *(ascii_letters + digits).encode(), *range(0x80, 0x100)}))
"""What paths are made of, as far as one can tell: a blank or a comma ends one."""
GOES_ON = re.compile(rb"[A-Za-z0-9_+~\-\x80-\xff]|\.+[A-Za-z0-9_+~\-\x80-\xff]")
"""What makes the prefix before it a part of a longer name: `/env` in `/env2` and `/env.old`."""
BEGINS_PATH = re.compile(rb"/*|-[A-Za-z0-9_\-]+")
"""What may stand before the prefix all the same: the slashes of `file://`, the option of
`-I/env/include`; anything else makes it the end of another path, `/usr/bin` before `/env`."""
# In source code, `"\n/opt/env"` has the letter of an escape right before the path.
ESCAPE = re.compile(rb"\\[abefnrtv]\Z")
# 4,096 is PATH_MAX of Linux: a path that ends in the prefix does not begin further away.
LOOK_BACK, LOOK_AHEAD = 4096, 16
LENGTH_BYTES = (2, 4, 8)
WIDE_TEXTS = ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
"""How a text of two bytes a character starts, and its encoding: files of tools for Windows."""


class PrefixFinding(NamedTuple):
    """What a file that holds the prefix needs."""

    edits: PrefixEdits | None = None
    left_alone: str = ""
    """What the file is, when it holds the prefix and keeps it."""


NOTHING = PrefixFinding()
UNKNOWN = "a binary file in an unknown format"


def find_edits(content: Searchable, prefix: bytes, recorded: Recorded | None) -> PrefixFinding:
    """Return how `content` follows when the prefix becomes another one.

    `recorded` is what conda noted of the file; None where it noted nothing.
    """
    found = list(occurrences(content, prefix))
    if not found:
        return (
            PrefixFinding(left_alone="a UTF-16 text")
            if is_in_wide_text(content, prefix)
            else NOTHING
        )
    ends = [offset for offset in found if is_end(content, offset, prefix)]
    is_recorded = recorded is not None and recorded.mode != "none"
    whole = [offset for offset in ends if is_start(content, offset, is_recorded=is_recorded)]
    if not whole:
        # What stands around it tells nothing where it may be a length.
        return PrefixFinding(left_alone=name_of_binary(content))
    if recorded and recorded.mode == "none" and is_unchanged(content, recorded):
        return NOTHING  # so conda did not put the prefix there, and would not change it
    # A file without NUL has no C strings to edit in place, whatever conda's record calls it.
    has_no_nul = content.find(b"\0") < 0
    if recorded and (recorded.mode == "text" or (recorded.mode == "binary" and has_no_nul)):
        return PrefixFinding(text_edits(content, prefix, whole))
    if recorded and recorded.mode == "binary":
        growth = max(recorded.placeholder_length - len(prefix), 0)
        return PrefixFinding(string_edits(content, prefix, whole, growth))
    return edits_by_format(content, prefix, whole)


def name_of_binary(content: Searchable) -> str:
    """Return what to call a binary file; nothing for a text, and for a program with its code."""
    if name := known_format(content):
        return name
    return "" if is_text(content) or content[: len(ELF)] == ELF else UNKNOWN


def is_in_wide_text(content: Searchable, prefix: bytes) -> bool:
    """Whether a text that says that it is UTF-16 holds the prefix."""
    encodings = (name for mark, name in WIDE_TEXTS if content[: len(mark)] == mark)
    return any(content.find(prefix.decode().encode(name)) >= 0 for name in encodings)


def edits_by_format(content: Searchable, prefix: bytes, whole: Sequence[int]) -> PrefixFinding:
    """Return how a file follows of which only its bytes tell what it is."""
    if name := known_format(content):
        # Before the test for texts: some of these formats are all text and note places all the
        # same.
        return shebang_edits(content, whole) or PrefixFinding(left_alone=name)
    if is_text(content):
        return PrefixFinding(text_edits(content, prefix, whole))
    if found := shebang_edits(content, whole):
        return found
    ranges = elf_string_ranges(content)
    if ranges is not None:
        whole = [offset for offset in whole if any(offset in found for found in ranges)]
        if not whole:
            return NOTHING  # debug information, notes: nothing that a program opens
    is_elf = ranges is not None
    # All or none: one occurrence that is not a C string shows that the format is not understood.
    if all(is_c_string(content, offset, prefix, is_elf=is_elf) for offset in whole):
        return PrefixFinding(string_edits(content, prefix, whole, 0))
    return PrefixFinding(left_alone=UNKNOWN)


def occurrences(content: Searchable, prefix: bytes) -> Iterator[int]:
    """Yield the offsets at which the prefix stands."""
    found = content.find(prefix)
    while found >= 0:
        yield found
        found = content.find(prefix, found + len(prefix))


def is_end(content: Searchable, offset: int, prefix: bytes) -> bool:
    """Whether the last name in the prefix at `offset` ends with it."""
    end = offset + len(prefix)
    return not GOES_ON.match(content[end : end + LOOK_AHEAD])


def is_start(content: Searchable, offset: int, *, is_recorded: bool) -> bool:
    """Whether a path starts at `offset`: it is not the end of another one.

    Where conda put the prefix into a file, a dot before it is CPython's `./PREFIX` (a setting of
    its build for WebAssembly), and no folder of that name.
    """
    before = bytes(content[max(offset - LOOK_BACK, 0) : offset])
    run = before[len(before.rstrip(PATH_BYTES)) :]
    is_escape = len(run) == 1 and ESCAPE.search(before)
    return bool(BEGINS_PATH.fullmatch(run) or is_escape or (is_recorded and run == b"."))


def text_edits(content: Searchable, prefix: bytes, whole: Sequence[int]) -> PrefixEdits:
    """Return the edits of a text: where, if not everywhere."""
    is_all = len(whole) == sum(1 for _ in occurrences(content, prefix))
    return PrefixEdits(text=True, at=() if is_all else tuple(whole))


def shebang_edits(content: Searchable, whole: Sequence[int]) -> PrefixFinding | None:
    """Return the edits of a script's first line where a zip file or the like follows it."""
    if bytes(content[:2]) != b"#!":
        return None
    end = content.find(b"\n")
    at = tuple(offset for offset in whole if offset < end)
    if not at or CONTROL.search(content[:end]):
        return None
    rest = "the binary part of a script" if len(at) < len(whole) else ""
    return PrefixFinding(PrefixEdits(text=True, at=at, padded=True), left_alone=rest)


def string_edits(
    content: Searchable, prefix: bytes, whole: Sequence[int], growth: int
) -> PrefixEdits:
    """Return the edits of C strings, each from the first prefix in it up to its NUL.

    `growth` is what conda's placeholder was longer than the prefix: room for the string to grow.
    """
    strings, is_all, next_one = [], True, 0
    while next_one < len(whole):
        start = whole[next_one]
        end = content.find(b"\0", start)
        end = len(content) if end < 0 else end
        # All occurrences before the NUL belong to one string, and share its room.
        following = bisect_left(whole, end)
        count = following - next_one
        is_all = is_all and bytes(content[start:end]).count(prefix) == count
        room = content[end : end + growth * count]
        # conda padded with NUL what its placeholder had more; anything else is not ours to take.
        grown = len(room) if not any(room) else 0
        strings.append(BinaryString(start, end - start, end - start + grown, count))
        next_one = following
    return PrefixEdits(strings=tuple(strings), at=() if is_all else tuple(whole))


def is_c_string(content: Searchable, offset: int, prefix: bytes, *, is_elf: bool) -> bool:
    """Whether the prefix stands in a text between two NULs whose length is not noted before it."""
    start = content.rfind(b"\0", 0, offset) + 1
    end = content.find(b"\0", offset)
    if end < 0 or end - start > LOOK_BACK or CONTROL.search(content[start:end]):
        return False
    return is_elf or not has_length(content, range(start, end), offset, len(prefix))


def has_length(content: Searchable, text: range, offset: int, least: int) -> bool:
    """Whether the length of the string around `offset` may be noted before it.

    As a little-endian number before the text, or as one byte in it: lengths from 32 on look like
    letters, and so does the last byte of a larger number. It is one where a text may start, after
    what no text has, or right before the prefix (msgpack, CBOR, protocol buffers).
    """
    for size in LENGTH_BYTES:
        length = int.from_bytes(content[max(text.start - size, 0) : text.start], "little")
        # + 1: the noted length may count the final NUL.
        if least <= length <= len(text) + 1:
            return True
    before = bytes(content[text.start : offset])
    return any(
        offset + least <= text.start + at + 1 + length <= text.stop + 1
        for at, length in enumerate(before)
        if at in (0, len(before) - 1) or not 0x20 <= before[at - 1] < 0x7F
    )


def is_unchanged(content: Searchable, recorded: Recorded) -> bool:
    """Whether a file is as it was in its package."""
    return not recorded.sha256 or sha256_hex(bytes(content[:])) == recorded.sha256
