"""Errors about the values of a spec: what was expected, what was found, with its line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.errors import SpecError
from envferry.specs.syntax.yaml_text import Mapping, Sequence, Text, line_of

if TYPE_CHECKING:
    from pathlib import Path


def unexpected(path: Path, found: object, expected: str, line: int = 0) -> SpecError:
    """Return the error for an unexpected value; `line` is for values that have none."""
    place = f"{path}:{line_of(found) or line}"
    if isinstance(found, Text):
        what = shorten(found) if found else "nothing"
    elif isinstance(found, Mapping):
        what = f"a mapping with the keys {shorten(', '.join(map(str, found)))}"
    else:
        what = "a list"
    return SpecError(f"{place}: expected {expected}, found {what}", hint="correct that line")


def shorten(value: object) -> str:
    """Return a value as errors show it: quoted, 60 characters at most."""
    text = " ".join(str(value).split())
    return f"`{text[:60]}…`" if len(text) > 60 else f"`{text}`"


def list_of_strings(content: Mapping, key: str, path: Path) -> tuple[str, ...]:
    """Return a list of strings, empty when the key is missing or has no value."""
    items = content.get(key, "")
    if items == "":
        return ()
    if not isinstance(items, Sequence) or not all(isinstance(item, Text) for item in items):
        raise unexpected(path, items, f"`{key}:` to be a list of names", line_of(content))
    return tuple(str(item).strip() for item in items)
