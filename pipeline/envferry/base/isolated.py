"""Isolated runs of an environment's own programs: nothing of the caller's reaches them."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from envferry.base.env_variables import set_variables

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
ISOLATED_ENVIRONMENT: Mapping[str, str] = {
    "LC_ALL": "C.UTF-8",
    # Command checks start Python through entry-point scripts, which take no `-I`.
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONNOUSERSITE": "1",
}
"""All that is set beside PATH, HOME, TMPDIR and what activation sets: nothing is the caller's."""
OWN = frozenset(("HOME", "PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONNOUSERSITE", "TMPDIR"))
"""What isolates a program. An environment's `variables:` do not change it."""


def activated(variables: Mapping[str, str]) -> dict[str, str]:
    """Return what an isolated program finds set, of what activation sets."""
    return {name: value for name, value in set_variables(variables).items() if name not in OWN}


class Isolation(msgspec.Struct, frozen=True, kw_only=True):
    """The environment variables and the working directory of an isolated program."""

    environ: Mapping[str, str]
    directory: Path
    """Empty, mode 0700; HOME and TMPDIR are directories like it."""


@contextmanager
def isolated(prefix: str) -> Iterator[Isolation]:
    """Make an empty home and working directory of mode 0700 for one program; remove them after.

    A program of the environment at `prefix` comes first on PATH. HOME must not be a directory that
    others can write to: Python imports from `~/.local/lib/pythonX.Y/site-packages`.
    """
    with tempfile.TemporaryDirectory(prefix="envferry-check-", ignore_cleanup_errors=True) as top:
        folders = {name: Path(top, name) for name in ("home", "tmp", "work")}
        for folder in folders.values():
            folder.mkdir(mode=0o700)
        environ = {
            **ISOLATED_ENVIRONMENT,
            "PATH": f"{prefix}/bin:{SYSTEM_PATH}",
            "HOME": str(folders["home"]),
            "TMPDIR": str(folders["tmp"]),
        }
        yield Isolation(environ=environ, directory=folders["work"])
