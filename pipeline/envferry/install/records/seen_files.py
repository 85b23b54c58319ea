"""Which files of an installation are still those whose content was known last.

`ID.seen` beside the record has inode and ctime of each file, taken when its content had just been
written or compared. A file of which device, inode, size, modification time and ctime are the same
has not been written to since: no program can set a ctime. So an update does not read it again.

Where that does not hold, nothing is believed, and files are read: after another boot of the
kernel (a disk may have been changed or repaired meanwhile), and on file systems whose times come
from somewhere else (NFS, SMB, FUSE and the like).
"""

from __future__ import annotations

import logging
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from envferry.archive.contents import Content, FileState, expected_content, lost_directories
from envferry.base.file_times import boot_id, has_own_times, next_tick
from envferry.base.files import read_own, write_bytes
from envferry.base.json import from_json
from envferry.errors import PipelineError
from envferry.install.records.env_home import TRASH

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from envferry.archive.index import Index
    from envferry.install.records.env_home import EnvHome

log = logging.getLogger(__name__)

UNKNOWN = (0, 0)


class SeenFiles(msgspec.Struct, frozen=True, kw_only=True):
    """`ID.seen`: a note; without it, files are read."""

    boot: str
    """Which boot of the kernel it was taken in."""
    id: str
    """Of the installation."""
    device: int
    files: tuple[tuple[int, int], ...]
    """Inode and ctime in nanoseconds, by file number; zeros where nothing is known."""
    schema: int = 1


class SeenTree(msgspec.Struct, frozen=True):
    """An installed tree, to be looked at."""

    root: str
    index: Index
    edited: Mapping[str, Content]


def look_at(tree: SeenTree, place: Path) -> SeenFiles | None:
    """Note the files of a tree whose content is known to be right; None where a note is useless.

    `place` is a directory of the same file system in which a file may be made. Left out are files
    of other users, who can put them back in ways of their own, and those of another size or time.
    """
    boot = boot_id()
    if not boot or not has_own_times(place):
        return None
    # Before the files are looked at: whoever writes from now on gives a file a ctime that is not
    # below the tick, so it differs from the one that is noted.
    tick = next_tick(place, TRASH)
    device = os.lstat(tree.root).st_dev
    states = states_of(tree)
    found = [UNKNOWN] * len(tree.index.files)
    for number, state in states.items():
        if state.ctime_ns < tick and state.device == device:
            found[number] = state.note
    return SeenFiles(boot=boot, id=tree.index.id, device=device, files=tuple(found))


def states_of(tree: SeenTree) -> dict[int, FileState]:
    """Return, by number, how files look now that have the size and time that they must have."""
    mtime_ns, owners = tree.index.mtime * 10**9, (0, os.geteuid())
    lost = lost_directories(tree.root, tree.index)
    found = {}
    for number, entry in enumerate(tree.index.files):
        # Empty files are made from the index alone, and never shared.
        if entry.size and entry.path.rpartition("/")[0] not in lost:
            state = state_of(f"{tree.root}/{entry.path}", owners)
            size = expected_content(entry, tree.edited).size
            if state and (state.size, state.mtime_ns) == (size, mtime_ns):
                found[number] = state
    return found


def state_of(path: str, owners: Collection[int]) -> FileState | None:
    """Return what says whether a regular file of one of these users was written to."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    is_ours = stat.S_ISREG(status.st_mode) and status.st_uid in owners
    return FileState.of(status) if is_ours else None


def known_contents(seen: SeenFiles, tree: SeenTree) -> Iterator[tuple[FileState, str]]:
    """Yield what files must look like now to hold what they held, with their XXH3-128.

    Nothing where the note is not about so many files as the tree has.
    """
    if len(seen.files) != len(tree.index.files):
        return
    mtime_ns = tree.index.mtime * 10**9
    for entry, (inode, ctime_ns) in zip(tree.index.files, seen.files, strict=True):
        if inode:
            content = expected_content(entry, tree.edited)
            state = FileState(seen.device, inode, content.size, mtime_ns, ctime_ns)
            yield state, content.xxh128


def note_seen(home: EnvHome, id_: str, tree: SeenTree) -> None:
    """Note how files look whose content is known; what cannot be noted is read the next time."""
    with suppressed(home, id_):
        write_seen(home, id_, look_at(tree, home.directory))


def write_seen(home: EnvHome, id_: str, seen: SeenFiles | None) -> None:
    """Write a note down; raise OSError where that cannot be."""
    if seen is None:
        home.seen(id_).unlink(missing_ok=True)
    else:
        write_bytes(home.seen(id_), msgspec.json.encode(seen) + b"\n")


@contextmanager
def suppressed(home: EnvHome, id_: str) -> Iterator[None]:
    """Go on where a note cannot be written: by this user, or on a full disk."""
    try:
        yield
    except OSError as error:
        log.info("the state of %s@%s is not recorded: %s", home.name, id_, error.strerror)


@contextmanager
def being_read(home: EnvHome, id_: str, tree: SeenTree) -> Iterator[set[str]]:
    """Note how the files look that the block reads; it adds the paths of wrong ones to the set.

    A file that changes meanwhile is not noted.
    """
    before = None
    with suppressed(home, id_):
        before = look_at(tree, home.directory)
    wrong: set[str] = set()
    yield wrong
    # Verifying takes no lock: the installation may have been removed while it was read.
    if before is None or not home.record(id_).is_file():
        return
    now = states_of(tree)
    files = [
        seen if number in now and seen == now[number].note and entry.path not in wrong else UNKNOWN
        for number, (entry, seen) in enumerate(zip(tree.index.files, before.files, strict=True))
    ]
    with suppressed(home, id_):
        write_seen(home, id_, msgspec.structs.replace(before, files=tuple(files)))


def read_seen(home: EnvHome, id_: str) -> SeenFiles | None:
    """Return the note of an installation; None where there is none that can be believed.

    It must be of this boot and about this id, and only root and this user may have written it.
    """
    path = home.seen(id_)
    try:
        seen = from_json(read_own(path), SeenFiles, str(path))
    except FileNotFoundError:
        return None
    except (OSError, PipelineError) as error:
        log.info("%s is not read: %s", path, error)
        return None
    is_of_now = seen.boot == boot_id() and seen.id == id_
    return seen if is_of_now and has_own_times(home.directory) else None
