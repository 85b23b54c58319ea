"""The port to the store of a registry: keys, bytes, and two kinds of write."""

from __future__ import annotations

import re
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from envferry.base.retry import Transient
from envferry.errors import IntegrityError, StoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from envferry.stores.source import ContentSource

# No dot first: that excludes `..`, and leaves hidden names to temporary files and locks.
KEY_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}")


def ignore(done_bytes: int) -> None:
    """Watch no progress."""


FOLDER_TIME = datetime.fromtimestamp(0, timezone.utc)
"""Folders have no time of their own: they are there while a key is below them."""


class KeyTaken(StoreError):
    """The key exists already; what was there is untouched."""

    @classmethod
    def at(cls, key: str, place: str | Path) -> KeyTaken:
        """Return the error for a key of a store, which goes by a URL or a path."""
        return cls(f"{key} exists in {place} and is never overwritten")


class Unreachable(StoreError):
    """The store does not answer, or is out of order: the same call may work later."""


class CannotList(StoreError):
    """The store cannot say what it holds."""


class Incomplete(IntegrityError):
    """Some of a value is not there; to create it again completes it."""


class LostRace(StoreError):
    """The value is no longer the one that was to be replaced; it is untouched."""

    @classmethod
    def at(cls, key: str, place: str | Path) -> LostRace:
        """Return the error for a key of a store, which goes by a URL or a path."""
        message = f"{key} in {place} was changed by another process"
        return cls(message, hint="run the command again")


class Stat(msgspec.Struct, frozen=True, kw_only=True):
    """What a store knows of a key without reading it."""

    size: int
    """Bytes."""
    version: str
    """Changes when the value changes; for `Store.replace` and for nothing else."""
    modified: datetime | None = None
    """When the store got the value, by its own clock and in UTC; None when it does not say."""


class Listed(msgspec.Struct, frozen=True, kw_only=True):
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
        """Return the one entry for all keys below `key`, which ends in a slash."""
        return cls(key=key, size=0, modified=FOLDER_TIME, stamp="")


class KnownRange(msgspec.Struct, frozen=True):
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


class DiskStore(Protocol):
    """A store on a disk of this machine, which can be read in place."""

    @property
    def root(self) -> Path:
        """The directory that the values are in."""
        ...

    @property
    def part_bytes(self) -> int | None:
        """The size above which values lie in parts; None where all are whole."""
        ...

    def read_into(self, key: str, offset: int, memory: memoryview) -> None:
        """Fill memory with a part of a value; raises as `ReadableStore.read` does."""
        ...


class ReadableStore(Protocol):
    """What every store can do, a plain web server too.

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

    @property
    def writable(self) -> Store | None:
        """This store with all that a `Store` does; None where it is only read, by keys."""
        ...

    @property
    def disk(self) -> DiskStore | None:
        """This store with what a disk of this machine offers; None for servers."""
        ...

    @property
    def images(self) -> ImageStore | None:
        """This store with what an OCI registry offers; None where archives are not images."""
        ...

    def stat(self, key: str) -> Stat | None:
        """Return size and version of a value, or None when it does not exist.

        Raises Incomplete for one that the store keeps in parts, and lacks some of.
        """
        ...

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return `length` bytes from `offset` on, or all the rest.

        Never returns fewer than asked for: a short answer is a StoreError, a missing key NotFound.
        """
        ...


