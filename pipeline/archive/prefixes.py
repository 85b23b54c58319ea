"""Where files hold the prefix they were built at, and how they get another one.

The rules are conda's (conda/core/portability.py): in a text file every occurrence is replaced; in a
binary file the C string that holds it is rewritten and padded with NUL, so that no offset moves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pipeline.archive.index import BinaryString, FileEntry, Index, PrefixEdits
from pipeline.errors import HostError, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Searchable(Protocol):
    """bytes, bytearray or mmap."""

    def find(self, needle: bytes, start: int = ..., /) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: slice, /) -> bytes | bytearray: ...


def find_edits(content: Searchable, prefix: bytes, placeholder_length: int) -> PrefixEdits | None:
    """Return where `content` holds `prefix`, or None.

    `placeholder_length` is that of the conda placeholder which stood there before, 0 if none did:
    what it was longer than the prefix is room that the string may grow into.
    """
    first = content.find(prefix)
    if first < 0:
        return None
    if content.find(b"\0") < 0:
        return PrefixEdits(text=True)
    growth = max(placeholder_length - len(prefix), 0)
    return PrefixEdits(strings=tuple(find_strings(content, prefix, first, growth)))


def find_strings(
    content: Searchable, prefix: bytes, first: int, growth: int
) -> Iterator[BinaryString]:
    """Yield each C string that holds `prefix`, from the occurrence at `first` on."""
    start = first
    while start >= 0:
        end = content.find(b"\0", start)
        end = len(content) if end < 0 else end
        count = bytes(content[start:end]).count(prefix)
        room = content[end : end + growth * count]
        # conda padded with NUL what its placeholder had more; anything else is not ours to take.
        grown = len(room) if not any(room) else 0
        yield BinaryString(
            offset=start, length=end - start, capacity=end - start + grown, count=count
        )
        start = content.find(prefix, end)


class Relocation:
    """A change of prefix, checked against every capacity before anything is written."""

    def __init__(self, old: str, new: str) -> None:
        self.old = old.encode()
        self.new = new.encode()

    def __bool__(self) -> bool:
        return self.old != self.new

    def check(self, index: Index) -> None:
        """Raise HostError when the new prefix does not fit somewhere, naming the tightest place."""
        growth = len(self.new) - len(self.old)
        if growth <= 0:
            return
        longest, tightest = min(
            (
                (len(self.old) + (string.capacity - string.length) // string.count, entry.path)
                for entry in index.files
                if entry.edits
                for string in entry.edits.strings
            ),
            default=(len(self.new), ""),
        )
        if longest < len(self.new):
            message = (
                f"the prefix {self.new.decode()} is {len(self.new)} characters long, "
                f"{tightest} has room for {longest}"
            )
            raise HostError(message, hint=f"choose a --prefix of at most {longest} characters")

    def edit(self, content: bytes, entry: FileEntry) -> bytes:
        """Return the content of a file as it must be under the new prefix."""
        if entry.edits is None:
            return content
        if entry.edits.text:
            return content.replace(self.old, self.new)
        edited = bytearray(content)
        for offset, replacement in self.replacements(content, entry):
            edited[offset : offset + len(replacement)] = replacement
        return bytes(edited)

    def replacements(self, content: Searchable, entry: FileEntry) -> Iterator[tuple[int, bytes]]:
        """Yield the (offset, bytes) that rewrite the strings of a binary file in place."""
        for string in entry.edits.strings if entry.edits else ():
            before = bytes(content[string.offset : string.offset + string.length])
            if before.count(self.old) != string.count:
                message = f"{entry.path} does not hold its prefix where the index says"
                raise IntegrityError(message, hint="copy or fetch the archive again")
            after = before.replace(self.old, self.new)
            yield string.offset, after.ljust(string.length, b"\0")
