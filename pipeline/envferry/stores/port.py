"""The port to whatever keeps a registry's bytes: dumb keys, dumb bytes, two kinds of write."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Protocol

from envferry.base.retry import Transient
from envferry.errors import IntegrityError, StoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from envferry.stores.source import Incoming

KEY_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}")


FOLDER_TIME = datetime.fromtimestamp(0, timezone.utc)
"""Folders have no time of their own: they are there while a key is below them."""


class KeyTaken(StoreError):
    """The key exists already; what was there is untouched."""


class CannotList(StoreError):
    """The store cannot say what it holds."""


class Incomplete(IntegrityError):
    """Some of a value is not there; to create it again completes it."""


class LostRace(StoreError):
    """The value is no longer the one that was to be replaced; it is untouched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """What a store knows of a key without reading it."""

    size: int
    """Bytes."""
    version: str
    """Changes when the value changes; for `Store.replace` and for nothing else."""
    modified: datetime | None = None
    """When the store got the value, by its own clock and in UTC; None when it does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A value as a listing has it."""

    key: str
    size: int
    """Bytes."""
    modified: datetime
    """When the store got the value, by its own clock and in UTC."""
    stamp: str
    """Changes when the value changes: to compare with what an earlier listing said."""

    @classmethod
    def folder(cls, key: str) -> Listed:
        """Return what stands for all keys below `key`, which ends in a slash."""
        return cls(key=key, size=0, modified=FOLDER_TIME, stamp="")


@dataclass(frozen=True, slots=True)
class KnownRange:
    """Bytes of a file that the store has already, in another value."""

    offset: int
    """Where in the file."""
    length: int
    key: str
    """The value that has them."""
    key_offset: int

    @property
    def end(self) -> int:
        """Where in the file they end."""
        return self.offset + self.length

    def part(self, offset: int, length: int) -> KnownRange:
        """Return a part of this range; `offset` is one of the file."""
        return KnownRange(offset, length, self.key, self.key_offset + offset - self.offset)


class Store(Protocol):
    """Keys and bytes in a directory, a bucket or behind a web server.

    Keys are relative, `/` separates their parts, and no part starts with a dot (`check_key`).
    Every method may be called from several threads at once. Each raises StoreError when the store
    cannot be reached or refuses.
    """

    @property
    def url(self) -> str:
        """Where the store is, for messages; holds no credentials."""
        ...

    @property
    def place(self) -> str:
        """What tells this store from all others on any server, whatever it was called."""
        ...

    def stat(self, key: str) -> Stat | None:
        """Return size and version of a value, or None when there is none.

        Raises Incomplete for one that the store keeps in parts, and lacks some of.
        """
        ...

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return `length` bytes from `offset` on, or all the rest.

        Never returns fewer than asked for: a short answer is a StoreError, a missing key NotFound.
        """
        ...

    def create(
        self,
        key: str,
        source: Path | bytes | Incoming,
        advance: Callable[[int], None] | None = None,
        known: Sequence[KnownRange] = (),
    ) -> None:
        """Write a value that does not exist yet, whole or not at all; else raise KeyTaken.

        Of several writers at the same time exactly one wins: the store sees to it, not the caller.
        A file is sent in pieces, so its size needs no memory; `advance` gets the bytes done. What
        is `Incoming` is read while it is written, and given its name only when it is right. Of
        what is `known` to be in the store a store may make copies there, and send the rest only.
        """
        ...

    def replace(self, key: str, data: bytes, expected: str | None) -> str:
        """Write a small value if its version is still `expected` (None: it does not exist).

        Returns the new version; raises LostRace when somebody else was faster.
        """
        ...

    def list(
        self, prefix: str = "", *, folders: bool = False, unfinished: bool = False
    ) -> Iterator[Listed]:
        """Yield all values below `prefix` (empty, or ending in `/`), in no order.

        With `folders`, only the next level: what lies deeper is one `Listed.folder` each. With
        `unfinished`, no values, but what writers began there and have not finished: the bytes that
        have arrived, and when they began.
        """
        ...

    def delete(self, key: str, unfinished_seconds: float | None = None) -> int:
        """Remove a value; nothing happens when there is none.

        A `key` that ends in `/` is a folder that may be empty: it is not listed any more, then.

        With `unfinished_seconds`, remove no value, but what writers below the prefix `key` began
        that long ago and never finished. Returns how many were removed.
        """
        ...


@contextmanager
def lost_races_again() -> Iterator[None]:
    """Let `persistently` run what is in the block again after a lost race."""
    try:
        yield
    except LostRace as error:
        raise Transient(error) from error


def stat_whole(store: Store, key: str) -> Stat | None:
    """Return size and version of a value; None also for one that `create` is to complete."""
    try:
        return store.stat(key)
    except Incomplete:
        return None


def check_key(key: str) -> str:
    """Return `key` when every store can hold it and it stays inside; raise UsageError otherwise."""
    if not all(KEY_PART.fullmatch(part) for part in key.split("/")):
        message = f"{key!r} cannot be a key in a registry: a part of it is empty or starts oddly"
        raise UsageError(message)
    return key


def check_prefix(prefix: str) -> str:
    """Return `prefix` when it is empty or a key that ends in `/`; raise UsageError otherwise."""
    if prefix and not prefix.endswith("/"):
        message = f"{prefix!r} cannot be a prefix in a registry: it must end in /"
        raise UsageError(message)
    if prefix:
        check_key(prefix[:-1])
    return prefix
