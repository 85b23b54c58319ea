"""From frames to files in place: one pass, in parallel."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from concurrent.futures import FIRST_EXCEPTION, wait
from typing import TYPE_CHECKING

import msgspec
from xxhash import xxh3_128_hexdigest

from envferry.archive.contents import Content, checksum
from envferry.archive.tar import END_OF_ARCHIVE, has_header
from envferry.base.direct_io import BLOCK_BYTES, ThreadMemory, write_all, write_direct
from envferry.base.workers import Workers
from envferry.base.write_back import flushing
from envferry.errors import HostError, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from envferry.archive.index import FileEntry, Index
    from envferry.archive.install_journal import InstallJournal
    from envferry.archive.members import Piece
    from envferry.archive.prefixes import Relocation
    from envferry.archive.reader import Archive

# O_EXCL finds two paths that the file system takes for one (case, Unicode).
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Opened for each frame and read for its edits; an interrupted install may have begun it.
PART_OF_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
FEWEST_THREADS = 4
"""While one waits for a registry or for the disk, another decompresses."""
RUN_BYTES = 16 << 20
"""What is read at once: a registry answers a few long requests faster than many short ones."""
TOP_MODE = 0o755
"""The directory that holds a tree is one like those in it."""
RUNS_PER_THREAD = 8
"""At least, so that none works long when the others have ended."""


class ExtractOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a tree is written, and what of it is not."""

    relocation: Relocation
    threads: int = 0
    """0: as many as there are cores, and a few at least."""
    present: Collection[int] = ()
    """The numbers of the files that already exist."""
    done_frames: Collection[int] = ()
    """The frames whose part of a large file already exists."""
    journal: InstallJournal | None = None
    has_directories: bool = False
    """All directories of the tree already exist."""


def needed_frames(
    archive: Archive, present: Collection[int], done_frames: Collection[int] = ()
) -> list[int]:
    """Return the numbers of the frames that hold content which is not there yet.

    Directories, links and empty files are made out of the index alone. The last frame, a few
    bytes, is always read: the tar stream must end where the index says.
    """

    def is_needed(number: int) -> bool:
        pieces = archive.plans[number].pieces
        if not pieces or len(present) == 0:
            return number not in done_frames
        return number not in done_frames and any(
            piece.length and piece.member not in present for piece in pieces
        )

    return [number for number in range(len(archive.plans)) if is_needed(number)]


def extract_tree(
    archive: Archive, target: Path, *, options: ExtractOptions, advance: Callable[[int], None]
) -> dict[str, Content]:
    """Write the tree of an archive into the directory `target` and flush it to the disk.

    Each frame is read, checked, decompressed and written by one thread; prefixes are edited on
    the way. Returns what the edited files hold now, by path. `advance` is told the bytes of the
    tar stream as they are done. Raises IntegrityError for damaged bytes and HostError when the
    file system refuses, leaving a partial tree.
    """
    # Before the first file: a prefix that does not fit must not leave a partial tree behind.
    options.relocation.check(archive.index)
    threads = options.threads or max(os.cpu_count() or 1, FEWEST_THREADS)
    extraction = Extraction(archive, target, options)
    try:
        # Once more at its end: the rename that follows must not reach the disk earlier than the
        # files do.
        with flushing(str(target)):
            if not options.has_directories:
                make_directories(archive.index, str(target))
            extraction.make_links_and_empty_files()
            extraction.write_frames(threads, advance)
            extraction.finish()
    # Paths in an index are unique, and NEW_FILE has O_EXCL: the file system takes two for one.
    except FileExistsError as error:
        message = (
            f"two files of {archive.name} have the same name on this file system: {error.filename}"
        )
        hint = "install on a case-sensitive file system"
        raise IntegrityError(message, hint=hint) from error
    except OSError as error:
        raise cannot_write(error, target) from error
    return extraction.edited


