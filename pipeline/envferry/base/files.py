"""Files that appear whole or not at all, and their checksums."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, TypeVar

import xxhash
from blake3 import blake3

from envferry.base.text import human_bytes
from envferry.errors import HostError, TargetOccupied, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COPY_BYTES = 1 << 20
MOUNTS = Path("/proc/self/mountinfo")
ESCAPED = re.compile(r"\\([0-7]{3})")
FOLDER_ATTEMPTS = 100
FOLDER_MODE = 0o755
T = TypeVar("T")


@contextmanager
def atomic_write(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Yield a temporary file beside `path` that becomes `path` when the block ends well.

    Temporary name in the same directory, fsync, rename, fsync of the directory: after a crash
    there is the old file or the new one. When the block raises, nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same directory: a rename cannot leave its file system. The dot hides it from listings.
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            # mkstemp lets the owner alone read, whatever the umask is.
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        # After fsync: else a power loss could leave the new name with an empty file.
        os.replace(temporary, path)  # noqa: PTH105  (both are names of one directory)
    except BaseException:
        # An interrupt, too, leaves nothing behind.
        path.parent.joinpath(temporary).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def unfinished_writes(path: Path) -> list[Path]:
    """Return what killed calls of `atomic_write` left beside `path`, as far as it is this user's.

    Only who keeps others from writing `path` can tell it from what is being written now.
    """
    if not path.parent.is_dir():
        return []
    # Eight characters are what `tempfile` makes up for a name.
    name = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}")
    found = (one for one in path.parent.iterdir() if name.fullmatch(one.name))
    return [one for one in found if _is_own_file(one)]


def _is_own_file(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


@contextmanager
def write_anew(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write from its start, on the disk when the block ends well, else removed.

    For large files under a name that is known: what a killed process left is not left for ever.
    """
    try:
        with path.open("wb") as stream:
            yield stream
            stream.flush()
            os.fchmod(stream.fileno(), 0o644)
            os.fsync(stream.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all."""
    with atomic_write(path) as stream:
        stream.write(data)


def read_own(path: Path) -> bytes:
    """Read a file that only root and this user can have written, and no link.

    Raises PermissionError for any other: another user may have written it.
    """

    def opened_without_links(name: str, flags: int) -> int:
        # Another user's pipe would block the open for ever, and a link lead to a file of ours.
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)

    with open(path, "rb", opener=opened_without_links) as stream:
        # Of the open file: the path may name another one by now.
        status = os.fstat(stream.fileno())
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            message = "other users can write to it"
            raise PermissionError(errno.EPERM, message, str(path))
        return stream.read()


def remove_tree(path: Path) -> None:
    """Remove a directory and all in it, also what lies in directories closed to their owner.

    Raises HostError where something is mounted in it: that is another tree.
    """
    if mounted := mounts_in(path):
        message = f"{path} is not removed: something is mounted on {mounted[0]}"
        raise HostError(message, hint=f"unmount it (`umount {mounted[0]}`), then run it again")
    try:
        shutil.rmtree(path)
    except PermissionError:
        path.chmod(0o700)
        # Top-down, so each folder is opened up before os.walk lists it.
        for directory, folders, _ in os.walk(path):
            for folder in folders:
                if not (closed := Path(directory, folder)).is_symlink():
                    closed.chmod(0o700)
        shutil.rmtree(path)


def mounts_in(path: Path, table: Path = MOUNTS) -> list[str]:
    """Return where in a directory something is mounted, as this process sees it.

    Device numbers do not tell: a directory of the same file system may be mounted there.
    """
    try:
        lines = table.read_bytes().splitlines()
    except OSError:
        return []  # cannot be known without /proc
    # The table has paths without links. Its fifth field is the mount point
    # (proc_pid_mountinfo(5)).
    real = os.path.realpath(path)
    places = [unescaped(os.fsdecode(line.split(b" ")[4])) for line in lines]
    return sorted(place for place in places if place == real or place.startswith(f"{real}/"))


def unescaped(text: str) -> str:
    """Return a path of /proc/PID/mountinfo as it is: blanks and the like are octal there."""
    return ESCAPED.sub(lambda found: chr(int(found[1], 8)), text)


def absolute_path(path: Path) -> Path:
    """Return a path without `.` and `..`; links stay, but those that a `..` leads back from."""
    # Behind a link, `..` is the parent of its target: only resolving tells which that is.
    parts = Path.cwd().joinpath(path).parts
    if ".." not in parts:
        return Path(*parts)
    last = len(parts) - parts[::-1].index("..")
    return Path(*parts[:last]).resolve().joinpath(*parts[last:])


def expand_home(path: Path) -> Path:
    """Return a path with the home directory in the place of `~` or `~USER`."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        message = f"{path}: that home directory is not known"
        raise UsageError(message, hint="write the full path") from error


def make_folders(path: Path) -> None:
    """Make a directory, and those above it, for every user to enter and read, whatever the umask.

    A group that the umask lets write may write, others never. Directories that exist stay as they
    are.
    """
    for _ in range(FOLDER_ATTEMPTS):
        if path.is_dir():
            return
        make_folders(path.parent)
        # Another process may just remove it, or the one above, being empty; see `open_in_folder`.
        with suppress(FileNotFoundError, FileExistsError):
            _make_folder(path)
    _make_folder(path)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir()
    except FileExistsError:
        # Another process may have made it since the look.
        if not path.is_dir():
            raise
    else:
        let_enter(path)


def let_enter(path: Path) -> None:
    """Let every user enter and read a directory, and no other write to it than owner and group."""
    let_read(path, FOLDER_MODE)


def let_read(path: Path, least: int) -> None:
    """Give a directory or a file at least this mode, and take from others what lets them write.

    A directory with the sticky bit, such as /tmp, stays open.
    """
    # Read and not assumed: a folder of the administrator may have more, setgid for example.
    found = stat.S_IMODE(path.stat().st_mode)
    wanted = (found | least) & ~(0 if found & stat.S_ISVTX else stat.S_IWOTH)
    if found != wanted:
        path.chmod(wanted)


def open_in_folder(path: Path, mode: str) -> IO[bytes]:
    """Open a file, its directory made first; another process may just remove that, being empty."""
    for _ in range(FOLDER_ATTEMPTS):
        # `mkdir` says that it exists, too, when it is removed in the moment after.
        with suppress(FileNotFoundError, FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open(mode)
    return path.open(mode)


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_file(path: Path, advance: Callable[[int], None] | None = None) -> tuple[str, str]:
    """Return the XXH3-128 and BLAKE3 of a file, in hex, from one read."""
    fast, strong = xxhash.xxh3_128(), blake3()
    with path.open("rb") as stream:
        while chunk := stream.read(COPY_BYTES):
            fast.update(chunk)
            strong.update(chunk)
            if advance:
                advance(len(chunk))
    return fast.hexdigest(), strong.hexdigest()


@contextmanager
def exclusive_lock(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file; raise TargetOccupied when another process holds it.

    The kernel drops the lock when its holder dies, so a killed process leaves nothing to clean.
    """
    # Appending creates the file and changes nothing in one that is there: it may be a journal.
    with open_in_folder(path, "ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"{what} is in use by another envferry (lock {path})"
            raise TargetOccupied(message, hint="wait for it to end, then try again") from error
        # Its last holder may have removed it since we opened it: this lock would keep no one out.
        if not is_at(path, stream.fileno()):
            message = f"{what} was just removed by another envferry"
            raise TargetOccupied(message, hint="try again")
        yield


def is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is the one that its path names, not one that was removed."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def starts_with(path: Path, start: bytes) -> bool:
    """Whether a path is a regular file that starts with these bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(start)) == start


def require_space(path: Path, needed_bytes: int, what: str) -> None:
    """Raise HostError unless the file system of `path` has `needed_bytes` free.

    Some in user space do not say how large they are: these are believed to be large enough.
    """
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    status = os.statvfs(existing)
    # Not f_bfree, which counts the blocks that are kept for root.
    free_bytes = status.f_bavail * status.f_frsize
    if status.f_blocks and free_bytes < needed_bytes:
        message = (
            f"{what} needs {human_bytes(needed_bytes)} under {existing}, "
            f"{human_bytes(free_bytes)} are free"
        )
        raise HostError(message, hint=f"free {human_bytes(needed_bytes - free_bytes)} there")
