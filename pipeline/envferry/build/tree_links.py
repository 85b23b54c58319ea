"""Links stored wheels into a tree in which nothing runs any more, as an installer would place them.

The tree was written to by packages' code, so no link in it is followed.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import xxhash

from envferry.base.file_stamps import FileStamp
from envferry.build.inside.built_tree import NotIncremental
from envferry.build.inside.incremental import (
    bytecode_among,
    fills_empty_folder,
    module_name,
    modules_of,
)
from envferry.build.plain_folders import PlainFolders
from envferry.build.wheel_store import FILES, WheelsNotStored

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from envferry.build.wheel_store import CompiledWheel, StoredFiles


class TreeLinks:
    """Links files into the site-packages of a tree."""

    def __init__(self, tree: Path, site_packages: str, *, is_started: bool) -> None:
        """Prepare for a tree; one that was started has an earlier build's wheels in it."""
        self.tree = tree
        self.site_packages = site_packages
        self.top = f"{tree}/{site_packages}"
        self.is_started = is_started
        self.folders = PlainFolders(tree)

    def add(self, wheels: Mapping[str, CompiledWheel]) -> None:
        """Link wheels in the order of their names: of files that several have, the last stays.

        Raises WheelsNotStored where something is in the way, NotIncremental where an earlier
        build's wheels are.
        """
        for _, compiled in sorted(wheels.items()):
            try:
                self._add(compiled)
            except OSError as error:
                message = f"a wheel cannot be linked: {error}"
                raise WheelsNotStored(message) from error

    def fills_empty_folder(self, wheels: Mapping[str, CompiledWheel]) -> bool:
        """Whether a file of a wheel comes into a folder that is there, and empty."""
        return any(
            fills_empty_folder(Path(self.top), one.wheel.about.files) for one in wheels.values()
        )

    def _add(self, compiled: CompiledWheel) -> None:
        for folder in compiled.wheel.about.folders:
            self.folders.make(f"{self.top}/{folder}")
        made = {*compiled.bytecode.files, *compiled.own_files()}
        refuse_brought_bytecode(compiled, made)
        self._link(compiled.wheel.files(), made)
        self._link(compiled.bytecode)
        for file in compiled.own_files():
            target = f"{self.top}/{file}"
            self.folders.make(target.rpartition("/")[0])
            # Nothing but this tree has it: moved, over what another wheel had there.
            os.chmod(compiled.own / FILES / file, 0o644)  # noqa: PTH101
            os.replace(compiled.own / FILES / file, target)  # noqa: PTH105

    def _link(self, stored: StoredFiles, left_out: Collection[str] = ()) -> None:
        for file, about in stored.files.items():
            if file in left_out:
                continue
            target = f"{self.top}/{file}"
            self.folders.make(target.rpartition("/")[0])
            source = stored.path_of(file)
            # Just before it is linked: what has happened to it since it was looked at?
            if FileStamp.of(os.lstat(source)) != stored.stamps.get(file) and not stored.holds(file):
                message = f"{source} changed"
                raise WheelsNotStored(message)
            try:
                os.link(source, target, follow_symlinks=False)
            except FileExistsError:
                self._replace(source, target, about.checksum)
            # The link gave it another ctime.
            stored.stamps[file] = FileStamp.of(os.lstat(source))
        stored.note()

    def _replace(self, source: str, target: str, checksum: str) -> None:
        """Put a stored file where something is already; what wheels may do to each other."""
        if os.lstat(source).st_ino == os.lstat(target).st_ino:
            return
        is_other = checksum_of(target) != checksum
        if is_other and self.is_started:
            # Which of the two stays is decided among all wheels.
            message = f"a wheel and another package have {target}"
            raise NotIncremental(message)
        os.unlink(target)  # noqa: PTH108
        if is_other and target.endswith(".py"):
            forget_bytecode(target)
        os.link(source, target, follow_symlinks=False)


def forget_bytecode(module: str) -> None:
    """Remove the byte code of another wheel's module that had this place."""
    folder, _, name = module.rpartition("/")
    cached = Path(f"{folder}/__pycache__")
    # Not behind a link, which a script may have made.
    if cached.is_dir() and not cached.is_symlink():
        for path in list(cached.iterdir()):
            if module_name(path.name) == name.removesuffix(".py") and not path.is_dir():
                path.unlink()


def refuse_brought_bytecode(compiled: CompiledWheel, made: Collection[str]) -> None:
    """Raise WheelsNotStored when byte code that a wheel brings is of a module without any of ours.

    Whether it stays depends on why there is none.
    """
    modules = set(modules_of(map(PurePosixPath, made)))
    for path in bytecode_among(compiled.wheel.about.files):
        (module,) = modules_of([path])
        if module not in modules and module in compiled.wheel.about.files:
            message = f"{compiled.wheel.about.name} has byte code of {module}"
            raise WheelsNotStored(message)


def checksum_of(path: str) -> str:
    """Return the XXH3-128 of a file; empty for what is none."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return ""
    return xxhash.xxh3_128_hexdigest(Path(path).read_bytes())
