"""A registry on a disk whose file system takes no large files: its large values lie in parts.

KEY.part001, KEY.part002, …    the bytes, cut
KEY.parts.json                 what the parts are, written last: without it there is no value
v1/split.json                  says that this registry is one, and where it is cut
"""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import xxhash
from blake3 import blake3

from pipeline.errors import IntegrityError, NotFound, StoreError
from pipeline.files import from_json, to_json
from pipeline.stores.arriving import REQUEST_BYTES, Incoming
from pipeline.stores.directory import DirectoryStore
from pipeline.stores.port import KeyTaken, Listed, Stat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pipeline.stores.arriving import Piece
    from pipeline.stores.port import KnownRange, Store

MARKER = "v1/split.json"
RECORD_SUFFIX = ".parts.json"
PART_NAME = re.compile(r".*\.part\d{3,}")
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
    """A `Store` that keeps large values in parts of another one; nobody else notices."""

    inner: Store
    part_bytes: int

    @property
    def url(self) -> str:
        """Where the other store is."""
        return self.inner.url

    @property
    def place(self) -> str:
        """What tells the other store from all others."""
        return self.inner.place

    def stat(self, key: str) -> Stat | None:
        """Return size and version of a value, whole or in parts."""
        found = self.inner.stat(key)
        if found or not (there := self.inner.stat(key + RECORD_SUFFIX)):
            return found
        record = self._record(key)
        return Stat(size=record.size, version=there.version, modified=there.modified)

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a part of a value, from as many files as it lies in."""
        try:
            return self.inner.read(key, offset, length)
        except NotFound:
            if not self.inner.stat(key + RECORD_SUFFIX):
                raise
        record = self._record(key)
        wanted = max(record.size - offset, 0) if length is None else length
        places = self._places(key, record, offset, wanted)
        return b"".join(self.inner.read(part, first, count) for part, first, count in places)

    def read_into(self, key: str, offset: int, memory: memoryview) -> None:
        """Fill memory with a part of a value; the other store must be a directory."""
        inner = self.inner
        assert isinstance(inner, DirectoryStore)
        try:
            inner.read_into(key, offset, memory)
            return
        except NotFound:
            if not inner.stat(key + RECORD_SUFFIX):
                raise
        for part, first, count in self._places(key, self._record(key), offset, len(memory)):
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

    def create(
        self,
        key: str,
        source: Path | bytes | Incoming,
        advance: Callable[[int], None] | None = None,
        known: Sequence[KnownRange] = (),
    ) -> None:
        """Write a value, in parts if it is large; those that are there already are read again."""
        if self.stat(key):
            raise KeyTaken(f"{key} exists in {self.url} and is never overwritten")
        with ExitStack() as stack:
            if isinstance(source, Incoming):
                incoming = source
            elif _size(source) <= self.part_bytes:
                self.inner.create(key, source, advance, known)
                return
            else:
                incoming = _incoming(source, key, stack)
            if incoming.size <= self.part_bytes:
                self.inner.create(key, incoming, advance)
            else:
                self._create_parts(key, incoming, advance or (lambda _: None))

    def _create_parts(self, key: str, incoming: Incoming, advance: Callable[[int], None]) -> None:
        fast, strong = xxhash.xxh3_128(), blake3()
        parts = []
        for number, start in enumerate(range(0, incoming.size, self.part_bytes)):
            size, digest = min(self.part_bytes, incoming.size - start), blake3()

            def watch(data: Piece, hashers: tuple[blake3, ...] = (digest, strong)) -> None:
                fast.update(data)
                for hasher in hashers:
                    hasher.update(data)
                incoming.watch(data)

            part = incoming.part(number, start, size, watch)
            create_or_read(self.inner, part_key(key, number), part, advance)
            parts.append(PartFacts(size=size, blake3=digest.hexdigest()))
        try:
            incoming.require(fast.hexdigest(), strong.hexdigest())
        except IntegrityError:
            for number in range(len(parts)):
                self.inner.delete(part_key(key, number))
            raise
        record = SplitRecord(size=incoming.size, parts=tuple(parts))
        self.inner.create(key + RECORD_SUFFIX, to_json(record))

    def replace(self, key: str, data: bytes, expected: str | None) -> str:
        """Pass on: what changes is small."""
        return self.inner.replace(key, data, expected)

    def list(
        self, prefix: str = "", *, folders: bool = False, unfinished: bool = False
    ) -> Iterator[Listed]:
        """Yield values, those in parts as the one that they are."""
        for listed in self.inner.list(prefix, folders=folders, unfinished=unfinished):
            if unfinished:
                yield listed
            elif listed.key.endswith(RECORD_SUFFIX):
                key = listed.key.removesuffix(RECORD_SUFFIX)
                yield Listed(
                    key=key,
                    size=self._record(key).size,
                    modified=listed.modified,
                    stamp=listed.stamp,
                )
            elif listed.key != MARKER and not PART_NAME.fullmatch(listed.key):
                yield listed

    def delete(self, key: str, unfinished_seconds: float | None = None) -> int:
        """Remove a value, its record before its parts."""
        is_value = unfinished_seconds is None and not key.endswith("/")
        if is_value and self.inner.stat(key + RECORD_SUFFIX):
            record = self._record(key)
            self.inner.delete(key + RECORD_SUFFIX)
            for number in range(len(record.parts)):
                self.inner.delete(part_key(key, number))
            return 1
        return self.inner.delete(key, unfinished_seconds)

    def _record(self, key: str) -> SplitRecord:
        what = f"{key}{RECORD_SUFFIX} in {self.url}"
        record = from_json(self.inner.read(key + RECORD_SUFFIX), SplitRecord, what)
        sizes = [part.size for part in record.parts]
        if len(sizes) > MOST_PARTS or min(sizes, default=0) < 0 or sum(sizes) != record.size:
            message = f"{what} is damaged: its parts do not add up"
            raise IntegrityError(message, hint="copy or export it again")
        return record


def create_or_read(
    store: Store, key: str, incoming: Incoming, advance: Callable[[int], None]
) -> None:
    """Write a value, or let `incoming.watch` see the one that is there; its size must be right."""
    there = store.stat(key)
    if there is None:
        store.create(key, incoming, advance)
        return
    if there.size != incoming.size:
        message = f"{key} in {store.url} has {there.size} bytes, {incoming.size} are expected"
        raise IntegrityError(message, hint="remove that file, then run the command again")
    for offset in range(0, incoming.size, REQUEST_BYTES):
        data = store.read(key, offset, min(REQUEST_BYTES, incoming.size - offset))
        incoming.watch(data)
        advance(len(data))


def _size(source: Path | bytes) -> int:
    return source.stat().st_size if isinstance(source, Path) else len(source)


def _incoming(source: Path | bytes, key: str, stack: ExitStack) -> Incoming:
    """Return a file or bytes as what arrives; nobody knows digests of it."""
    if isinstance(source, Path):
        descriptor = os.open(source, os.O_RDONLY)
        stack.callback(os.close, descriptor)

        def read_at(offset: int, length: int) -> bytes:
            return os.pread(descriptor, length, offset)

        status = source.stat()
        token, size = f"{source.name}.{status.st_mtime_ns}.{status.st_size}", status.st_size
    else:
        data = source

        def read_at(offset: int, length: int) -> bytes:
            return data[offset : offset + length]

        token, size = blake3(data).hexdigest(), len(data)
    return Incoming(name=key, size=size, token=token, read_at=read_at, digests=None)
