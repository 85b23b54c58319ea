"""Share files of other installations with a new one: linked or copied, never changed."""

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
    batches,
    in_parallel,
    open_holding,
)
from envferry.base.direct_io import write_all
from envferry.install.tree.link_mode import Link
from envferry.install.tree.tree_check import WRITE_BITS, is_mode, read_only

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from envferry.archive.index import FileEntry, Index
    from envferry.install.tree.reusable_trees import ReusableTrees

log = logging.getLogger(__name__)

NEW_COPY = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
FICLONE = 0x40049409
"""linux/fs.h: make a file share the blocks of another one."""
# Linux copies 2 GiB less a page at most in one call (MAX_RW_COUNT).
COPY_BYTES = 1 << 30
FULL = (errno.ENOSPC, errno.EDQUOT)
READ_BYTES = 1 << 20


class FileSharer:
    """Verifies candidates and, given a tree to put them in, links or copies them there.

    A candidate is read, unless what it looks like is `known`.
    """

    def __init__(
        self,
        index: Index,
        candidates: Mapping[int, tuple[str, Content]],
        link: Link,
        reusable: ReusableTrees,
        advance: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.index = index
        self.advance = advance
        self.candidates = candidates
        self.link = link
        self.reusable = reusable
        self.known = reusable.known
        self.times = (index.mtime * 10**9,) * 2
        self.linked: list[int] = []
        """The files that are now hard links to those of other trees."""
        self.unknown: list[int] = []
        """The files of which no note that was read says that they are what they were."""

    def verify(self, threads: int = 0) -> set[int]:
        """Return the numbers of the files that the other installations really have."""
        return self.run(None, threads)

    def put_into(self, target: Path, threads: int = 0) -> set[int]:
        """Put files where they belong in a tree whose directories exist; return their numbers."""
        return self.run(str(target), threads)

    def run(self, target: str | None, threads: int) -> set[int]:
        """Do all candidates: those that are known one after the other, the rest in parallel."""
        done: set[int] = set()

        def work(batch: list[int]) -> list[int]:
            self.advance(self.size_of(batch))
            return [number for number in batch if self.take(number, target)]

        self.unknown = list(self.candidates)
        # A copy is made in parallel, of what is found here to be known, too.
        is_copy = target is not None and self.link is not Link.HARDLINK
        linked_into = None if is_copy else target
        # A few short system calls a file: threads would spend more on passing the interpreter's
        # lock to each other.
        while self.known or self.learn_more():
            looked_at, self.unknown = self.unknown, []
            for batch in batches(self.index.files, looked_at):
                known = [number for number in batch if self.take_unread(number, linked_into)]
                if not is_copy:
                    self.advance(self.size_of(known))
                    done.update(known)
            if not self.learn_more():
                break
        rest = [number for number in self.candidates if number not in done]
        for batch in in_parallel(self.index, rest, work, threads):
            done.update(batch)
        return done

    def learn_more(self) -> bool:
        """Whether another installation knows of files that are not known; it is asked now."""
        return self.reusable.learn_more([self.index.files[number] for number in self.unknown])

    def size_of(self, numbers: Iterable[int]) -> int:
        """Return how many bytes files have together."""
        return sum(self.index.files[number].size for number in numbers)

    def take_unread(self, number: int, target: str | None) -> bool:
        """Link a file of known content that needs no change; return whether that was possible.

        Its content is not opened: that would cost more than the link. Without a target it is only
        looked at.
        """
        source, wanted = self.candidates[number]
        try:
            # Held, its inode number cannot become that of another file.
            descriptor = os.open(source, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            before = os.fstat(descriptor)
            is_known = (FileState.of(before), wanted.xxh128) in self.known
            if not is_known:
                self.unknown.append(number)
                return False
            if before.st_size != wanted.size or not stat.S_ISREG(before.st_mode):
                return False
            if target is None:
                return True
            entry = self.index.files[number]
            path = f"{target}/{entry.path}"
            if not self.has_status(before, entry):
                return False
            after = link_held(descriptor, path, before)
            if after is None:
                return False
            # Its ctime is another now, and a further path may have the same content.
            self.known.add((FileState.of(after), wanted.xxh128))
        finally:
            os.close(descriptor)
        self.linked.append(number)
        return True

    def has_status(self, status: os.stat_result, entry: FileEntry) -> bool:
        """Whether a file has the mode and the time that an installed one must have."""
        is_right = is_mode(stat.S_IMODE(status.st_mode), entry.mode)
        return is_right and status.st_mtime_ns == self.times[0]

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
        can_link = self.link is Link.HARDLINK and self.has_status(os.fstat(descriptor), entry)
        if can_link and hard_link(descriptor, source, path):
            return True
        copy = os.open(path, NEW_COPY, entry.mode)
        try:
            if self.link is not Link.REFLINK or not reflink(descriptor, copy):
                copy_content(descriptor, copy, wanted.size)
            # The umask took part when it was made, and each write has set the time.
            os.fchmod(copy, entry.mode)
            os.utime(copy, ns=self.times)
        finally:
            os.close(copy)
        return False


def link_held(descriptor: int, path: str, before: os.stat_result) -> os.stat_result | None:
    """Give a file another name, and no write bits; return what the system says of it then.

    None where that cannot be, and nothing is left at `path`. `descriptor` may be of O_PATH,
    `before` is what it said. The file is reached by its descriptor alone: what its name leads to by
    now does not matter.
    """
    held, mode = f"/proc/self/fd/{descriptor}", stat.S_IMODE(before.st_mode)
    if not protect(held, mode):
        return None
    try:
        # A path from the root needs no directory, but without one Python calls link(2), which
        # follows no links.
        os.link(held, path, src_dir_fd=descriptor)
    except OSError:
        # With another name, another process has linked it meanwhile: then it stays read-only.
        if mode & WRITE_BITS and os.fstat(descriptor).st_nlink == 1:
            os.chmod(held, mode)  # noqa: PTH101
        return None
    after = os.fstat(descriptor)
    # Else it was written to since it was looked at.
    if (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size):
        return after
    os.unlink(path)  # noqa: PTH108
    return None


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


def protect(file: int | str, mode: int) -> bool:
    """Make a file, open or by its path, read-only; return False where this user may not."""
    if mode & WRITE_BITS:
        try:
            os.chmod(file, read_only(mode))  # noqa: PTH101
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
