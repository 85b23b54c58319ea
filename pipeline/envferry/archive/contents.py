"""What the files of a tree must contain, and reading them to see whether they do."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from threading import local
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import xxhash

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

    from envferry.archive.index import FileEntry, Index

READ_BYTES = 1 << 20
BATCH_FILES = 128
BATCH_BYTES = 8 << 20
READ_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""O_NONBLOCK: where a pipe stands in the place of a file, do not wait for a writer."""

T = TypeVar("T")
# Each thread uses one buffer for all its files: a new one would have to be cleared first.
buffers = local()


class Content(NamedTuple):
    """What a file holds."""

    size: int
    """Bytes."""
    xxh128: str


class FileState(NamedTuple):
    """What tells, without reading it, that a file was not written to since."""

    device: int
    inode: int
    size: int
    """Bytes."""
    mtime_ns: int
    ctime_ns: int

    @property
    def note(self) -> tuple[int, int]:
        """What is not known from elsewhere: inode and ctime."""
        return self.inode, self.ctime_ns

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        """Take it from what the system says of a file."""
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )


def expected_content(entry: FileEntry, edited: Mapping[str, Content]) -> Content:
    """Return what an installed file must hold: what the archive has, unless it was edited."""
    return edited.get(entry.path) or Content(entry.size, entry.xxh128)


def checksum(descriptor: int) -> Content:
    """Read an open file from its start; return its size and XXH3-128."""
    if not hasattr(buffers, "view"):
        buffers.view = memoryview(bytearray(READ_BYTES))
    view: memoryview = buffers.view
    # At explicit offsets: the position of the open file neither matters nor moves.
    count = os.preadv(descriptor, [view], 0)
    if count < READ_BYTES:
        # Less than asked for at the start of a regular file: that is all of it.
        return Content(count, xxhash.xxh3_128_hexdigest(view[:count]))
    digest, size = xxhash.xxh3_128(), 0
    while count:
        digest.update(view[:count])
        size += count
        count = os.preadv(descriptor, [view], size)
    return Content(size, digest.hexdigest())


class HeldFile(NamedTuple):
    """An open file that held what was wanted when it looked so."""

    descriptor: int
    state: FileState
    """From before it was read."""

    @property
    def was_written_to(self) -> bool:
        """Whether it may hold something else meanwhile.

        Links and modes change the ctime as well, so the mtime decides.
        """
        return os.fstat(self.descriptor).st_mtime_ns != self.state.mtime_ns


def open_holding(
    path: str, wanted: Content, known: Container[tuple[FileState, str]] = ()
) -> HeldFile | None:
    """Open the regular file that holds what is wanted; return None where none does.

    It is read, unless what it looks like, with the XXH3-128 that is wanted, is `known`.
    """
    try:
        descriptor = os.open(path, READ_FILE)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        state = FileState.of(status)
        # The size first: where it is another one, nothing has to be read.
        has_size = stat.S_ISREG(status.st_mode) and status.st_size == wanted.size
        # State and checksum together: a known file may still not be the one that is wanted here.
        is_right = has_size and ((state, wanted.xxh128) in known or checksum(descriptor) == wanted)
    # With a result the descriptor is the caller's to close; without one, not even Ctrl-C leaks it.
    except BaseException:
        os.close(descriptor)
        raise
    if is_right:
        return HeldFile(descriptor, state)
    os.close(descriptor)
    return None


def lost_directories(root: str, index: Index) -> set[str]:
    """Return the paths of an index's directories that a tree has not, or not as directories.

    What is found below such a path, behind a symbolic link for example, is not in the tree. The
    path of the tree itself is empty.
    """
    lost = set() if is_directory(root) else {""}
    paths = (entry.path for entry in index.files if entry.type == "directory")
    # Sorted, a directory comes before what is in it: one that is lost takes all below along.
    for path in sorted(paths):
        if path.rpartition("/")[0] in lost or not is_directory(f"{root}/{path}"):
            lost.add(path)
    return lost


def is_directory(path: str) -> bool:
    """Whether a path is a directory itself, not a link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def batches(files: Sequence[FileEntry], numbers: Iterable[int]) -> Iterator[list[int]]:
    """Cut a run of files into batches: to start a task costs as much as to read a small file."""
    batch: list[int] = []
    size = 0
    for number in numbers:
        batch.append(number)
        size += files[number].size
        if len(batch) == BATCH_FILES or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def in_parallel(
    index: Index, numbers: Iterable[int], work: Callable[[list[int]], T], threads: int = 0
) -> Iterator[T]:
    """Yield `work(batch)` for batches of file numbers, done by many threads, large files first."""
    files = index.files
    ordered = list(numbers)
    large = [number for number in ordered if files[number].size >= BATCH_BYTES]
    small = [number for number in ordered if files[number].size < BATCH_BYTES]
    # A large file that begins last would keep one thread at work when all others have ended.
    large.sort(key=lambda number: -files[number].size)
    with ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="files") as pool:
        try:
            yield from pool.map(work, batches(files, [*large, *small]))
        finally:
            # Who stops taking results, by an error or Ctrl-C, does not wait for the rest.
            pool.shutdown(wait=True, cancel_futures=True)
