"""A registry in a directory: a disk, a network share, a USB stick."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar

import msgspec
import xxhash

from envferry.base.files import (
    exclusive_lock,
    open_in_folder,
    sync_directory,
    write_bytes,
)
from envferry.base.limits import require_sane
from envferry.errors import HostError, IntegrityError, NotFound, PipelineError, StoreError
from envferry.stores.directory_files import (
    copy_stream,
    list_folder,
    listed,
    modified_time,
    raise_unless_missing,
    read_fully,
    remove_if_empty,
    stamp_of,
    status_of,
)
from envferry.stores.partial import PartialFile
from envferry.stores.port import (
    KeyTaken,
    Listed,
    LostRace,
    Stat,
    check_key,
    check_prefix,
    ignore,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from envferry.stores.port import KnownRange
    from envferry.stores.source import ContentSource


LOCK_NAME = ".lock"
REPLACEABLE_BYTES = 1 << 16
"""Up to here a version is the content's hash; larger values are write-once."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
# EPERM is Linux's answer on file systems without hard links (link(2)); EMLINK: the file has as
# many names as the file system allows.
NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class DirectoryStore(msgspec.Struct, frozen=True):
    """A `Store` in a directory; the first write makes it."""

    compares_while_sending: ClassVar[bool] = False
    """`receive` holds a lock: of two pushes of one archive, the second would fail."""
    images: ClassVar[None] = None
    """It keeps values, not images."""
    part_bytes: ClassVar[None] = None
    """Values are whole."""

    root: Path

    @property
    def url(self) -> str:
        """The path of the directory."""
        return str(self.root)

    @property
    def place(self) -> str:
        """The path from the root of the file system."""
        return str(self.root.resolve())

    def stat(self, key: str) -> Stat | None:
        """Return size and version of a file, or None when it does not exist."""
        path = self._path(key)
        with self._explained(key):
            try:
                status = path.stat()
                # Large values are created once and never replaced: their stamp will do.
                size, version = status.st_size, stamp_of(status)
                if size <= REPLACEABLE_BYTES:
                    with self._opened(key) as descriptor:
                        data = read_fully(descriptor, 0, REPLACEABLE_BYTES + 1)
                    # Both of the bytes that were read: the file may have been replaced since.
                    size, version = len(data), xxhash.xxh3_128_hexdigest(data)
            except (FileNotFoundError, NotADirectoryError):
                return None
        return Stat(size=size, version=version, modified=modified_time(status))

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a part of a file."""
        with self._explained(key), self._opened(key) as descriptor:
            size = os.fstat(descriptor).st_size
            wanted = max(size - offset, 0) if length is None else length
            if length is None:
                require_sane(wanted, key, self.url)
            data = read_fully(descriptor, offset, wanted)
        if len(data) != wanted:
            raise self._cut_off(key, size, offset + wanted)
        return data

    def read_into(self, key: str, offset: int, memory: memoryview) -> None:
        """Fill memory with a part of a file, and let the disk fetch as much again."""
        with self._explained(key), self._opened(key) as descriptor:
            # A read may return less than was asked for (read(2)): hence the loop.
            size, filled = os.fstat(descriptor).st_size, 0
            # The next piece is read from the disk while this one is hashed.
            os.posix_fadvise(descriptor, offset + len(memory), len(memory), os.POSIX_FADV_WILLNEED)
            while filled < len(memory):
                count = os.preadv(descriptor, [memory[filled:]], offset + filled)
                if not count:
                    raise self._cut_off(key, size, offset + len(memory))
                filled += count

    @property
    def writable(self) -> DirectoryStore:
        """Itself."""
        return self

    @property
    def disk(self) -> DirectoryStore:
        """Itself."""
        return self

    def create(self, key: str, data: bytes) -> None:
        """Write to a temporary name beside the file, then give it its name if that is free."""
        with self._explained(key):
            self._create(key, BytesIO(data), ignore)

    def create_from_file(
        self, key: str, path: Path, advance: Callable[[int], None] = ignore
    ) -> None:
        """Copy to a temporary name beside the file."""
        with self._explained(key), path.open("rb") as source:
            self._create(key, source, advance)

    def receive(
        self,
        key: str,
        content: ContentSource,
        advance: Callable[[int], None] = ignore,
        known: Sequence[KnownRange] = (),
    ) -> None:
        """Write what arrives to a hidden file, and name it when it is what it must be."""
        path = self._path(key)
        with self._explained(key):
            if path.exists():
                raise KeyTaken.at(key, self.root)
            self._receive(content, key, advance)

    def replace(self, key: str, data: bytes, expected: str | None) -> str:
        """Compare and swap under the directory's lock file."""
        with self._explained(key), self._locked():
            found = self.stat(key)
            if (found.version if found else None) != expected:
                raise LostRace.at(key, self.root)
            # By rename: readers, who take no lock, see the old value or the new one.
            write_bytes(self._path(key), data, mode=None)
        return xxhash.xxh3_128_hexdigest(data)

    def list(self, prefix: str = "") -> Iterator[Listed]:
        """Yield the files below `prefix`; hidden ones (temporary files, the lock) are not keys."""
        top = self._top(prefix)
        with self._explained(prefix):
            for folder, inner, names in os.walk(top, onerror=raise_unless_missing):
                # In place: os.walk descends into what is left in the list.
                inner[:] = [name for name in inner if not name.startswith(".")]
                inside = Path(folder).relative_to(self.root)
                for name in sorted(names):
                    if not name.startswith(".") and (found := status_of(Path(folder, name))):
                        yield listed((inside / name).as_posix(), found)

    def list_level(self, prefix: str = "") -> Iterator[Listed]:
        """Yield the files and directories right below `prefix`."""
        top = self._top(prefix)
        with self._explained(prefix):
            yield from list_folder(top, prefix)

    def list_unfinished(self, prefix: str = "") -> Iterator[Listed]:
        """Yield the temporary files of writers that run, or died."""
        top = self._top(prefix)
        with self._explained(prefix):
            yield from self._unfinished(top)

    def delete(self, key: str) -> None:
        """Remove a file, and the directories that are empty then."""
        self._remove(self._path(key), key)

    def delete_folder(self, prefix: str) -> None:
        """Do nothing more: a directory goes with the last file in it."""
        check_prefix(prefix)

    def delete_unfinished(self, prefix: str, older_seconds: float) -> int:
        """Remove temporary files that dead writers left."""
        before = time.time() - older_seconds
        found = list(self.list_unfinished(prefix))
        dead = [one for one in found if one.modified.timestamp() <= before]
        for one in dead:
            # Not `delete`: the names are hidden, and no keys.
            self._remove(self.root / one.key, prefix)
        return len(dead)

    def _top(self, prefix: str) -> Path:
        """Return the directory of a prefix; raise NotFound when the whole registry is not there."""
        top = self.root / check_prefix(prefix)
        self._require_root()
        return top

    def _create(self, key: str, source: BinaryIO, advance: Callable[[int], None]) -> None:
        path = self._path(key)
        # In the same directory, for links do not leave a file system; hidden, so no key yet.
        temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
        # A look first spares the copy; `_link` decides who wins.
        if path.exists():
            raise KeyTaken.at(key, self.root)
        try:
            with open_in_folder(temporary, "xb") as target:
                copy_stream(source, target, advance)
                target.flush()
                # On the disk before it has its name: a value that is there is never rewritten.
                os.fsync(target.fileno())
            self._link(temporary, path, key)
        finally:
            # After `link` that was its second name.
            temporary.unlink(missing_ok=True)
        sync_directory(path.parent)

    def _unfinished(self, top: Path) -> Iterator[Listed]:
        """Yield the temporary files of writers that run, or died."""
        for folder, _, names in os.walk(top, onerror=raise_unless_missing):
            for name in names:
                path = Path(folder, name)
                if name.startswith(".") and name != LOCK_NAME and (found := status_of(path)):
                    yield listed(path.relative_to(self.root).as_posix(), found)

    def _remove(self, path: Path, key: str) -> None:
        with self._explained(key):
            path.unlink(missing_ok=True)
            for parent in path.parents:
                # A writer that was about to use such a folder makes it again (`open_in_folder`).
                if parent == self.root or not remove_if_empty(parent):
                    break

    @contextmanager
    def _opened(self, key: str) -> Iterator[int]:
        """Open a file to read it; raise IntegrityError for a pipe or a device: it may never end."""
        path = self._path(key)
        # O_NONBLOCK: to open a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            if not stat.S_ISREG(mode):
                message = f"{path} is a pipe or a device, not a file"
                raise IntegrityError(
                    message, hint="remove it; copy or push again what belongs there"
                )
            yield descriptor
        finally:
            os.close(descriptor)

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def _cut_off(self, key: str, size: int, expected: int) -> StoreError:
        message = f"{self.root / key} has {size} bytes, {expected} are expected"
        return StoreError(message, hint="the file is cut off: copy or push it again")

    def _receive(self, content: ContentSource, key: str, advance: Callable[[int], None]) -> None:
        """Write what arrives to a hidden file, and name it when it is what it must be."""
        path = self._path(key)
        partial = PartialFile.of(path, content)
        # The lock is taken before the pieces are read: a second run must not write the same file.
        with exclusive_lock(partial.journal, key), partial.opened():
            partial.reserve(content.name)
            partial.receive(content, advance)
            # Where the disk has no room for the name, the pieces stay.
            try:
                self._link(partial.path, path, key)
            except KeyTaken:
                partial.pieces.clear()
                raise
            # With none left to keep, `opened` removes the partial file and the journal.
            partial.pieces.clear()
        sync_directory(path.parent)

    def _link(self, temporary: Path, path: Path, key: str) -> None:
        """Name a finished file, atomically and without overwriting.

        FAT, exFAT and some network shares have no hard links: there the lock file keeps other
        envferry processes away between the look and the rename.
        """
        try:
            os.link(temporary, path)
        except FileExistsError as error:
            raise KeyTaken.at(key, self.root) from error
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            with self._locked():
                if path.exists():
                    raise KeyTaken.at(key, self.root) from error
                temporary.rename(path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        # Never removed: those who wait for it would hold a lock that newcomers do not see.
        descriptor = os.open(self.root / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _require_root(self) -> None:
        if self.root.exists() and not self.root.is_dir():
            message = f"the registry {self.root} is a file, not a directory"
            raise NotFound(message, hint="name a directory with --registry or ENVFERRY_REGISTRY")
        if not self.root.is_dir():
            message = f"the registry {self.root} does not exist"
            hint = (
                "name one with --registry or ENVFERRY_REGISTRY: if it is a disk, is it mounted? "
                "`envferry push ARCHIVE` makes a new one"
            )
            raise NotFound(message, hint=hint)

    @contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        """Turn the system's errors into ours."""
        try:
            yield
        except FileNotFoundError as error:
            self._require_root()
            message = f"{key} is not in the registry {self.root}"
            raise NotFound(message, hint="run `envferry ls` to see what is") from error
        except OSError as error:
            raise self._explain(error, key) from error

    def _explain(self, error: OSError, key: str) -> PipelineError:
        reason = error.strerror or str(error)
        message = f"registry {self.root}: {key}: {reason}"
        if error.errno in NO_SPACE:
            return HostError(message, hint=f"free space under {self.root}, then run it again")
        if error.errno in NO_PERMISSION:
            return StoreError(message, hint=f"check the permissions of {self.root}")
        return StoreError(message, hint=f"check that {self.root} is a directory and its disk works")
