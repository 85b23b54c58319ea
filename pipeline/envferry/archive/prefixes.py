"""Where files hold the prefix they were built at, and how they get another one.

The rules are conda's (conda/core/portability.py): in a text file every occurrence is replaced; in a
binary file the C string that holds it is rewritten and padded with NUL, so that no offset moves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from envferry.archive.index import BinaryString, FileEntry, Index, PrefixEdits
from envferry.archive.shebangs import with_short_shebang
from envferry.base.json import decode_json
from envferry.errors import HostError, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

CONDA_META = "conda-meta/"
MOST_RECORD_BYTES = 8 << 20
"""A larger record is spread over frames, and is left as it is."""


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

    def move_link(self, link: str) -> str:
        """Return the target of a symbolic link: one that holds the prefix follows it."""
        old = self.old.decode()
        if self and (link == old or link.startswith(old + "/")):
            return self.new.decode() + link.removeprefix(old)
        return link

    def edit(self, content: bytes, entry: FileEntry) -> bytes:
        """Return the content of a file as it must be under the new prefix."""
        if entry.path in self.records:
            content = without_stale_checksums(content, self.edited)
        if entry.edits is None:
            return content
        if entry.edits.text:
            return with_short_shebang(content.replace(self.old, self.new), self.new)
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


def without_stale_checksums(content: bytes, edited: Container[str]) -> bytes:
    """Drop from a conda-meta record the SHA-256 that edited files had under the old prefix.

    `conda doctor` compares files that have a `sha256_in_prefix` and passes over the others.
    """
    try:
        record = decode_json(content, object)
    except msgspec.DecodeError:
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
    return msgspec.json.format(msgspec.json.encode(record), indent=2)
