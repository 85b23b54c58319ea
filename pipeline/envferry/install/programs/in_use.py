"""Which processes use the files of an installation, as /proc tells, and what it cannot tell."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from envferry.archive.contents import is_directory
from envferry.base.files import unescaped
from envferry.install.programs.leases import why_not_free

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

log = logging.getLogger(__name__)

LINKS = ("exe", "cwd", "root")
ENDED = ("Z", "X")
DELETED = " (deleted)"
INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""include/linux/proc_ns.h: PROC_PID_INIT_INO."""
KERNEL_THREAD = 0x00200000
"""include/linux/sched.h: PF_KTHREAD."""
CAP_SYS_PTRACE = 19

Identity = tuple[int, int]
"""Device and inode of a directory: no other directory has both, wherever it is mounted."""


class TreeUsers(msgspec.Struct, frozen=True, kw_only=True):
    """Who uses a tree."""

    users: dict[int, str] = msgspec.field(default_factory=dict)
    """The programs of processes that certainly do, by process id."""
    unseen: str = ""
    """Why there may be others; empty when every process was looked into."""


def look_for_users(tree: Path, proc: Path = Path("/proc")) -> TreeUsers:
    """Find the processes that run from, stand in, map, hold open or mount files of a tree.

    A text in /proc that names the tree is a hint; device and inode of the directory that it leads
    to, as that process sees it, decide. Where /proc does not show everything, leases do.
    """
    if not is_directory(str(tree)):
        return TreeUsers()
    try:
        processes = [Process(path) for path in proc.iterdir() if path.name.isdecimal()]
    except OSError as error:
        return TreeUsers(unseen=f"{proc} cannot be read: {error.strerror}")
    users, closed = inspect_processes(TreeIdentity.of(tree), processes)
    if users:
        return TreeUsers(users=users)
    hidden = what_is_hidden(proc)
    unseen = hidden or (f"this user cannot inspect {describe(closed)}" if closed else "")
    reason = why_not_free(tree) if unseen else ""
    if not reason:
        return TreeUsers()
    if not hidden and may_look_into_all(proc):
        # Closed to root as well, by a security module: no user could find out more.
        log.warning("%s, although this user has the right to: ignored", unseen)
        return TreeUsers()
    return TreeUsers(unseen=f"{unseen}, and {reason}")


def inspect_processes(
    own: TreeIdentity, processes: Iterable[Process]
) -> tuple[dict[int, str], dict[int, str]]:
    """Return the processes that use a tree, and those that this user may not inspect."""
    users: dict[int, str] = {}
    closed: dict[int, str] = {}
    for process in processes:
        if process.has_no_files():
            continue
        try:
            if process.uses(own):
                users[process.pid] = process.program()
        except PermissionError:
            closed[process.pid] = process.program()
        except OSError as error:
            log.debug("process %s has ended: %s", process.pid, error)
    return users, closed


def what_is_hidden(proc: Path) -> str:
    """Say why there may be processes that do not show at all."""
    try:
        namespace = (proc / "self/ns/pid").stat().st_ino
    except OSError:
        return f"{proc} does not specify which processes it shows"
    if namespace != INITIAL_PID_NAMESPACE:
        return "processes outside this container (PID namespace) are not visible"
    return "" if (proc / "1").exists() else f"{proc} hides the processes of other users"


def may_look_into_all(proc: Path) -> bool:
    """Whether this process may inspect every other one (CAP_SYS_PTRACE)."""
    try:
        status = (proc / "self/status").read_text()
    except OSError:
        return False
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return bool(found and int(found[1], 16) >> CAP_SYS_PTRACE & 1)


def describe(processes: dict[int, str]) -> str:
    """Return processes as people know them, a few of them by name."""
    shown = ", ".join(f"{program} (pid {pid})" for pid, program in sorted(processes.items())[:5])
    return shown + (f" and {len(processes) - 5} more" if len(processes) > 5 else "")


class TreeIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """How the tree is known."""

    path: Path
    directories: frozenset[Identity]
    device: int | None = None
    """Of a tree that is mounted: all directories of that file system are its own."""

    @classmethod
    def of(cls, tree: Path) -> TreeIdentity:
        """Look at all directories of a tree, or at the file system that is mounted there."""
        top = identity(str(tree))
        if top and os.path.ismount(tree):
            return cls(path=tree, directories=frozenset(), device=top[0])
        found = [top]
        found += [
            identity(f"{parent}/{name}") for parent, names, _ in os.walk(tree) for name in names
        ]
        return cls(path=tree, directories=frozenset(one for one in found if one))

    def is_named_in(self, text: str) -> bool:
        """Whether a path may lead to the tree: its last part is the same under every mount."""
        return self.path.name in text

    def has(self, directory: str) -> bool:
        """Whether a directory, looked at now, is one of the tree."""
        found = identity(directory)
        if found is None:
            return False
        return found[0] == self.device or found in self.directories


