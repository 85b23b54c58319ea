"""What of a virtual environment goes into a self-contained one, and what cannot be carried."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from envferry.channel.elf import is_elf, shared_libraries
from envferry.pack.tree_walk import TreeWalk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from envferry.pack.tree_walk import TreeEntry

SETTINGS = "pyvenv.cfg"
NOT_CARRIED = re.compile(
    r"pyvenv\.cfg|\.gitignore|\.lock|CACHEDIR\.TAG|lib64|\.Python"
    r"|bin/(?:python(?:\d(?:\.\d+)?t?)?|activate(?:\.\w+)?|Activate\.ps1|activate_this\.py"
    r"|deactivate(?:\.\w+)?|pydoc\.bat)"
)
"""What makes a folder a virtual environment: the interpreter and envferry's scripts replace it."""
CACHED_BYTE_CODE = re.compile(r"(?:.*/)?__pycache__/[^/]*\.pyc")
SHEBANG = re.compile(rb"\A#!(?P<python>/[^\n]*?/bin/python[\d.]*t?)(?=[ \r\n])")
SHELL_SHEBANG = re.compile(
    rb"\A#!/bin/sh\n'''exec' (?P<quote>\"?)(?P<python>/[^\n\"]*?/bin/python[\d.]*t?)(?P=quote) "
)
"""What installers write where a `#!` line would be too long, or has a blank in it."""
DRIVER_LIBRARIES = re.compile(r"lib(?:cuda|nvidia-[\w-]+|nvcuvid|cudadebugger)\.so(?:\..*)?")
"""A host's driver brings these, and no environment does."""


def settings_of(venv: Path) -> dict[str, str]:
    """Return the `key = value` lines of a virtual environment's pyvenv.cfg."""
    text = (venv / SETTINGS).read_text(encoding="utf-8", errors="replace")
    # The file has no sections and no quoting, so an INI parser refuses it.
    rows = (line.partition("=") for line in text.splitlines())
    return {key.strip().lower(): value.strip() for key, equals, value in rows if equals}


def copied_files(venv: Path, faults: list[str]) -> Iterator[TreeEntry]:
    """Yield the files and links that people and installers put into a virtual environment.

    Byte code is left out: it is compiled again. What cannot be read is added to `faults`.
    """
    walk = TreeWalk(venv)
    for item in walk:
        is_left = NOT_CARRIED.fullmatch(item.path) or CACHED_BYTE_CODE.fullmatch(item.path)
        if item.kind != "directory" and not is_left:
            yield item
    faults += walk.faults


def copy_entry(item: TreeEntry, venv: Path, tree: Path) -> None:
    """Put one file or link of a virtual environment into a tree, in place of what is there.

    A link to a file elsewhere becomes that file: `uv` with `link-mode = "symlink"` installs links
    into its cache.
    """
    source, target = venv / item.path, tree / item.path
    target.parent.mkdir(parents=True, exist_ok=True)
    # Neither os.link nor os.symlink replaces a name that exists.
    target.unlink(missing_ok=True)
    if item.kind == "symlink":
        real = source.resolve()
        # A link inside stays a link, and so does one that leads to nothing or to a folder.
        if real.is_relative_to(venv.resolve()) or not real.is_file():
            target.symlink_to(item.link)
            return
        source = real
    try:
        # A link takes no space and no time, and packing only reads.
        os.link(source, target)
    except OSError:  # another file system, or a file of another user
        shutil.copy2(source, target)


def point_to_interpreter(script: Path, prefix: str, homes: Sequence[Path]) -> str | None:
    """Make a script run by the environment's own python; return whose it keeps, if another's.

    Scripts name the python by the path that it had when they were installed, which is another one
    after a move or by way of a link. `homes` are the folders of programs that `prefix` replaces.
    """
    content = script.read_bytes()
    found = SHEBANG.match(content) or SHELL_SHEBANG.match(content)
    if not found:
        return None
    python = Path(os.fsdecode(found["python"]))
    if str(python.parent) == f"{prefix}/bin":
        return None
    # By the real path: the folder may be known by several names.
    is_known = any(os.path.realpath(python.parent) == os.path.realpath(home) for home in homes)
    if not is_known and python.exists():
        return str(python)
    start, end = found.span("python")
    moved = content[:start] + os.fsencode(f"{prefix}/bin/{python.name}") + content[end:]
    mode = script.stat().st_mode
    script.unlink()  # the file may be the virtual environment's own
    script.write_bytes(moved)
    script.chmod(mode & 0o777)
    return None


def outside_libraries(tree: Path, binaries: Sequence[Path]) -> Iterator[str]:
    """Yield, in words, the shared libraries that binaries need and the tree does not have."""
    if not binaries:
        return
    root = str(tree.resolve())
    # By name, as the loader looks: a library that the process loaded before satisfies later needs.
    present = {path.name for path in tree.rglob("*.so*")}
    users: dict[str, list[str]] = {}
    for binary, needed in shared_libraries(binaries).items():
        for name, found in needed.items():
            inside = found is not None and str(found.resolve()).startswith(f"{root}/")
            if not inside and name not in present and not DRIVER_LIBRARIES.fullmatch(name):
                where = f"{name} ({found})" if found else f"{name} (not found here, either)"
                users.setdefault(where, []).append(str(binary.relative_to(tree)))
    for where, paths in sorted(users.items()):
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        yield f"{where} is not carried: {min(paths)}{more} takes it from the host"


def binaries_in(folder: Path) -> list[Path]:
    """Return the ELF files below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    return [path for path in files if is_elf(path)]
