"""How files get another prefix: what `install` does, and `conda-unpack` of an archive as well.

The source of this module is written into every `bin/conda-unpack`, so that both give the same
bytes: Python 3.7 or newer, the standard library, nothing else.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence


class NotTheIndexed(ValueError):
    """A file does not hold the prefix where its index says."""


def edited_text(content: bytes, old: bytes, new: bytes, at: Sequence[int] = ()) -> bytes:
    """Return a text with another prefix, everywhere or only at these offsets."""
    if not at:
        return content.replace(old, new)
    parts, end = [], 0
    for offset in at:
        if content[offset : offset + len(old)] != old:
            raise NotTheIndexed
        parts += [content[end:offset], new]
        end = offset + len(old)
    return b"".join([*parts, content[end:]])


def padded_line(content: bytes, size: int) -> bytes:
    """Return a script that is not shorter than `size`: blanks end its first line."""
    first, end, rest = content.partition(b"\n")
    return first + b" " * (size - len(content)) + end + rest


def edited_strings(
    content: Any,  # noqa: ANN401  (bytes or mmap)
    old: bytes,
    new: bytes,
    strings: Sequence[Sequence[int]],
    at: Sequence[int] = (),
) -> Iterator[tuple[int, bytes]]:
    """Yield the (offset, bytes) that rewrite the C strings of a binary file in place.

    Each string is an (offset, length, capacity, count), as the index has them.
    """
    for offset, length, _, count in strings:
        before = bytes(content[offset : offset + length])
        inside = at[bisect_left(at, offset) : bisect_left(at, offset + length)]
        if (len(inside) if at else before.count(old)) != count:
            raise NotTheIndexed
        after = edited_text(before, old, new, [place - offset for place in inside])
        yield offset, after.ljust(length, b"\0")


def without_stale_checksums(content: bytes, edited: Container[str]) -> bytes:
    """Drop from a conda-meta record the SHA-256 that edited files had under the old prefix.

    `conda doctor` compares files that have a `sha256_in_prefix` and skips the others.
    """
    try:
        record = json.loads(content.decode())
    except (ValueError, RecursionError):
        return content
    data = record.get("paths_data") if isinstance(record, dict) else None
    paths = data.get("paths") if isinstance(data, dict) else None
    dropped = [
        path.pop("sha256_in_prefix", None)
        for path in (paths if isinstance(paths, list) else ())
        if isinstance(path, dict) and path.get("_path") in edited
    ]
    if not any(dropped):
        return content
    try:
        return json.dumps(record, indent=2, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return content
