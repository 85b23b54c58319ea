"""The interpreter that the one-file tool brings along, for this machine or another one."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import msgspec
from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

from envferry.channel import debian
from envferry.channel.elf import is_elf
from envferry.channel.interpreter import find_interpreter
from envferry.channel.interpreter_staging import (
    SKIPPED_DIRECTORIES,
    SKIPPED_EXTENSIONS,
    SKIPPED_FILES,
    stage_interpreter,
)
from envferry.errors import SpecError
from envferry.names import current_platform
from envferry.transfer.host_tool import PYTHONS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ELF_MACHINES = {"EM_X86_64": "linux-64", "EM_AARCH64": "linux-aarch64"}
LOADERS = {
    "linux-64": "/lib64/ld-linux-x86-64.so.2",
    "linux-aarch64": "/lib/ld-linux-aarch64.so.1",
}
"""Where the psABI of each machine has glibc's loader."""
MULTIARCH = {"linux-64": "x86_64-linux-gnu", "linux-aarch64": "aarch64-linux-gnu"}
"""What Debian calls them."""
UNUSED_MODULES = frozenset(
    {
        *("test", "tests", "idlelib", "lib2to3", "turtledemo", "tkinter", "ensurepip"),
        *("pydoc_data", "distutils", "venv", "__phello__", "site-packages"),
    }
)
UNUSED_FILES = re.compile(r"turtle\.py|.*\.(pyc|a|o|exe|bat|ps1)")
UNUSED_EXTENSIONS = re.compile(r"(readline|_curses\w*|_gdbm|_dbm|_tkinter)\..*")
"""Nothing of envferry draws on a screen or edits lines; readline would bring the GPL."""


class ToolPython(msgspec.Struct, frozen=True):
    """An interpreter in its place in the tool's tree."""

    version: str
    """As full as it is known: `3.12.1`, or `3.12`."""

    @property
    def minor(self) -> str:
        """The first two numbers of the version, such as `3.12`."""
        return ".".join(self.version.split(".")[:2])

    @property
    def site_packages(self) -> str:
        """Where packages lie, relative to the tree."""
        return f"lib/python{self.minor}/site-packages"


def add_interpreter(executable: Path, platform: str, tree: Path) -> ToolPython:
    """Put an interpreter into `tree`, with no more than a program without a screen needs.

    One of this platform is asked what it is, and gets its libraries from wherever they lie. One of
    another platform cannot run here: it must be relocatable, as python-build-standalone's and
    conda's are. Raises SpecError for one that does not fit.
    """
    if platform == current_platform():
        interpreter = find_interpreter(executable)
        stage_interpreter(interpreter, tree)
        python = ToolPython(interpreter.version)
    else:
        python = _copy_relocatable(executable, platform, tree)
    if python.minor not in PYTHONS:
        message = f"{executable} is Python {python.version}, envferry runs on {', '.join(PYTHONS)}"
        raise SpecError(message, hint="name another interpreter: `--interpreter PATH`")
    _trim(tree, python)
    return python


def _copy_relocatable(executable: Path, platform: str, tree: Path) -> ToolPython:
    """Copy an interpreter that cannot be run here, by the layout that all builds share."""
    real = executable.resolve()
    named = re.fullmatch(r"python(3\.\d+)", real.name)
    prefix = real.parent.parent
    _require_machine(real, platform)
    if not named or not (prefix / f"lib/python{named[1]}/os.py").is_file():
        message = f"{executable} is not bin/python3.X with its lib/python3.X beside it"
        hint = "unpack a python-build-standalone of that platform, or make a conda environment"
        raise SpecError(message, hint=hint)
    minor = named[1]
    (tree / "bin").mkdir(parents=True)
    shutil.copy2(real, tree / "bin" / real.name)
    library = prefix / "lib" / f"python{minor}"
    shutil.copytree(library, tree / "lib" / library.name, symlinks=True, ignore=_unused)
    for path in sorted((prefix / "lib").glob("*.so*")):
        # Some `.so` files are text, scripts for the linker.
        if path.is_file() and is_elf(path):  # links become what they lead to: names are few
            shutil.copy2(path.resolve(), tree / "lib" / path.name)
    if debian.is_debian_layout(tree, minor):
        debian.undo_debian_layout(tree, minor, MULTIARCH[platform])
    return ToolPython(_full_version(prefix, minor))


