"""Whether each wheel's files can go without a trace: what a later build asks that starts here.

Where that is in doubt, the answer is no, and the next build starts from scratch.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from envferry.base.file_stamps import scan_folders

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path


BYTECODE = "__pycache__"
AT_START = re.compile(
    r"lib/python[^/]+/(?:site-packages/[^/]+\.pth|(?:site-packages/)?(?:site|user)customize[./].+)"
)
"""What python runs whenever it is started."""
OPTIMIZED = re.compile(r"\.opt-[^.]+$")
OF_INSTALLER = ("uv_cache.json", ".lock", "CACHEDIR.TAG")
"""What uv leaves, and the build removes."""


def mark_files(prefix: Path) -> dict[str, tuple[int, int, int]]:
    """Return inode, size and time of each file of a tree but byte code, by its path in it.

    Not when its number of links changed: a cache that shares it may get or lose one meanwhile.
    Folders in which nothing is are there, too, without any of that.
    """
    found = {}
    for folder, entries in scan_folders(prefix):
        if not entries and not is_emptied_of_bytecode(prefix, folder):
            found[folder.removesuffix("/")] = (0, 0, 0)
        if f"/{BYTECODE}/" in f"/{folder}":
            continue
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                mark = (status.st_ino, status.st_size, status.st_mtime_ns)
                found[f"{folder}{entry.name}"] = mark
    return found


def empty_folders(prefix: Path) -> Iterator[str]:
    """Yield the folders of a tree in which nothing is: no file says whose they are."""
    for folder, entries in scan_folders(prefix):
        if not entries:
            yield folder.removesuffix("/")


def is_emptied_of_bytecode(prefix: Path, folder: str) -> bool:
    """Whether a folder held the byte code of modules that hold the prefix, which get none."""
    place = prefix / folder
    return place.name == BYTECODE and any(place.parent.glob("*.py"))


def changed_beside(
    before: dict[str, tuple[int, int, int]],
    after: dict[str, tuple[int, int, int]],
    files: Collection[str],
) -> str:
    """Return a path that was added, removed or changed beside these files; empty if none was.

    A `.pth` may run anything.
    """
    touched = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    known = {path for path in touched if PurePosixPath(path).name in OF_INSTALLER}
    # A set has no order: with min, the message is the same each time.
    return min(touched - known - set(files), default="")


def has_own_bytecode(wheels: Iterable[Collection[str]], others: Iterable[str]) -> bool:
    """Whether all byte code that wheels bring is of modules that no other wheel has.

    Compiling replaces it, and it goes with the module: then it must not be another wheel's.
    `others` are the files of installed wheels.
    """
    brought = [set(files) for files in wheels]
    holders = Counter([*(file for files in brought for file in files), *others])
    mine = all(module in files for files in brought for module in modules_of(bytecode_among(files)))
    return mine and all(holders[module] == 1 for module in modules_of(bytecode_among(holders)))


def bytecode_among(files: Iterable[str]) -> Iterator[PurePosixPath]:
    """Yield the compiled modules among files."""
    for path in map(PurePosixPath, files):
        if path.suffix == ".pyc" and path.parent.name == BYTECODE:
            yield path


def modules_of(compiled: Iterable[PurePosixPath]) -> Iterator[str]:
    """Yield the sources of compiled modules: `p/__pycache__/m.cpython-313.pyc` is of `p/m.py`."""
    for path in compiled:
        yield str(path.parent.parent / f"{module_name(path.name)}.py")


def module_name(compiled: str) -> str:
    """Return whose byte code a file is: `a.b.cpython-313.opt-1.pyc` is of `a.b` (PEP 3147, 488)."""
    name = OPTIMIZED.sub("", compiled.removesuffix(".pyc"))
    return name.rpartition(".")[0] or name


def folders_of(paths: Iterable[str]) -> set[str]:
    """Return all folders above some paths."""
    found: set[str] = set()
    for path in paths:
        folder = path.rpartition("/")[0]
        while folder and folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


def why_affects_others(prefix: Path, files: Iterable[str]) -> str:
    """Return why a package with these files concerns others; empty where it does not.

    A link that leads nowhere may lead to a folder of another package.
    """
    for file in files:
        place = prefix / file
        if AT_START.fullmatch(file):
            return f"python runs {file} at its start"
        if place.is_symlink() and not place.is_file():
            return f"{file} is a link to a folder"
    return ""


def fills_empty_folder(prefix: Path, files: Iterable[str]) -> bool:
    """Whether a file comes into a folder that is there and empty: it has to stay when that goes."""
    for folder in {PurePosixPath(file).parent for file in files}:
        for place in (folder, *folder.parents):
            if (prefix / place).is_dir():
                # Only the nearest folder that exists can be empty: those above hold it.
                if not any((prefix / place).iterdir()):
                    return True
                break
    return False
