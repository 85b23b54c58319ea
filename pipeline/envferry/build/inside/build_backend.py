"""A project's build backend (PEP 517): the wheel that it makes, and what it asks for meanwhile."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from envferry import process
from envferry.base.json import convert, decode_json
from envferry.errors import ToolFailed

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from envferry.process import Finished

ANSWER = "envferry asked: "
BACKEND = """
import functools, importlib, json, sys
name, paths, target = sys.argv[1:]
module, _, attribute = name.partition(":")
# Of the project's own folder only what it says itself.
sys.path[:] = json.loads(paths) + [path for path in sys.path if path]
backend = importlib.import_module(module)
backend = functools.reduce(getattr, filter(None, attribute.split(".")), backend)
"""
MAKE = BACKEND + "backend.build_wheel(target)"
ASK = f"""{BACKEND}
ask = getattr(backend, "get_requires_for_build_wheel", lambda settings=None: [])
print()
print({ANSWER!r} + json.dumps(list(ask(None))))
"""


class _BuildSystem(msgspec.Struct, rename="kebab"):
    build_backend: str = "setuptools.build_meta:__legacy__"
    """What PEP 517 says of a project that names none."""
    backend_path: tuple[str, ...] = ()


class _Project(msgspec.Struct, rename="kebab"):
    build_system: _BuildSystem = msgspec.field(default_factory=_BuildSystem)


@dataclass(frozen=True, slots=True)
class Backend:
    """What a project says that makes its wheel; each call runs the project's own code."""

    project: Path
    python: Path
    """Of the virtual environment with all that it is built with."""
    environ: Mapping[str, str]

    def make_wheel(self, target: Path) -> Finished:
        """Have it make a wheel in a folder; what it said is in `stdout`."""
        target.mkdir()
        return self._run(MAKE, str(target))

    def unpinned_requirements(self, pinned: Collection[str]) -> tuple[str, ...]:
        """Return the requirement lines that it asks for and that `pinned` names do not cover.

        Returns none when it cannot say.
        """
        said = self._run(ASK, "").stdout
        answers = [line for line in said.splitlines() if line.startswith(ANSWER)]
        if not answers:
            return ()
        asked = decode_json(answers[-1].removeprefix(ANSWER), tuple[str, ...])
        known = {canonicalize_name(name) for name in pinned}
        return tuple(line for line in asked if _name(line) not in known)

    def _run(self, script: str, target: str) -> Finished:
        """Run a script; a server that the backend leaves behind ends with the container."""
        system = self._system()
        paths = json.dumps([str(self.project / path) for path in system.backend_path])
        words = (self.python, "-c", script, system.build_backend, paths, target)
        return process.run_to_its_end(words, env=self.environ, cwd=self.project)

    def _system(self) -> _BuildSystem:
        """Read what the project says; raise ToolFailed when it cannot be read."""
        try:
            text = (self.project / "pyproject.toml").read_text(encoding="utf-8")
            return convert(tomllib.loads(text), _Project).build_system
        except FileNotFoundError:
            return _BuildSystem()
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
            message = f"the pyproject.toml of {self.project.name} cannot be read: {error}"
            raise ToolFailed(message, hint="offer a wheel of it instead (--find-links)") from error


def _name(line: str) -> str:
    try:
        return canonicalize_name(Requirement(line).name)
    except InvalidRequirement:
        return line
