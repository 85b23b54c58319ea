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
from envferry.build.inside.incremental import bytecode_among, fills_empty_folder, modules_of
from envferry.build.wheel_store import WheelsNotStored

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
        self.folders: set[str] = {str(tree)}

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
            self._make(f"{self.top}/{folder}")
        made = {*compiled.bytecode.files, *compiled.own_files()}
        refuse_brought_bytecode(compiled, made)
        self._link(compiled.wheel.files(), made)
        self._link(compiled.bytecode)
        for file in compiled.own_files():
            target = f"{self.top}/{file}"
            self._make(target.rpartition("/")[0])
            # Nothing but this tree has it: moved, over what another wheel had there.
            os.chmod(compiled.own / file, 0o644)  # noqa: PTH101
            os.replace(compiled.own / file, target)  # noqa: PTH105

    def _link(self, stored: StoredFiles, left_out: Collection[str] = ()) -> None:
        for file, about in stored.files.items():
            if file in left_out:
                continue
            target = f"{self.top}/{file}"
            self._make(target.rpartition("/")[0])
            source = stored.path_of(file)
            try:
                os.link(source, target, follow_symlinks=False)
            except FileExistsError:
                self._replace(source, target, about.checksum)
            linked = FileStamp.of(os.lstat(target))
            known = stored.stamps.get(file)
            if not known or not linked.is_linked_from(known):
                message = f"{source} changed"
                raise WheelsNotStored(message)

    def _replace(self, source: str, target: str, checksum: str) -> None:
        """Put a stored file where something is already; what wheels may do to each other."""
        if os.lstat(source).st_ino == os.lstat(target).st_ino:
            return
        if self.is_started:
            # Which of the two stays is decided among all wheels.
            if checksum_of(target) != checksum:
                message = f"a wheel and another package have {target}"
                raise NotIncremental(message)
            os.unlink(target)  # noqa: PTH108
        else:
            os.unlink(target)  # noqa: PTH108
            if target.endswith(".py"):
                self._forget_bytecode(target)
        os.link(source, target, follow_symlinks=False)

    def _forget_bytecode(self, module: str) -> None:
        """Remove the byte code of another wheel's module that had this place."""
        folder, _, name = module.rpartition("/")
        start = f"{name.removesuffix('.py')}."
        cached = f"{folder}/__pycache__"
        if os.path.isdir(cached):  # noqa: PTH112
            for entry in list(os.scandir(cached)):
                if entry.name.startswith(start):
                    os.unlink(entry.path)  # noqa: PTH108

    def _make(self, folder: str) -> None:
        """Make a folder, and those above it; raise WheelsNotStored where one is a link."""
        if folder in self.folders:
            return
        self._make(folder.rpartition("/")[0])
        try:
            os.mkdir(folder, 0o755)  # noqa: PTH102
            os.chmod(folder, 0o755)  # noqa: PTH101
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(folder).st_mode):
                message = f"{folder} is not a folder of its own"
                raise WheelsNotStored(message) from None
        self.folders.add(folder)


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
