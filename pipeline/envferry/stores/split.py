"""A registry on a disk whose file system takes no large files: its large values lie in parts.

KEY.part001, KEY.part002, …    the bytes, cut
KEY.parts.json                 what the parts are, written last: makes the value exist
v1/split.json                  says that this registry is one, and where it is cut
"""

from __future__ import annotations

import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec
import xxhash
from blake3 import blake3
from msgspec.structs import replace

from envferry.base.json import from_json, to_json
from envferry.base.limits import is_always_small
from envferry.base.text import human_bytes
from envferry.errors import IntegrityError, NotFound, StoreError, UsageError
from envferry.stores.port import CannotList, Incomplete, KeyTaken, Listed, Stat, ignore, stat_whole
from envferry.stores.receive import content_of_bytes, content_of_file, create_or_read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from envferry.stores.port import DiskStore, KnownRange, ReadableStore, Store
    from envferry.stores.source import ContentSource, Piece

MARKER = "v1/split.json"
RECORD_SUFFIX = ".parts.json"
PART_NAME = re.compile(r".*\.part\d{3,}")
HINT = "copy that again, or export to that folder again"
LEAST_PART = 1_000_000
MOST_PARTS = 10_000


class SplitMarker(msgspec.Struct, frozen=True, kw_only=True):
    """Where the values of a registry are cut."""

    part_bytes: Annotated[int, msgspec.Meta(ge=1)]
    schema: int = 1


class PartFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a value: `KEY.part001` is the first."""

    size: int
    blake3: str


class SplitRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a value, in order."""

    size: int
    """Bytes of the whole."""
    parts: tuple[PartFacts, ...]
    schema: int = 1


def part_key(key: str, number: int) -> str:
    """Return the key of a part; the first is number 0."""
    return f"{key}.part{number + 1:03d}"


