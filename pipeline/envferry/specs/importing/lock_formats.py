"""Locks of other tools, read and not solved again: which files they name, with which hashes.

`conda-lock.yml` (CEP 37), `pixi.lock` (versions 4 to 7), and `@EXPLICIT` lists name the files of an
environment; `uv.lock` (version 1) and `pylock.toml` (PEP 751) name all files of each package of the
pip half, of which the python and the platform choose: that is for the lock stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.errors import SpecError
from envferry.models import LockedPackage
from envferry.names import current_platform
from envferry.specs.importing.conda_environments import draft_explicit
from envferry.specs.importing.conda_locks import read_conda_lock
from envferry.specs.importing.file_kinds import FileKind
from envferry.specs.importing.foreign_lock import ForeignLock
from envferry.specs.importing.pixi_locks import read_pixi_lock
from envferry.specs.importing.pylocks import read_pylock, read_uv_lock

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.specs.importing.conda_environments import ExplicitLine


def read_explicit(text: str, path: Path, name: str) -> ForeignLock:
    """Read an `@EXPLICIT` list."""
    draft, lines = draft_explicit(text, path, name)
    # A list of noarch packages alone, or without a comment, says no platform.
    platforms = draft.platforms or [current_platform()]
    packages = [_explicit_package(line, platform) for line in lines for platform in platforms]
    return ForeignLock(draft=draft, packages=tuple(packages))


def read_foreign_lock(
    text: str, path: Path, kind: FileKind, name: str, python: str | None
) -> ForeignLock:
    """Read a lock that is a document; raise SpecError when it is damaged or of another version.

    `python` is for locks of the pip half alone.
    """
    try:
        if kind is FileKind.CONDA_LOCK:
            return read_conda_lock(text, path, name)
        if kind is FileKind.PIXI_LOCK:
            return read_pixi_lock(text, path, name)
        read = read_uv_lock if kind is FileKind.UV_LOCK else read_pylock
        return read(text, path, name, python)
    # The readers take documents apart without checks: what is missing or of another type ends
    # here.
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"it has no `{error.args[0]}`" if isinstance(error, KeyError) else str(error)
        message = f"{path} is damaged, expected {kind.value}: {what}"
        raise SpecError(message, hint="regenerate it with the tool that wrote it") from error


def _explicit_package(line: ExplicitLine, platform: str) -> LockedPackage:
    return LockedPackage(
        manager="conda" if line.build is not None else "pip",
        name=line.name,
        version=line.version,
        platform=platform,
        url=line.url,
        sha256=line.sha256,
        md5=line.md5,
        build=line.build,
    )