class Store(ReadableStore, Protocol):
    """Keys and bytes that are listed, written and removed: in a directory or a bucket.

    Values are created once, whole or not at all: of several writers at the same time exactly one
    wins, and the store sees to it, not the caller. All `create…` raise KeyTaken for the others.
    """

    @property
    def compares_while_sending(self) -> bool:
        """Whether a file is best written by `receive`, which compares it on its way.

        Where not, several may write one key at once by `create_from_file`; it is read before.
        """
        ...

    def create(self, key: str, data: bytes) -> None:
        """Write a small value that does not exist yet."""
        ...

    def create_from_file(
        self, key: str, path: Path, advance: Callable[[int], None] = ignore
    ) -> None:
        """Write a file as a value that does not exist yet; in pieces: its size needs no memory.

        `advance` gets the bytes done.
        """
        ...

    def receive(
        self,
        key: str,
        content: ContentSource,
        advance: Callable[[int], None] = ignore,
        known: Sequence[KnownRange] = (),
    ) -> None:
        """Write a value that does not exist yet while it is read from elsewhere.

        Of what is `known` to be in the store a store may make copies there, and send the rest only.

        It gets its name only when its digests are right; what has arrived when that breaks off
        stays for the next one of the same token.
        """
        ...

    def replace(self, key: str, data: bytes, expected: str | None) -> str:
        """Write a small value if its version is still `expected` (None: it does not exist).

        Returns the new version; raises LostRace when another writer was faster.
        """
        ...

    def list(self, prefix: str = "") -> Iterator[Listed]:
        """Yield all values below `prefix` (empty, or ending in `/`), in no order."""
        ...

    def list_level(self, prefix: str = "") -> Iterator[Listed]:
        """Yield the values right below `prefix`; what lies deeper is one `Listed.folder` each."""
        ...

    def list_unfinished(self, prefix: str = "") -> Iterator[Listed]:
        """Yield what writers began below `prefix` and have not finished.

        The sizes are the bytes that have arrived, the times those at which they began.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove a value; do nothing when it does not exist."""
        ...

    def delete_folder(self, prefix: str) -> None:
        """Make sure that an empty folder is no longer listed."""
        ...

    def delete_unfinished(self, prefix: str, older_seconds: float) -> int:
        """Remove what writers below `prefix` began that long ago and never finished; count it."""
        ...


class SystemImage(Protocol):
    """An image of an operating system, found for the store that environments on it go to."""

    @property
    def shown(self) -> str:
        """What it was called."""
        ...

    @property
    def config(self) -> dict[str, Any]:
        """Its configuration, as OCI images have it."""
        ...

    def put_on(
        self,
        artifact: tuple[str, str, str],
        layer: ContentSource,
        configure: Callable[[str], dict[str, Any]],
        tags: Sequence[str],
        advance: Callable[[int], None] = ignore,
    ) -> tuple[str, ...]:
        """Write an image of its layers and one more, and have tags name it.

        `artifact` is name, platform and id; `configure` gets the new layer's diff id. Returns what
        the image is called.
        """
        ...


class ImageStore(Store, Protocol):
    """A store in an OCI registry, or an image layout: archives are images there, too."""

    def image_digest(self, key: str) -> str | None:
        """Return the digest of the image of an archive; None where it is not there."""
        ...

    def in_layers(self, cuts: tuple[int, ...]) -> Store:
        """Return this store, which writes archives as layers that begin at these offsets, too."""
        ...

    def find_base(self, image: str, platform: str) -> SystemImage:
        """Find an image of an operating system: before anything is sent.

        Raises UsageError for a name that is not one, NotFound where there is none for the platform,
        IntegrityError for what is not an image.
        """
        ...


@contextmanager
def lost_races_as_transient() -> Iterator[None]:
    """Let `persistently` run what is in the block again after a lost race."""
    try:
        yield
    except LostRace as error:
        raise Transient(error) from error


def stat_whole(store: ReadableStore, key: str) -> Stat | None:
    """Return size and version of a value; None also for one that `create` is to complete."""
    try:
        return store.stat(key)
    except Incomplete:
        return None


def check_key(key: str) -> str:
    """Return `key` when every store can hold it and it stays inside; raise UsageError otherwise."""
    if not all(KEY_PART.fullmatch(part) for part in key.split("/")):
        # The key is shown by `repr`: it may hold control characters.
        fault = "a part of it is empty or begins with a character that is not allowed"
        message = f"{key!r} cannot be a key in a registry: {fault}"
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
