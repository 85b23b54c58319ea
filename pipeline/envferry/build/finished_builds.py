"""What the build stage leaves for `pack`, which needs none of what building needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.base.json import from_json
from envferry.errors import NotFound
from envferry.models import BuiltEnv
from envferry.names import current_platform
from envferry.suggestions import did_you_mean

if TYPE_CHECKING:
    from pathlib import Path

RECORD = "built.json"


def read_build(name: str, builds_dir: Path) -> BuiltEnv:
    """Return the last finished build of an environment; raise NotFound without one."""
    # The record is written last: without it, a folder is not a finished build.
    path = builds_dir / f"{name}-{current_platform()}" / RECORD
    try:
        return from_json(path.read_bytes(), BuiltEnv, str(path))
    except FileNotFoundError as error:
        message = f"{name} is not built for {current_platform()}"
        hint = did_you_mean(name, built_names(builds_dir), f"run `envferry build {name}`")
        raise NotFound(message, hint=hint) from error


def built_names(builds_dir: Path) -> list[str]:
    """Return the names of the environments that are built for this platform."""
    end = f"-{current_platform()}"
    return sorted(
        path.parent.name.removesuffix(end) for path in builds_dir.glob(f"*{end}/{RECORD}")
    )
