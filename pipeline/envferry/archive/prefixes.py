"""A change of prefix: what it does to each file of an archive, and whether it can be made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from envferry.archive.index import FileEntry, Index, PrefixEdits
from envferry.archive.relocating import (
    NotTheIndexed,
    edited_strings,
    edited_text,
    padded_line,
    without_stale_checksums,
)
from envferry.archive.shebangs import with_short_shebang
from envferry.errors import HostError, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.archive.binary_formats import Searchable

CONDA_META = "conda-meta/"
MOST_RECORD_BYTES = 8 << 20
"""A larger record is spread over frames, and is left as it is."""


class Relocation:
    """A change of prefix, checked against every capacity before anything is written."""

    def __init__(self, old: str, new: str, index: Index | None = None) -> None:
        """Plan the way from `old` to `new`; with an index, conda's records follow the edits."""
        self.old = old.encode()
        self.new = new.encode()
        self.edited = frozenset(entry.path for entry in index.files if entry.edits) if index else ()
        self.records = frozenset(stale_records(index)) if index else frozenset[str]()

    def __bool__(self) -> bool:
        return self.old != self.new

    def changes(self, entry: FileEntry) -> bool:
        """Whether a file has another content under the new prefix."""
        return bool(self) and (entry.edits is not None or entry.path in self.records)

    def check(self, index: Index) -> None:
        """Raise HostError when the new prefix does not fit somewhere, naming the tightest place."""
        growth = len(self.new) - len(self.old)
        # What is not longer fits everywhere: NULs fill the rest.
        if growth <= 0:
            return
        longest, tightest = min(
            (
                # Each occurrence in a string grows: they share its room.
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

    def move_link(self, link: str) -> str:
        """Return the target of a symbolic link: one that holds the prefix follows it."""
        old = self.old.decode()
        if self and (link == old or link.startswith(old + "/")):
            return self.new.decode() + link.removeprefix(old)
        return link

    def edit(self, content: bytes, entry: FileEntry) -> bytes:
        """Return the content of a file as it must be under the new prefix."""
        if entry.edits and entry.edits.text:
            content = self.edit_text(content, entry)
        elif entry.edits:
            edited = bytearray(content)
            for offset, replacement in self.replacements(content, entry):
                edited[offset : offset + len(replacement)] = replacement
            content = bytes(edited)
        # Last: a record may hold the prefix itself, and is edited as a text before.
        if entry.path in self.records:
            content = without_stale_checksums(content, self.edited)
        return content

    def edit_text(self, content: bytes, entry: FileEntry) -> bytes:
        """Return a text with the new prefix."""
        edits = entry.edits or PrefixEdits()
        try:
            moved = edited_text(content, self.old, self.new, edits.at)
        except NotTheIndexed as error:
            raise not_as_indexed(entry) from error
        # Before padding, which counts from the length that the text has in the end.
        moved = with_short_shebang(moved, self.new)
        return padded_line(moved, len(content)) if edits.padded else moved

    def replacements(self, content: Searchable, entry: FileEntry) -> Iterator[tuple[int, bytes]]:
        """Yield the (offset, bytes) that rewrite the strings of a binary file in place."""
        edits = entry.edits or PrefixEdits()
        try:
            strings = [msgspec.structs.astuple(string) for string in edits.strings]
            yield from edited_strings(content, self.old, self.new, strings, edits.at)
        except NotTheIndexed as error:
            raise not_as_indexed(entry) from error


def not_as_indexed(entry: FileEntry) -> IntegrityError:
    """Return the error for a file that its index describes wrongly."""
    message = f"{entry.path} does not hold its prefix where the index says"
    return IntegrityError(message, hint="copy or fetch the archive again")


def stale_records(index: Index) -> Iterator[str]:
    """Yield the conda-meta records of packages that have a file with a prefix in it."""
    for package in index.packages:
        files = index.files[package.first_file : package.first_file + package.files]
        if package.kind == "conda" and any(entry.edits for entry in files):
            yield from (
                entry.path
                for entry in files
                if entry.path.startswith(CONDA_META)
                and entry.path.endswith(".json")
                and entry.size <= MOST_RECORD_BYTES
            )
