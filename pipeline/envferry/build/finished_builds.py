"""What the build stage leaves for `pack`, which needs none of what building needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.base.json import from_json
from envferry.errors import NotFound
from envferry.models import BuiltEnv
from envferry.names import current_platform

if TYPE_CHECKING:
    from pathlib import Path

RECORD = "built.json"


def read_build(name: str, builds_dir: Path) -> BuiltEnv:
    """Return the last finished build of an environment; raise NotFound without one."""
    path = builds_dir / f"{name}-{current_platform()}" / RECORD
    try:
        return from_json(path.read_bytes(), BuiltEnv, str(path))
    except FileNotFoundError as error:
        message = f"{name} is not built for {current_platform()}"
        raise NotFound(message, hint=f"run `envferry build {name}`") from error
