"""What a project's build backend asks for only while it runs, and nobody pinned (PEP 517)."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import msgspec
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from pipeline import process

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

ANSWER = "envferry asked: "
ASK = f"""
import functools, importlib, json, sys
module, _, name = sys.argv[1].partition(":")
sys.path[:0] = json.loads(sys.argv[2])
backend = functools.reduce(getattr, filter(None, name.split(".")), importlib.import_module(module))
ask = getattr(backend, "get_requires_for_build_wheel", lambda settings=None: [])
print({ANSWER!r} + json.dumps(list(ask(None))))
"""


class _BuildSystem(msgspec.Struct, rename="kebab"):
    build_backend: str = "setuptools.build_meta:__legacy__"
    """What PEP 517 says of a project that names none."""
    backend_path: tuple[str, ...] = ()


class _Project(msgspec.Struct, rename="kebab"):
    build_system: _BuildSystem = msgspec.field(default_factory=_BuildSystem)


def unpinned_requirements(
    project: Path, python: Path, pinned: Collection[str], environ: Mapping[str, str]
) -> tuple[str, ...]:
    """Return the requirement lines that a backend asks for and that `pinned` names do not cover.

    Runs the project's own code. Returns none when the backend cannot say.
    """
    try:
        text = (project / "pyproject.toml").read_text()
        system = msgspec.convert(tomllib.loads(text), _Project).build_system
    except FileNotFoundError:
        system = _BuildSystem()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError):
        return ()
    paths = json.dumps([str(project / path) for path in system.backend_path])
    words = (python, "-c", ASK, system.build_backend, paths)
    said = process.run(words, env=environ, cwd=project, check=False).stdout
    answers = [line for line in said.splitlines() if line.startswith(ANSWER)]
    if not answers:
        return ()
    asked = msgspec.json.decode(answers[-1].removeprefix(ANSWER), type=tuple[str, ...])
    known = {canonicalize_name(name) for name in pinned}
    return tuple(line for line in asked if _name(line) not in known)


def _name(line: str) -> str:
    try:
        return canonicalize_name(Requirement(line).name)
    except InvalidRequirement:
        return line