def identity(path: str) -> Identity | None:
    """Return what identifies a directory; None for what is not one."""
    try:
        status = os.stat(path)  # noqa: PTH116  (thousands of them)
    except PermissionError:
        # Not the same as gone: the process counts as one that this user may not inspect.
        raise
    except OSError:
        return None
    return (status.st_dev, status.st_ino)


def state_of(directory: Path) -> tuple[str, int]:
    """Return the state of a process or thread, and its flags; X, dead, of one that is gone."""
    try:
        # The name, in parentheses, may hold blanks and parentheses itself (proc(5)).
        fields = (directory / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "X", 0
    # The third and the ninth field of proc(5): state and flags.
    return fields[0], int(fields[6])


class Process:
    """One process, seen through its directory in /proc."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.proc = directory.parent
        self.pid = int(directory.name)

    def has_no_files(self) -> bool:
        """Whether it is a thread of the kernel's, has ended, or is only waited for.

        Where only the first thread has ended, another one is looked into from then on: with the
        first, /proc shows nothing of the process any more.
        """
        state, flags = state_of(self.directory)
        if state in ENDED:
            living = [path for path in self.threads() if state_of(path)[0] not in ENDED]
            if not living:
                return True
            self.directory = living[0]
        return bool(flags & KERNEL_THREAD)

    def threads(self) -> list[Path]:
        """Return the directories of the threads, but for the one that is looked into."""
        try:
            found = list((self.proc / str(self.pid) / "task").iterdir())
        except OSError:
            return []
        return [path for path in found if path.name != self.directory.name]

    def uses(self, own: TreeIdentity) -> bool:
        """Whether it has anything to do with a tree.

        Raises PermissionError where this user may not see that, another OSError when it is gone.
        """
        roots = self.roots()
        for place, text in self.links():
            if not own.is_named_in(text):
                continue
            if own.has(place) or self.is_in(own, text, roots):
                return True
        # A path is the sixth field, and may hold blanks.
        mapped = {line.split(None, 5)[5].rstrip("\n") for line in self.lines("maps") if "/" in line}
        if any(self.is_in(own, text, roots) for text in mapped if own.is_named_in(text)):
            return True
        return any(self.is_mount_of(own, line) for line in self.lines("mountinfo"))

    def roots(self) -> tuple[str, ...]:
        """Return what to put before a path that /proc gives for this process.

        Paths are as in its mount namespace; in one that is ours, they are so for us, too.
        """
        root = f"{self.directory}/root"
        ours = (self.proc / "self/ns/mnt").readlink()
        return (root, "") if (self.directory / "ns/mnt").readlink() == ours else (root,)

    def links(self) -> Iterator[tuple[str, str]]:
        """Yield the links to what it runs, stands in and holds open, and where they lead."""
        here = str(self.directory)
        places = [f"{here}/{name}" for name in LINKS]
        places += [f"{here}/fd/{path.name}" for path in (self.directory / "fd").iterdir()]
        # A thread may stand elsewhere than the others (CLONE_FS).
        places += [f"{thread}/{name}" for thread in self.threads() for name in LINKS[1:]]
        for place in places:
            try:
                yield place, os.fsdecode(os.readlink(place))  # noqa: PTH115
            except (FileNotFoundError, ProcessLookupError):
                continue  # closed or ended meanwhile

    def lines(self, table: str) -> list[str]:
        """Return the lines of a table."""
        return os.fsdecode((self.directory / table).read_bytes()).splitlines()

    def is_in(self, own: TreeIdentity, text: str, roots: tuple[str, ...]) -> bool:
        """Whether a file, known by its path, lies in a directory of the tree."""
        parent = text.removesuffix(DELETED).rpartition("/")[0]
        return any(own.has(root + parent) for root in roots)

    def is_mount_of(self, own: TreeIdentity, line: str) -> bool:
        """Whether a line of mountinfo says that the tree, or a part of it, is mounted somewhere.

        Or that something is mounted in the tree.
        """
        fields = line.split(" ")
        if len(fields) < 5:
            return False
        source, place = (unescaped(text) for text in fields[3:5])
        mounted = f"{self.directory}/root{place}"
        # In it, not on it: an image is mounted in the place of its tree.
        if own.is_named_in(place) and own.has(mounted.rpartition("/")[0]):
            return True
        if not own.is_named_in(source):
            return False
        below = source.rpartition(own.path.name)[2].lstrip("/")
        # A single file has no directory that tells; it may have other names in other trees.
        return own.has(mounted) or identity(mounted) == identity(str(own.path / below))

    def program(self) -> str:
        """Return the name of its program."""
        try:
            return (self.directory / "comm").read_text().strip()
        except OSError:
            return "?"
