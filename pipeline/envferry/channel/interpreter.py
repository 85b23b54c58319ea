"""An interpreter that is installed here: which one stands behind a name, and is it usable."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import msgspec

from envferry.base.json import decode_json
from envferry.channel import interpreter_probe
from envferry.config import child_environ
from envferry.errors import SpecError, ToolFailed
from envferry.process import find_program, run

OLDEST_PYTHON = (3, 8)


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
    def own_prefix(self) -> Path | None:
        """The folder that has this interpreter and nothing else; None for a system's."""
        prefix = Path(self.facts.base_prefix)
        return None if prefix in (Path("/"), Path("/usr"), Path("/usr/local")) else prefix

    @property
    def site_packages(self) -> str:
        """Where packages lie in an environment, relative to its prefix."""
        return f"lib/python{self.minor}/site-packages"


def find_interpreter(name: str | Path) -> Interpreter:
    """Ask a Python executable what it is, and return the interpreter that stands behind it.

    Raises SpecError when conda packages cannot be made of it.
    """
    # As shells do it: only a name without a slash is looked for on PATH.
    path = str(name) if "/" in str(name) else find_program(str(name))
    if path is None or not Path(path).is_file():
        message = f"the Python interpreter {name} does not exist"
        raise SpecError(message, hint="name an executable, such as /usr/bin/python3")
    asked = ask(Path(path))
    _check_usable(name, asked)
    minor = ".".join(asked.version.split(".")[:2])
    base = Path(asked.base_prefix) / "bin" / f"python{minor}"
    executable = base.resolve() if base.exists() else Path(asked.executable)
    # Asked once more: the python of a virtual environment has other paths than the one behind it.
    return Interpreter(executable=executable, facts=ask(executable))


def running_interpreter() -> Interpreter:
    """Return the interpreter that runs this process."""
    return find_interpreter(sys.executable)


def ask(executable: Path) -> ProbeFacts:
    """Ask an interpreter what it is; raise SpecError when it does not answer."""
    script = Path(interpreter_probe.__file__)
    environ = child_environ(PYTHONHOME=None, PYTHONPATH=None, __PYVENV_LAUNCHER__=None)
    try:
        # -I keeps user site and the current folder out of what it says, -B keeps its own folders
        # unwritten.
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