class Extraction:
    """One archive on its way into one directory."""

    def __init__(self, archive: Archive, target: Path, options: ExtractOptions) -> None:
        self.archive = archive
        self.files = archive.index.files
        self.root = str(target)
        self.relocation = options.relocation
        self.present = options.present
        self.done_frames = options.done_frames
        self.journal = options.journal
        # A frame's memory serves for the thread's next one: new memory would have to be cleared.
        largest = max(frame.tar_size for frame in archive.index.frames)
        self.memory = ThreadMemory(largest + BLOCK_BYTES)
        self.edited: dict[str, Content] = {}
        self.times = (archive.index.mtime * 10**9,) * 2

    def make_links_and_empty_files(self) -> None:
        """Make links and empty files, which need nothing but the index."""
        for number, entry in enumerate(self.files):
            if entry.type == "symlink":
                self.make_link(entry)
            elif entry.type == "file" and not entry.size and number not in self.present:
                descriptor = os.open(f"{self.root}/{entry.path}", NEW_FILE, entry.mode)
                try:
                    self.finish_file(descriptor, entry)
                finally:
                    os.close(descriptor)

    def write_frames(self, threads: int, advance: Callable[[int], None]) -> None:
        """Write what all frames hold that is not there yet."""
        numbers = needed_frames(self.archive, self.present, self.done_frames)
        size = sum(self.archive.index.frames[number].size for number in numbers)
        run_bytes = min(RUN_BYTES, size // (RUNS_PER_THREAD * threads))
        with Workers(threads, "install") as pool:
            runs = [
                pool.submit(self.write_run, run, advance)
                for run in self.archive.cut_runs(numbers, run_bytes)
            ]
            # What has not begun when one fails is given up with the pool.
            finished, _ = wait(runs, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()

    def write_run(self, numbers: Sequence[int], advance: Callable[[int], None]) -> None:
        """Read frames that follow each other at once and write what they hold."""
        frames = self.archive.read_run(numbers, self.memory_for)
        for number, raw in zip(numbers, frames, strict=True):
            self.write_frame(number, raw)
            advance(len(raw))

    def memory_for(self, number: int) -> memoryview:
        """Return memory for a frame: what the thread's last one was in.

        The first piece's content lies on a page, behind its header: it can be written from there.
        """
        pieces = self.archive.plans[number].pieces
        lead = -pieces[0].header_size % BLOCK_BYTES if pieces else 0
        size = self.archive.index.frames[number].tar_size
        return self.memory.of_this_thread()[lead : lead + size]

    def write_frame(self, number: int, raw: memoryview) -> None:
        """Write what a frame holds."""
        plan = self.archive.plans[number]
        position = 0
        for piece in plan.pieces:
            entry = self.files[piece.member]
            content = position + piece.header_size
            end = content + piece.length
            is_padded = raw[end : end + piece.padding] == bytes(piece.padding)
            # Every byte that is not content is compared, so that `tar` extracts the tree that is
            # written here.
            is_header = has_header(bytes(raw[position:content]), entry, self.archive.index.mtime)
            if not (is_header and is_padded):
                raise self.archive.damaged(
                    number, f"the tar stream does not match the index at {entry.path!r}"
                )
            if piece.length and piece.member not in self.present:
                self.write_piece(entry, piece, raw[content:end])
                # Noted after the write: a kill in between costs one frame. A frame that holds more
                # than a part of one large file has no single checksum to resume by.
                if piece.length != entry.size and self.journal and len(plan.pieces) == 1:
                    self.journal.note_frame(number, xxh3_128_hexdigest(raw[content:end]))
            position = end + piece.padding
        if not plan.pieces and raw != END_OF_ARCHIVE:
            raise self.archive.damaged(number, "the tar stream does not end at its last frame")

    def write_piece(self, entry: FileEntry, piece: Piece, content: memoryview) -> None:
        """Write a file, or the part of a large one that a frame holds."""
        is_whole = piece.length == entry.size
        descriptor = os.open(
            f"{self.root}/{entry.path}", NEW_FILE if is_whole else PART_OF_FILE, entry.mode
        )
        try:
            # Not compared with its own checksum: the BLAKE3 of its frames vouches for it.
            if not is_whole:
                write_direct(descriptor, content, piece.start)
                return
            if xxh3_128_hexdigest(content) != entry.xxh128:
                message = f"{entry.path!r} in {self.archive.name} does not match the index"
                raise IntegrityError(message, hint="copy or fetch the archive again")
            if self.relocation.changes(entry):
                content = memoryview(self.relocation.edit(bytes(content), entry))
                # The index knows only the content under the built prefix: from here on, this is
                # what is verified.
                held = Content(len(content), xxh3_128_hexdigest(content))
                write_all(descriptor, content, 0)
                self.note_edited(piece.member, held)
            else:
                write_all(descriptor, content, 0)
            self.finish_file(descriptor, entry)
        finally:
            os.close(descriptor)

    def note_edited(self, number: int, content: Content) -> None:
        """Note what a file holds that is not as the archive has it."""
        self.edited[self.files[number].path] = content
        if self.journal:
            self.journal.note_edited(number, content)

    def finish_file(self, descriptor: int, entry: FileEntry) -> None:
        """Set what a complete file has besides its content."""
        # Whatever the umask, or the access list that a directory gives to what is made in it, says.
        os.fchmod(descriptor, entry.mode)
        os.utime(descriptor, ns=self.times)

    def make_link(self, entry: FileEntry) -> None:
        """Make a symbolic link; one that holds the prefix follows it."""
        path = f"{self.root}/{entry.path}"
        os.symlink(self.relocation.move_link(entry.link), path)  # noqa: PTH211
        os.utime(path, ns=self.times, follow_symlinks=False)

    def finish(self) -> None:
        """Finish large files and directories."""
        # Only a file of several frames has a piece behind its first one.
        large = {
            piece.member for plan in self.archive.plans for piece in plan.pieces if piece.start
        }
        for number in sorted(large.difference(self.present)):
            self.finish_large_file(number)
        # Directories last: each name that is made in one gives it another time.
        for entry in reversed(self.files):
            if entry.type == "directory":
                path = f"{self.root}/{entry.path}"
                os.chmod(path, entry.mode)  # noqa: PTH101
                os.utime(path, ns=self.times)
        os.chmod(self.root, TOP_MODE)  # noqa: PTH101

    def finish_large_file(self, number: int) -> None:
        """Edit the prefixes of a file of several frames, now that it is complete."""
        entry = self.files[number]
        descriptor = os.open(f"{self.root}/{entry.path}", PART_OF_FILE)
        try:
            # An interrupted install may have left it longer than it is.
            os.ftruncate(descriptor, entry.size)
            if self.relocation and entry.edits and entry.edits.text:
                # Mapped: one read(2) of Linux returns 2 GiB at most.
                with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as mapped:
                    edited = self.relocation.edit(mapped[:], entry)
                write_all(descriptor, memoryview(edited), 0)
                os.ftruncate(descriptor, len(edited))
            elif self.relocation and entry.edits:
                # Strings keep their places: a library of gigabytes need not be read whole.
                with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as mapped:
                    for offset, replacement in self.relocation.replacements(mapped, entry):
                        write_all(descriptor, memoryview(replacement), offset)
            if self.relocation.changes(entry):
                # The frames were edited in place, so only the file itself tells what it holds now.
                self.note_edited(number, checksum(descriptor))
            self.finish_file(descriptor, entry)
        finally:
            os.close(descriptor)


def make_directories(index: Index, root: str) -> None:
    """Make all directories of a tree that are not there, parents first."""
    paths = [entry.path for entry in index.files if entry.type == "directory"]
    for path in sorted(paths):
        target = f"{root}/{path}"
        try:
            # The umask may take bits away; `finish` sets the exact modes.
            os.mkdir(target, 0o755)  # noqa: PTH102  (43,000 Path objects cost 0.2 s)
        except FileExistsError:
            # Not by way of a link either: all that belongs in it would be written elsewhere.
            if not stat.S_ISDIR(os.lstat(target).st_mode):
                raise


def cannot_write(error: OSError, target: Path) -> HostError:
    """Describe why the tree could not be written."""
    place = error.filename or target
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        message = f"no space left (or quota reached) while writing {place}"
        return HostError(message, hint="free some space on that file system, then run it again")
    message = f"cannot write {place}: {error.strerror}"
    return HostError(message, hint="check that this user can write there")
