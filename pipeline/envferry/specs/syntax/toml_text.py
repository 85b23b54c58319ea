"""Parse TOML 1.1: the standard library reads 1.0 only, in which inline tables are one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tomli import TOMLDecodeError, loads

if TYPE_CHECKING:
    from pathlib import Path

from envferry.errors import SpecError

__all__ = ["TOMLDecodeError", "all_of", "parse_toml", "table_at"]


def parse_toml(text: str) -> dict[str, Any]:
    """Parse a document; raise TOMLDecodeError, with line and column, when it is not valid."""
    document: dict[str, Any] = loads(text)
    return document


def table_at(value: object, path: Path, name: str) -> dict[str, Any]:
    """Return a value that must be a table; raise SpecError with its name otherwise."""
    if not isinstance(value, dict):
        msg = f"{path}: `{name}` is not a table"
        raise SpecError(msg, hint="correct it")
    return value


def all_of(value: object) -> str:
    """Say all that a value holds, in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} = {all_of(item)}" for key, item in value.items())
    return repr(value)
