"""What installations take on the disk: each file once, however many installations share it."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import msgspec

from envferry.install.records.env_home import HOME
from envferry.install.records.installed import environment_names
from envferry.names import ID_PATTERN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLOCK_BYTES = 512
"""What `st_blocks` counts (stat(2))."""


class TreeUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What one tree takes, in bytes on the disk."""

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

    def __init__(self) -> None:
        self.sizes: dict[tuple[int, int], int] = {}

    def measure(self, tree: Path) -> TreeUsage:
        """Walk a tree; what is removed meanwhile is skipped."""
        own = 0
        links: dict[tuple[int, int], tuple[int, int, int]] = {}
        for status in _statuses(str(tree)):
            size = status.st_blocks * BLOCK_BYTES
            if stat.S_ISDIR(status.st_mode) or status.st_nlink == 1:
                own += size
            else:
                key = (status.st_dev, status.st_ino)
                links[key] = (size, status.st_nlink, links.get(key, (0, 0, 0))[2] + 1)
        shared = {key: size for key, (size, count, found) in links.items() if found < count}
        own += sum(size for size, count, found in links.values() if found >= count)
        self.sizes.update(shared)
        return TreeUsage(own=own, shared=sum(shared.values()))


def measure_tree(tree: Path) -> TreeUsage:
    """Return what one tree takes."""
    return Files().measure(tree)


def measure_directory(envs_dir: Path) -> DirectoryUsage:
    """Return what all installations of an envs directory take, and unfinished ones."""
    files, found, unfinished = Files(), [], 0
    for name in environment_names(envs_dir):
        home = envs_dir / HOME / name
        for path in sorted(path for path in home.iterdir() if path.is_dir()):
            if path.is_symlink():
                continue
            usage = files.measure(path)
            if ID_PATTERN.fullmatch(path.name) and (home / f"{path.name}.json").is_file():
                found.append(
                    InstallationUsage(name=name, id=path.name, own=usage.own, shared=usage.shared)
                )
            else:
                unfinished += usage.own
    existing = next(parent for parent in (envs_dir, *envs_dir.parents) if parent.is_dir())
    space = os.statvfs(existing)
    return DirectoryUsage(
        envs_dir=envs_dir,
        installations=tuple(found),
        unfinished=unfinished,
        total=sum(item.own for item in found) + unfinished + sum(files.sizes.values()),
        free=space.f_bavail * space.f_frsize,
    )


def _statuses(top: str) -> Iterator[os.stat_result]:
    """Yield the status of a directory and of everything in it that this user may see."""
    waiting = [top]
    try:
        yield os.lstat(top)
    except FileNotFoundError:
        return
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
            yield status
            if stat.S_ISDIR(status.st_mode):
                waiting.append(item.path)
