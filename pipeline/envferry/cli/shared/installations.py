"""What commands about installed environments share: their names, and times."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.errors import UsageError
from envferry.names import ID_PATTERN

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.install.records.env_home import EnvHome


def home_of(text: str, envs_dir: Path) -> tuple[EnvHome, str | None]:
    """Parse NAME or NAME@ID of something installed."""
    from envferry.install.records.env_home import EnvHome

    name, at, id_ = text.partition("@")
    if at and not ID_PATTERN.fullmatch(id_):
        message = f"{id_!r} is not a valid id: ids have 12 hex digits"
        raise UsageError(message, hint="tags are in the registry; a host knows only ids")
    return EnvHome.of(envs_dir, name), id_ or None


def nothing_in(envs_dir: Path) -> str:
    """Say that nothing is installed."""
    return f"nothing is installed in {envs_dir}; `envferry install NAME@TAG` does that"


def minute(time: str) -> str:
    """Return a time of a record for people: `2026-11-28 23:10` UTC."""
    return time[:16].replace("T", " ")
