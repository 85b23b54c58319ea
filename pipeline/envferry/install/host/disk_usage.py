"""What installations take on the disk: each file once, however many installations share it.

An installation is its tree, or the image in the place of it, and what is noted about it. What is
mounted takes nothing: a mounted image is a file beside the tree, and that one counts.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import msgspec

from envferry.base.files import mounts_in
from envferry.install.records.env_home import (
    HOME,
    PARTIAL,
    REPAIR,
    TRASH,
    UNFINISHED_IMAGE,
    EnvHome,
)
from envferry.install.records.installed import environment_names
from envferry.names import ID_PATTERN

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

BLOCK_BYTES = 512
"""What `st_blocks` counts (stat(2))."""
UNFINISHED = (PARTIAL, UNFINISHED_IMAGE, TRASH, REPAIR)
"""How names begin of what a running command has there, or one that was interrupted."""


class DiskUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What one thing takes, in bytes on the disk."""

    own: int
    """Files that have no name outside of it: what removing it would free."""
    shared: int
    """Files that have other names, in other installations or elsewhere."""


class InstallationUsage(msgspec.Struct, frozen=True, kw_only=True):
    """One installation among all, in bytes on the disk."""

    name: str
    id: str
    own: int
    shared: int


class DirectoryUsage(msgspec.Struct, frozen=True, kw_only=True):
    """All of an envs directory, in bytes on the disk."""

    envs_dir: Path
    installations: tuple[InstallationUsage, ...]
    unfinished: int
    """What interrupted or running commands have there."""
    total: int
    """Shared files counted once."""
    free: int


class Files:
    """Files with several names, each counted once."""

    def __init__(self, mounted: Collection[str]) -> None:
        self.sizes: dict[tuple[int, int], int] = {}
        self.mounted = mounted
        """Where something is mounted."""

    def measure(self, paths: Iterable[str]) -> DiskUsage:
        """Look at files, and at trees with all in them; what is removed meanwhile is skipped."""
        own = 0
        links: dict[tuple[int, int], tuple[int, int, int]] = {}
        for path in paths:
            for status in _statuses(path, self.mounted):
                size = status.st_blocks * BLOCK_BYTES
                # The links of a directory are its subdirectories, not other names.
                if stat.S_ISDIR(status.st_mode) or status.st_nlink == 1:
                    own += size
                else:
                    key = (status.st_dev, status.st_ino)
                    links[key] = (size, status.st_nlink, links.get(key, (0, 0, 0))[2] + 1)
        shared = {key: size for key, (size, count, found) in links.items() if found < count}
        # All names of these are in here, so removing it frees them, too.
        own += sum(size for size, count, found in links.values() if found >= count)
        self.sizes.update(shared)
        return DiskUsage(own=own, shared=sum(shared.values()))


def measure_installation(home: EnvHome, id_: str) -> DiskUsage:
    """Return what one installation takes, be it a tree or an image."""
    parts, _ = _parts_of(home)
    return Files(mounts_in(home.directory)).measure(parts.get(id_, ()))


def measure_directory(envs_dir: Path) -> DirectoryUsage:
    """Return what all installations of an envs directory take, and unfinished ones."""
    files, found, unfinished = Files(mounts_in(envs_dir / HOME)), [], 0
    for name in environment_names(envs_dir):
        parts, others = _parts_of(EnvHome.of(envs_dir, name))
        for id_ in sorted(parts):
            usage = files.measure(parts[id_])
            found.append(InstallationUsage(name=name, id=id_, own=usage.own, shared=usage.shared))
        unfinished += files.measure(others).own
    existing = next(parent for parent in (envs_dir, *envs_dir.parents) if parent.is_dir())
    space = os.statvfs(existing)
    return DirectoryUsage(
        envs_dir=envs_dir,
        installations=tuple(found),
        unfinished=unfinished,
        total=sum(item.own for item in found) + unfinished + sum(files.sizes.values()),
        # Not f_bfree, which counts the blocks that are kept for root.
        free=space.f_bavail * space.f_frsize,
    )


def _parts_of(home: EnvHome) -> tuple[dict[str, list[str]], list[str]]:
    """Return what an environment has on the disk, by installation, and what belongs to none.

    `ID` is a tree or where an image is mounted, `ID.squashfs`, `ID.json` and so on lie beside it.
    """
    parts: dict[str, list[str]] = {}
    others = []
    # The table of mounts has paths without links, and these are compared with them.
    top = os.path.realpath(home.directory)
    with os.scandir(top) as found:
        items = sorted(found, key=lambda item: item.name)
    for item in items:
        id_ = item.name.partition(".")[0]
        if ID_PATTERN.fullmatch(id_):
            parts.setdefault(id_, []).append(item.path)
        elif item.name.startswith(UNFINISHED):
            others.append(item.path)
    for id_ in [id_ for id_ in parts if not home.record(id_).is_file()]:
        others += parts.pop(id_)
    return parts, others


def _statuses(top: str, mounted: Collection[str]) -> Iterator[os.stat_result]:
    """Yield the status of a path, and of everything in it that this user may see.

    What is mounted there is left out.
    """
    try:
        first = os.lstat(top)
    except FileNotFoundError:
        return
    if top in mounted:
        return
    yield first
    waiting = [top] if stat.S_ISDIR(first.st_mode) else []
    while waiting:
        try:
            with os.scandir(waiting.pop()) as found:
                items = list(found)
        except (FileNotFoundError, PermissionError):  # gone, or closed to this user
            continue
        for item in items:
            try:
                status = item.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(status.st_mode):
                yield status
            elif item.path not in mounted:
                yield status
                waiting.append(item.path)