@dataclass(frozen=True, slots=True)
class SplitStore:
    """A `Store` that keeps large values in parts of another one; callers do not notice."""

    images: ClassVar[None] = None
    """It keeps values, not images."""

    inner: ReadableStore
    part_bytes: int
    records: dict[str, SplitRecord] = field(default_factory=dict, compare=False)
    """Those that were read: values are written once."""

    @property
    def url(self) -> str:
        """Where the other store is."""
        return self.inner.url

    @property
    def place(self) -> str:
        """What tells the other store from all others."""
        return self.inner.place

    @property
    def writable(self) -> SplitStore | None:
        """Itself, if the other store can be written."""
        return self if self.inner.writable else None

    @property
    def disk(self) -> SplitStore | None:
        """Itself, if the other store is on a disk."""
        return self if self.inner.disk else None

    @property
    def compares_while_sending(self) -> bool:
        """No: each part has its own digests."""
        return False

    @property
    def root(self) -> Path:
        """The directory of the other store."""
        return self._disk().root

    def stat(self, key: str) -> Stat | None:
        """Return size and version of a value, whole or in parts."""
        return self.inner.stat(key) or self._stat_parts(key)

    def _stat_parts(self, key: str) -> Stat | None:
        """Return size and version of a value in parts, and note what they are."""
        if is_always_small(key):  # asking a server for its parts would cost each host two requests
            return None
        if not (there := self.inner.stat(key + RECORD_SUFFIX)):
            # A copy that lost the record is damage, and must not look like a value that never was.
            if self.inner.stat(part_key(key, 0)):
                message = f"{key}{RECORD_SUFFIX} in {self.url} is missing, though parts are there"
                raise Incomplete(message, hint=HINT)
            return None
        record = self._record(key)
        self._require_parts(key, record)
        self.records[key] = record
        return Stat(size=record.size, version=there.version, modified=there.modified)

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a part of a value, from as many files as it lies in."""
        if key not in self.records:
            try:
                return self.inner.read(key, offset, length)
            except NotFound:
                if not self._stat_parts(key):
                    raise
        record = self.records[key]
        wanted = max(record.size - offset, 0) if length is None else length
        with self._explained(key, record):
            places = self._places(key, record, offset, wanted)
            return b"".join(self.inner.read(part, first, count) for part, first, count in places)

    def read_into(self, key: str, offset: int, memory: memoryview) -> None:
        """Fill memory with a part of a value; the other store must be on a disk."""
        inner = self._disk()
        if key not in self.records:
            try:
                inner.read_into(key, offset, memory)
            except NotFound:
                if not self._stat_parts(key):
                    raise
            else:
                return
        record = self.records[key]
        with self._explained(key, record):
            for part, first, count in self._places(key, record, offset, len(memory)):
                inner.read_into(part, first, memory[:count])
                memory = memory[count:]

    def _places(
        self, key: str, record: SplitRecord, offset: int, length: int
    ) -> Iterator[tuple[str, int, int]]:
        """Yield the parts that bytes of a value lie in: key, offset there, length."""
        end, start = offset + length, 0
        if end > record.size:
            message = f"{key} in {self.url} has {record.size} bytes, {end} are expected"
            raise StoreError(message, hint="copy or export it again")
        for number, part in enumerate(record.parts):
            first, last = max(offset, start), min(end, start + part.size)
            if first < last:
                yield part_key(key, number), first - start, last - first
            start += part.size

    @contextmanager
    def _explained(self, key: str, record: SplitRecord) -> Iterator[None]:
        """Say of a part that cannot be read which ones are there."""
        try:
            yield
        except (NotFound, StoreError):
            self._require_parts(key, record)
            raise

    def _require_parts(self, key: str, record: SplitRecord) -> None:
        """Raise Incomplete unless all parts are there in their full lengths."""
        there, faults = [], []
        for number, part in enumerate(record.parts):
            name = part_key("", number).removeprefix(".")
            found = self.inner.stat(part_key(key, number))
            if found is None:
                faults.append(f"{name} is missing")
            elif found.size != part.size:
                faults.append(f"{name} has {found.size} bytes, {part.size} are expected")
            else:
                there.append(name)
        if faults:
            message = f"{key} in {self.url} is incomplete: {', '.join(faults)}; "
            message += f"in order: {', '.join(there) or 'none'}"
            raise Incomplete(message, hint=HINT)

    def create(self, key: str, data: bytes) -> None:
        """Write a value, in parts if it is large."""
        self._require_free(key)
        if is_always_small(key) or len(data) <= self.part_bytes:
            self._inner().create(key, data)
        else:
            self._create_parts(key, content_of_bytes(data, key), ignore)

    def create_from_file(
        self, key: str, path: Path, advance: Callable[[int], None] = ignore
    ) -> None:
        """Write a file, in parts if it is large; existing ones are read again."""
        self._require_free(key)
        if is_always_small(key) or path.stat().st_size <= self.part_bytes:
            self._inner().create_from_file(key, path, advance)
            return
        with content_of_file(path) as content:
            self._create_parts(key, content, advance)

    def receive(
        self,
        key: str,
        content: ContentSource,
        advance: Callable[[int], None] = ignore,
        known: Sequence[KnownRange] = (),
    ) -> None:
        """Write what arrives, in parts if it is large; those that are there are read again."""
        self._require_free(key)
        if is_always_small(key) or content.size <= self.part_bytes:
            self._inner().receive(key, content, advance, known)
        else:
            self._create_parts(key, content, advance)

    def _require_free(self, key: str) -> None:
        # For its error: of a store that is only read, nothing has to be asked.
        self._inner()
        if stat_whole(self, key):
            raise KeyTaken.at(key, self.url)

    def _inner(self) -> Store:
        """Return the other store to write to; raise StoreError when it is only read."""
        if (inner := self.inner.writable) is None:
            message = f"{self.url} is a web server: nothing can be written or removed there"
            raise StoreError(message, hint="push to the directory or bucket that it serves")
        return inner

    def _listable(self) -> Store:
        """Return the other store to list; raise CannotList when it is only read."""
        if (inner := self.inner.writable) is None:
            message = f"{self.url} is a web server: what it holds cannot be listed"
            hint = "name the environment and its tag or id: NAME@TAG, NAME@ID"
            raise CannotList(message, hint=hint)
        return inner

    def _disk(self) -> DiskStore:
        disk = self.inner.disk
        assert disk is not None, "the caller asks for `disk` first"
        return disk

    def _require_few(self, key: str, size: int) -> None:
        """Raise UsageError for a value of more parts than a reader takes."""
        if size > MOST_PARTS * self.part_bytes:
            count, length = -(-size // self.part_bytes), human_bytes(self.part_bytes)
            message = f"{key} would be {count:,} parts of {length}, at most {MOST_PARTS:,} are read"
            raise UsageError(message, hint="export to another folder, with a larger --split")

    def _create_parts(
        self, key: str, content: ContentSource, advance: Callable[[int], None]
    ) -> None:
        self._require_few(key, content.size)
        fast, strong = xxhash.xxh3_128(), blake3()
        parts, were_there = [], 0
        for number, start in enumerate(range(0, content.size, self.part_bytes)):
            size, digest = min(self.part_bytes, content.size - start), blake3()

            def watch(data: Piece, hashers: tuple[blake3, ...] = (digest, strong)) -> None:
                fast.update(data)
                for hasher in hashers:
                    hasher.update(data)
                content.watch(data)

            part, found = part_key(key, number), self.inner.stat(part_key(key, number))
            if found and found.size != size:  # cut off when it was copied
                self._inner().delete(part)
                found = None
            were_there += found is not None
            create_or_read(self._inner(), part, content.part(number, start, size, watch), advance)
            parts.append(PartFacts(size=size, blake3=digest.hexdigest()))
        try:
            content.require(fast.hexdigest(), strong.hexdigest())
        except IntegrityError as error:
            self.records.pop(key, None)
            # The record first: parts without one are leftovers, which `prune` removes.
            self._inner().delete(key + RECORD_SUFFIX)
            for number in range(len(parts)):
                self._inner().delete(part_key(key, number))
            if not were_there:
                raise
            message = f"what an earlier run left of {key} in {self.url} is damaged: it was removed"
            raise IntegrityError(message, hint="run the command again") from error
        self._note(key, SplitRecord(size=content.size, parts=tuple(parts)))

    def _note(self, key: str, record: SplitRecord) -> None:
        """Write the record of the parts, over a damaged one; an equal one may already exist."""
        name, data = key + RECORD_SUFFIX, to_json(record)
        try:
            self._inner().create(name, data)
        except KeyTaken:
            # Before the record is read, so that `replace` notices who else repairs it.
            there = self.inner.stat(name)
            try:
                # Also our own record, when the answer to its first attempt was lost.
                is_other = self._record(key) != record
            except Incomplete:
                self._inner().replace(name, data, there.version if there else None)
                return
            if is_other:
                raise

    def replace(self, key: str, data: bytes, expected: str | None) -> str:
        """Pass on: what changes is small."""
        return self._inner().replace(key, data, expected)

    def list(self, prefix: str = "") -> Iterator[Listed]:
        """Yield values, those in parts as the one that they are."""
        return self._values(self._listable().list(prefix))

    def list_level(self, prefix: str = "") -> Iterator[Listed]:
        """Yield values and folders right below a prefix."""
        return self._values(self._listable().list_level(prefix))

    def list_unfinished(self, prefix: str = "") -> Iterator[Listed]:
        """Yield what writers have not finished; parts of no value are that, too."""
        yield from self._unlisted_parts(prefix)
        yield from self._listable().list_unfinished(prefix)

    def _values(self, found: Iterator[Listed]) -> Iterator[Listed]:
        for listed in found:
            if listed.key.endswith(RECORD_SUFFIX):
                yield self._joined(listed)
            elif listed.key != MARKER and not PART_NAME.fullmatch(listed.key):
                yield listed

    def _unlisted_parts(self, prefix: str) -> Iterator[Listed]:
        """Yield the parts of unfinished values."""
        keys = {listed.key: listed for listed in self._listable().list(prefix)}
        for key, listed in keys.items():
            if PART_NAME.fullmatch(key) and key.rpartition(".part")[0] + RECORD_SUFFIX not in keys:
                yield listed

    def _joined(self, listed: Listed) -> Listed:
        """Return a value by what lists its parts; one that is damaged has no size."""
        key, size = listed.key.removesuffix(RECORD_SUFFIX), 0
        with suppress(IntegrityError):
            size = self._record(key).size
        return replace(listed, key=key, size=size)

    def delete(self, key: str) -> None:
        """Remove a value, its record before its parts."""
        inner = self._inner()
        if not inner.stat(key + RECORD_SUFFIX):
            inner.delete(key)
            return
        self.records.pop(key, None)
        inner.delete(key + RECORD_SUFFIX)
        folder = key[: key.rfind("/") + 1]
        for name in [listed.key for listed in inner.list(folder)]:
            if PART_NAME.fullmatch(name) and name.rpartition(".part")[0] == key:
                inner.delete(name)

    def delete_folder(self, prefix: str) -> None:
        """Pass on."""
        self._inner().delete_folder(prefix)

    def delete_unfinished(self, prefix: str, older_seconds: float) -> int:
        """Remove what writers have not finished, and parts of no value."""
        inner = self._inner()
        before = datetime.now(timezone.utc) - timedelta(seconds=older_seconds)
        dead = [one for one in self._unlisted_parts(prefix) if one.modified <= before]
        for one in dead:
            inner.delete(one.key)
        return len(dead) + inner.delete_unfinished(prefix, older_seconds)

    def _record(self, key: str) -> SplitRecord:
        """Read what the parts of a value are; raise Incomplete for what does not say it."""
        what = f"{key}{RECORD_SUFFIX} in {self.url}"
        try:
            record = from_json(self.inner.read(key + RECORD_SUFFIX), SplitRecord, what)
        except IntegrityError as error:
            raise Incomplete(error.message, hint=HINT) from error
        sizes = [part.size for part in record.parts]
        if len(sizes) > MOST_PARTS or min(sizes, default=0) < 0 or sum(sizes) != record.size:
            message = f"{what} is damaged: its parts do not add up"
            raise Incomplete(message, hint=HINT)
        return record