def _require_machine(executable: Path, platform: str) -> None:
    found = machine_of(executable)
    if found != platform:
        message = f"{executable} is for {found or 'no platform known here'}, expected {platform}"
        raise SpecError(message, hint="name an interpreter of that platform: `--interpreter PATH`")


def machine_of(path: Path) -> str | None:
    """Return the platform that an ELF file is for; None for everything else."""
    try:
        with path.open("rb") as stream:
            return ELF_MACHINES.get(ELFFile(stream)["e_machine"])
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise SpecError(message, hint="name the interpreter: `--interpreter PATH`") from error
    except ELFError:
        return None


def _full_version(prefix: Path, minor: str) -> str:
    # An interpreter of another machine cannot be asked.
    header = prefix / f"include/python{minor}/patchlevel.h"
    text = header.read_text(encoding="utf-8") if header.is_file() else ""
    found = re.search(r'#define\s+PY_VERSION\s+"([\d.]+)"', text)
    return found[1] if found else minor


def _unused(_: str, names: list[str]) -> set[str]:
    skipped = SKIPPED_DIRECTORIES | UNUSED_MODULES
    return {name for name in names if name in skipped or SKIPPED_FILES.fullmatch(name)}


def _trim(tree: Path, python: ToolPython) -> None:
    """Remove what no command of envferry uses, and libraries that only this used."""
    program = tree / "bin" / f"python{python.minor}"
    library = tree / "lib" / f"python{python.minor}"
    for path in [*tree.iterdir(), *(tree / "bin").iterdir(), *(tree / "lib").iterdir()]:
        kept = path in (program, program.parent, library.parent, library)
        if not (kept or (path.parent == library.parent and ".so" in path.name)):
            _remove(path)
    # A list first: what is listed is removed on the way.
    for path in [*library.iterdir()]:
        is_unused = path.name in UNUSED_MODULES or UNUSED_FILES.fullmatch(path.name)
        # `config-3.X-MACHINE` is for programs that embed Python: a
        # Makefile and the static library.
        if is_unused or path.name.startswith("config-"):
            _remove(path)
    for path in [*(library / "lib-dynload").iterdir()]:
        if UNUSED_EXTENSIONS.fullmatch(path.name) or SKIPPED_EXTENSIONS.fullmatch(path.name):
            _remove(path)
    # Last: libraries that only removed modules needed are not needed any more.
    used = set(_loaded([program, *library.rglob("*.so")], library.parent))
    for path in [*library.parent.iterdir()]:
        if path != library and path.name not in used:
            _remove(path)
    # Empty: what the interpreter had installed is not part of the tool.
    (tree / python.site_packages).mkdir()


def _loaded(files: list[Path], folder: Path) -> Iterator[str]:
    """Yield the names of those libraries in `folder` that ELF files need, and these in turn."""
    seen: set[str] = set()
    waiting = [name for path in files for name in needed_libraries(path)]
    while waiting:
        name = waiting.pop()
        if name not in seen and (folder / name).exists():
            seen.add(name)
            yield name
            waiting += needed_libraries(folder / name)


def needed_libraries(path: Path) -> list[str]:
    """Return the names of the libraries that an ELF file needs; none of another file."""
    with path.open("rb") as stream:
        try:
            section = ELFFile(stream).get_section_by_name(".dynamic")
            if not isinstance(section, DynamicSection):
                return []
            # pyelftools adds an attribute of each tag's own name.
            return [getattr(tag, "needed") for tag in section.iter_tags("DT_NEEDED")]  # noqa: B009
        except ELFError:
            return []


def has_debug_information(path: Path) -> bool:
    """Whether an ELF file holds what only debuggers read."""
    with path.open("rb") as stream:
        try:
            return ELFFile(stream).get_section_by_name(".debug_info") is not None
        except ELFError:
            return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
