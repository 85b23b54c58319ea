"""A project's build backend (PEP 517): the wheel that it makes, and what it asks for meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from pyproject_hooks import (
    BackendUnavailable,
    BuildBackendHookCaller,
    HookMissing,
    UnsupportedOperation,
)

from envferry import process
from envferry.base.json import convert
from envferry.base.toml import TomlFault, decode_toml
from envferry.errors import ToolFailed
from envferry.process import Finished

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence


NO_ANSWER = (BackendUnavailable, HookMissing, UnsupportedOperation, OSError, ValueError)
"""What pyproject-hooks raises for a backend that cannot be imported or leaves no answer."""


class _HookFailed(Exception):
    """The program that calls a hook ended with an error."""


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
        # Must be new: a wheel of an earlier run in it would count as made.
        target.mkdir()
        return self._call(lambda hooks: hooks.build_wheel(str(target)))

    def unpinned_requirements(self, pinned: Collection[str]) -> tuple[str, ...]:
        """Return the requirement lines that it asks for and that `pinned` names do not cover.

        Returns none when it cannot say.
        """
        asked: list[str] = []
        self._call(lambda hooks: asked.extend(hooks.get_requires_for_build_wheel()))
        known = {canonicalize_name(name) for name in pinned}
        return tuple(line for line in asked if _name(line) not in known)

    def _call(self, hook: Callable[[BuildBackendHookCaller], object]) -> Finished:
        """Call a hook; a server that the backend leaves behind ends with the container."""
        system = self._system()
        said: list[Finished] = []

        def run(
            cmd: Sequence[str],
            cwd: str | None = None,
            extra_environ: Mapping[str, str] | None = None,
        ) -> None:
            # pyproject-hooks passes the name of the backend in these variables.
            environ = {**self.environ, **(extra_environ or {})}
            said.append(process.run_to_its_end(cmd, env=environ, cwd=Path(cwd or self.project)))
            if said[-1].returncode:
                raise _HookFailed

        try:
            hook(
                BuildBackendHookCaller(
                    str(self.project),
                    system.build_backend,
                    system.backend_path,
                    runner=run,
                    python_executable=str(self.python),
                )
            )
        except _HookFailed:
            # Its exit code and its output are in `said`.
            pass
        except NO_ANSWER as error:
            lines = [finished.stdout for finished in said] + [str(error)]
            return Finished(returncode=1, stdout="\n".join(lines), stderr="")
        return said[-1]

    def _system(self) -> _BuildSystem:
        """Read what the project says; raise ToolFailed when it cannot be read."""
        try:
            text = (self.project / "pyproject.toml").read_text(encoding="utf-8")
            return convert(decode_toml(text), _Project).build_system
        except FileNotFoundError:
            return _BuildSystem()
        except (TomlFault, UnicodeDecodeError, msgspec.ValidationError) as error:
            message = f"the pyproject.toml of {self.project.name} cannot be read: {error}"
            raise ToolFailed(message, hint="offer a wheel of it instead (--find-links)") from error


def _name(line: str) -> str:
    try:
        return canonicalize_name(Requirement(line).name)
    # Shown as it is: the line is the backend's, and its fault is not ours to report.
    except InvalidRequirement:
        return line
