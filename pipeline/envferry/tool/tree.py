"""The tree of the one-file tool: an interpreter, envferry, and the wheels of its lock."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from envferry.build.cache_locks import cache_lock
from envferry.build.inside import compile_bytecode
from envferry.channel.conda_package import CondaPackage
from envferry.channel.elf import HOST_LIBRARIES, glibc_floor, is_elf
from envferry.channel.wheel import read_wheel
from envferry.channel.wheel_layout import stage_wheel
from envferry.config import child_environ
from envferry.errors import SpecError
from envferry.names import current_platform
from envferry.process import find_program, run
from envferry.tool.first_start import NOWHERE
from envferry.tool.tool_python import (
    add_interpreter,
    has_debug_information,
    machine_of,
    needed_libraries,
)
from envferry.transfer.host_tool import GLIBC, MACHINES, own_wheel, resolve_tool

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from envferry.build.downloads import DownloadCache
    from envferry.progress import Progress
    from envferry.tool.tool_python import ToolPython

log = logging.getLogger(__name__)

COMPILER_RUNTIME = "libgcc_s.so.1"
"""What modules written in Rust need, and the smallest hosts do not have."""
SYSTEM_LIBRARIES = (
    "/lib64",
    "/usr/lib64",
    "/lib/{machine}-linux-gnu",
    "/usr/lib/{machine}-linux-gnu",
)
UNUSED_BACKEND = "zstandard/_cffi.*.so"
"""zstandard brings its library twice; CPython uses the other one."""
PART_OF_GLIBC = re.compile(r"(ld-linux.*|libc|libm|libpthread|libdl|librt|libutil)\.so(\..*)?")


class ToolTree(msgspec.Struct, frozen=True, kw_only=True):
    """What was put together, and what it needs of a host."""

    directory: Path
    platform: str
    python: ToolPython
    glibc: tuple[int, int]
    """The oldest that all of it runs with."""
    host_libraries: tuple[str, ...]
    """What else has to be there."""


def build_tool_tree(
    interpreter: Path,
    platform: str,
    directory: Path,
    *,
    cache: DownloadCache,
    progress: Progress,
) -> ToolTree:
    """Put the tool together in a new `directory`: equal inputs give equal files.

    uv resolves the wheels by the lock, the download cache fetches and checks them. Raises SpecError
    for an interpreter that does not fit, StoreError when an index cannot be reached.
    """
    if platform not in MACHINES:
        message = f"cannot make envferry one file for {platform}"
        raise SpecError(message, hint=f"one of {', '.join(MACHINES)}")
    with progress.task(f"collect the interpreter {interpreter}"):
        python = add_interpreter(interpreter, platform, directory)
    packages = resolve_tool(python.minor, platform)
    with cache_lock(cache.root, shared=True):
        wheels = cache.fetch_all(list(packages), progress=progress)
        add_wheels(wheels.values(), python, directory)
    with progress.task(f"collect envferry and {len(packages)} packages"):
        binaries = sorted(_binaries(directory))
        # All of them: a wheel or a library of another machine would fail only when it is imported.
        _require_platform(binaries, platform)
        # A `strip` often reads the files of its own machine only.
        if platform == current_platform():
            strip_debug_information(binaries)
        # Before libgcc is added, which must not raise it.
        floor = glibc_floor(binaries) or _pair(GLIBC)
        _add_compiler_runtime(directory, binaries, (platform, interpreter), floor)
        if platform == current_platform():
            _compile(python, directory)
            _try_out(python, directory)
    return ToolTree(
        directory=directory,
        platform=platform,
        python=python,
        glibc=floor,
        host_libraries=host_libraries(directory),
    )


def add_wheels(wheels: Iterable[Path], python: ToolPython, tree: Path) -> None:
    """Install envferry itself and wheels into the tree, without their scripts."""
    with tempfile.TemporaryDirectory(prefix="envferry-tool-") as desk:
        name, data = own_wheel()
        own = Path(desk, name)
        own.write_bytes(data)
        for number, path in enumerate([own, *sorted(wheels)]):
            wheel = replace(read_wheel(path), is_pure=False)  # all goes to one site-packages
            package = CondaPackage(
                name=wheel.name, version=str(wheel.version), build="0", subdir="noarch"
            )
            staged = Path(desk, str(number))
            staged.mkdir()
            stage_wheel(wheel, package, python, staged)
            packages = staged / python.site_packages
            for record in packages.glob("*.dist-info/RECORD"):
                record.unlink()  # nothing in here is removed by pip
            shutil.copytree(packages, tree / python.site_packages, dirs_exist_ok=True)
    for path in (tree / python.site_packages).glob(UNUSED_BACKEND):
        path.unlink()


def _binaries(tree: Path) -> Iterator[Path]:
    for path in tree.rglob("*"):
        if path.is_file() and not path.is_symlink() and is_elf(path):
            yield path


def strip_debug_information(binaries: Iterable[Path]) -> None:
    """Remove what only debuggers read: half of the file, where an interpreter was built here."""
    large = [path for path in binaries if has_debug_information(path)]
    strip = find_program("strip")
    if large and strip is None:
        log.warning("strip is missing (binutils): the file gets larger than it needs to be")
    elif large:
        run([str(strip), "--strip-debug", *large], env=child_environ(LC_ALL="C"))


def _require_platform(binaries: Iterable[Path], platform: str) -> None:
    for path in binaries:
        if machine_of(path) != platform:
            message = f"{path.name} is for {machine_of(path)}, expected {platform}"
            raise SpecError(message, hint="name an interpreter of that platform")


def _add_compiler_runtime(
    tree: Path, binaries: list[Path], source: tuple[str, Path], floor: tuple[int, int]
) -> None:
    """Bring libgcc along, unless that would ask for a newer glibc than all the rest."""
    platform, interpreter = source
    if not any(COMPILER_RUNTIME in needed_libraries(path) for path in binaries):
        return
    folders = [interpreter.resolve().parent.parent / "lib"]
    if platform == current_platform():
        machine = MACHINES[platform]
        folders += [Path(folder.format(machine=machine)) for folder in SYSTEM_LIBRARIES]
    for path in (folder / COMPILER_RUNTIME for folder in folders):
        if path.is_file() and (glibc_floor([path]) or floor) <= floor:
            target = tree / "lib" / COMPILER_RUNTIME
            if not target.exists():
                shutil.copy2(path.resolve(), target)
            return


def host_libraries(tree: Path) -> tuple[str, ...]:
    """Return the libraries beyond glibc that a host must have."""
    names = {name for path in _binaries(tree) for name in needed_libraries(path)}
    there = {path.name for path in (tree / "lib").iterdir()}
    missing = sorted(names - there)
    if strange := [name for name in missing if not HOST_LIBRARIES.fullmatch(name)]:
        message = f"the interpreter needs {', '.join(strange)}, which is not beside it"
        raise SpecError(message, hint="name another one: `--interpreter PATH`")
    return tuple(name for name in missing if not PART_OF_GLIBC.fullmatch(name))


def _compile(python: ToolPython, tree: Path) -> None:
    """Compile all modules, so that the tool starts fast and writes nothing where it lies."""
    program = tree / "bin" / f"python{python.minor}"
    script = Path(compile_bytecode.__file__)
    # NOWHERE: a path that no module holds, so that none is left out.
    words: list[str | Path] = [program, "-I", "-B", "-S", "-W", "ignore", script, tree, NOWHERE]
    run(words, env=child_environ(PYTHONHOME=None, PYTHONPATH=None))


def _try_out(python: ToolPython, tree: Path) -> None:
    """Start the tool: what does not work here works nowhere."""
    program = tree / "bin" / f"python{python.minor}"
    environ = child_environ(PYTHONHOME=None, PYTHONPATH=None)
    words = "from envferry.tool.first_start import main; main()"
    run([program, "-I", "-B", "-c", words], env=environ)


def _pair(version: str) -> tuple[int, int]:
    major, minor = version.split(".")
    return int(major), int(minor)
