"""Files of other installations that hold what a new one needs."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import tempfile
from typing import TYPE_CHECKING

from envferry.archive.contents import (
    Content,
    FileState,
    HeldFile,
    expected_content,
    in_parallel,
    lost_directories,
    open_holding,
)
from envferry.base.direct_io import write_all
from envferry.install.tree.link_mode import Link
from envferry.install.tree.tree_check import WRITE_BITS, is_mode, read_only

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Mapping
    from pathlib import Path

    from envferry.archive.index import Index
    from envferry.archive.prefixes import Relocation

log = logging.getLogger(__name__)

NEW_COPY = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
FICLONE = 0x40049409
"""linux/fs.h: make a file share the blocks of another one."""
COPY_BYTES = 1 << 30
FULL = (errno.ENOSPC, errno.EDQUOT)
READ_BYTES = 1 << 20


class ReusableTrees:
    """What installed trees have to offer, by content."""

    def __init__(self) -> None:
        self.places: dict[tuple[str, bool], tuple[str, Content]] = {}
        self.known: set[tuple[FileState, str]] = set()
        """What files looked like when they held what their installation says."""

    def offer(
        self, root: str, index: Index, edited: Mapping[str, Content], *, same_prefixes: bool
    ) -> None:
        """Offer the files of an installed tree; the first tree that has a content gives it.

        Edited files are offered only where both prefixes, of the build and of the place, are those
        of the new installation.
        """
        lost = lost_directories(root, index)
        for entry in index.files:
            is_edited = entry.path in edited
            if entry.path.rpartition("/")[0] in lost:
                continue
            if entry.size and (same_prefixes or not is_edited):
                place = (f"{root}/{entry.path}", expected_content(entry, edited))
                self.places.setdefault((entry.xxh128, is_edited), place)

    def candidates(
        self, index: Index, relocation: Relocation, present: Collection[int] = ()
    ) -> dict[int, tuple[str, Content]]:
        """Return, by file number, who offers what is not present."""
        found = {}
        for number, entry in enumerate(index.files):
            if entry.size and number not in present:
                place = self.places.get((entry.xxh128, relocation.changes(entry)))
                if place:
                    found[number] = place
        return found


class FileSharer:
    """Verifies candidates and, given a tree to put them in, links or copies them there.

    A candidate is read, unless what it looks like is `known`.
    """

    def __init__(
        self,
        index: Index,
        candidates: Mapping[int, tuple[str, Content]],
        link: Link,
        advance: Callable[[int], None] = lambda count: None,
        known: Container[tuple[FileState, str]] = (),
    ) -> None:
        self.index = index
        self.advance = advance
        self.candidates = candidates
        self.link = link
        self.known = known
        self.times = (index.mtime * 10**9,) * 2
        self.linked: list[int] = []
        """The files that are now hard links to those of other trees."""

    def verify(self, threads: int = 0) -> set[int]:
        """Return the numbers of the files that the other installations really have."""
        return self.run(None, threads)

    def put_into(self, target: Path, threads: int = 0) -> set[int]:
        """Put files where they belong in a tree whose directories exist; return their numbers."""
        return self.run(str(target), threads)

    def run(self, target: str | None, threads: int) -> set[int]:
        """Do all candidates in parallel."""

        def work(batch: list[int]) -> list[int]:
            self.advance(sum(self.index.files[number].size for number in batch))
            return [number for number in batch if self.take(number, target)]

        done: set[int] = set()
        for batch in in_parallel(self.index, self.candidates, work, threads):
            done.update(batch)
        return done

    def take(self, number: int, target: str | None) -> bool:
        """Verify one file and put it in its place; return whether it is what it must be."""
        source, wanted = self.candidates[number]
        held = open_holding(source, wanted, self.known)
        if held is None:
            return False
        try:
            path = f"{target}/{self.index.files[number].path}"
            return target is None or self.place(held, number, path)
        finally:
            os.close(held.descriptor)

    def place(self, held: HeldFile, number: int, path: str) -> bool:
        """Bring one verified file to its path, sharing what may be shared.

        Returns False, and leaves nothing there, when it was written to after it was verified: the
        file then comes from the archive.
        """
        is_linked = self.bring(held.descriptor, number, path)
        # What was verified and what was copied must be the same bytes.
        has_size = os.lstat(path).st_size == self.candidates[number][1].size
        if held.was_written_to or not has_size:
            os.unlink(path)  # noqa: PTH108
            return False
        if is_linked:
            self.linked.append(number)
        return True

    def bring(self, descriptor: int, number: int, path: str) -> bool:
        """Link or copy one open file to a path; return whether it is a hard link."""
        (source, wanted), entry = self.candidates[number], self.index.files[number]
        status = os.fstat(descriptor)
        same_status = (
            is_mode(stat.S_IMODE(status.st_mode), entry.mode)
            and status.st_mtime_ns == self.times[0]
        )
        if self.link is Link.HARDLINK and same_status and hard_link(descriptor, source, path):
            return True
        copy = os.open(path, NEW_COPY, entry.mode)
        try:
            if self.link is not Link.REFLINK or not reflink(descriptor, copy):
                copy_content(descriptor, copy, wanted.size)
            os.fchmod(copy, entry.mode)
            os.utime(copy, ns=self.times)
        finally:
            os.close(copy)
        return False


def hard_link(descriptor: int, source: str, path: str) -> bool:
    """Give an open file, known as `source`, a second name; return False where that cannot be.

    It becomes read-only first: who writes into it would change every tree that has it.
    Why it cannot be is of no interest: file systems and sandboxes have many words for it, and
    another process may remove the first name meanwhile. A copy then fails with what is wrong.
    """
    before = stat.S_IMODE(os.fstat(descriptor).st_mode)
    if not protect(descriptor, before):
        return False
    try:
        os.link(source, path, follow_symlinks=False)
    except OSError:
        # With another name, another process has linked it meanwhile: then it stays read-only.
        if before & WRITE_BITS and os.fstat(descriptor).st_nlink == 1:
            os.fchmod(descriptor, before)
        return False
    # Another file may have come to that name since it was opened.
    if os.path.samestat(os.lstat(path), os.fstat(descriptor)):
        return True
    os.unlink(path)  # noqa: PTH108
    return False


def protect(descriptor: int, mode: int) -> bool:
    """Make an open file read-only; return False where this user may not."""
    if mode & WRITE_BITS:
        try:
            os.fchmod(descriptor, read_only(mode))
        except OSError as error:
            log.debug("a file stays writable, so it is not shared: %s", error)
            return False
    return True


def reflink(descriptor: int, copy: int) -> bool:
    """Make an empty file share the blocks of another; return False where that cannot be."""
    try:
        fcntl.ioctl(copy, FICLONE, descriptor)
    except OSError:
        return False
    return True


def copy_content(descriptor: int, copy: int, size: int) -> None:
    """Copy `size` bytes of a file, inside the kernel where that can be; fewer only at its end."""
    done = 0
    try:
        while done < size:
            count = os.copy_file_range(descriptor, copy, min(size - done, COPY_BYTES), done, done)
            if count == 0:
                break
            done += count
    except OSError as error:
        # A full disk is full for every other way of copying.
        if error.errno in FULL:
            raise
    # Some kernels and file systems cannot, others say that there is nothing: reading tells.
    while done < size and (content := os.pread(descriptor, min(size - done, READ_BYTES), done)):
        write_all(copy, memoryview(content), done)
        done += len(content)


def choose_link(directory: Path, wanted: Link) -> Link:
    """Return how files get into a tree in `directory` from others on the same file system.

    `auto` shares blocks where the file system can, else gives files a second name. Tried with an
    empty file, because no file system says what it can do.
    """
    if wanted is not Link.AUTO:
        return wanted
    with (
        tempfile.TemporaryFile(dir=directory) as source,
        tempfile.TemporaryFile(dir=directory) as copy,
    ):
        return Link.REFLINK if reflink(source.fileno(), copy.fileno()) else Link.HARDLINK
