"""The directories of one build, and where its container sees them."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from envferry.base.files import remove_tree
from envferry.engines.port import Mount
from envferry.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator


class BuildDir(msgspec.Struct, frozen=True, kw_only=True):
    """The directories of one build on this machine, and where its container sees them."""

    home: Path
    prefix: PurePosixPath

    @property
    def envs(self) -> Path:
        """What the container sees as the directory that holds the prefix."""
        return self.home / "envs"

    @property
    def tree(self) -> Path:
        """The environment."""
        return self.envs / self.prefix.name

    @property
    def exchange(self) -> Path:
        """The request for the container, and what it downloads."""
        return self.home / "exchange"

    @property
    def scratch(self) -> Path:
        """Caches of this build, below the same mount so that hard links work."""
        return self.envs / ".build"

    def mount(self, *, writable: bool) -> Mount:
        """Return the mount that puts the environment at its prefix."""
        return Mount(source=self.envs, target=str(self.prefix.parent), writable=writable)


def require_replaceable(home: Path) -> None:
    """Raise HostError for a build of another user, who alone can remove what is in it."""
    for directory in (home, *home.glob("envs/*")):
        # effective_ids: access(2) asks for the real user otherwise, who may differ under sudo or
        # setuid.
        if directory.exists() and not os.access(directory, os.W_OK, effective_ids=True):
            owner = directory.stat().st_uid
            if owner != os.geteuid():  # else closed, and ours to open
                message = f"{home} belongs to user {owner}, and only that user can replace it"
                raise HostError(message, hint="set ENVFERRY_CACHE to a folder of your own")


@contextmanager
def fresh_build_dir(home: Path, prefix: str) -> Iterator[BuildDir]:
    """Yield an empty build directory; what is still there when the block ends is removed.

    Raises HostError where nothing may be executed.
    """
    if home.exists():
        # A build before this one was killed.
        remove_tree(home)
    work = BuildDir(home=home, prefix=PurePosixPath(prefix))
    try:
        work.scratch.mkdir(parents=True)
        # Asked of the folder itself, which may be a mount of its own, and before anything is
        # linked into it.
        require_execution(work.envs)
        yield work
    finally:
        # Gone when it was kept, under another name; what cannot be removed, the next build names.
        with suppress(OSError):
            remove_tree(home)


def require_execution(directory: Path) -> None:
    """Raise HostError when the file system of a directory is mounted `noexec`: builds run there."""
    if os.statvfs(directory).f_flag & os.ST_NOEXEC:
        msg = f"programs cannot run on the file system of {directory} (it is mounted noexec)"
        raise HostError(
            msg,
            hint="set ENVFERRY_CACHE to a folder elsewhere: environments are built in the cache",
        )
