"""Suggestions for a misspelt word."""

from __future__ import annotations

import difflib
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


NEARLY = 0.85
"""difflib's ratio."""


def closest(word: str, known: Iterable[str], count: int = 1) -> list[str]:
    """Return up to `count` known words that are close to a word, the closest first."""
    return difflib.get_close_matches(word, list(known), n=count)


def is_nearly(word: str, known: str) -> bool:
    """Whether a word is another one but for a slip: one letter in eight."""
    return bool(difflib.get_close_matches(word, [known], cutoff=NEARLY))


def perhaps(word: str, known: Iterable[str]) -> str:
    """Return an end of a message that suggests the closest known word; empty if none is close."""
    close = closest(word, known)
    return f", perhaps you meant `{close[0]}`" if close else ""


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """Return a hint: the closest known word as a question, before what to do `otherwise`."""
    close = closest(word, known)
    return f"did you mean `{close[0]}`? Else {otherwise}" if close else otherwise


def did_you_mean_file(path: Path, otherwise: str) -> str:
    """Return a hint for a file that is not there: the closest name in its folder as a question."""
    names: list[str] = []
    with suppress(OSError):  # no folder, or none that can be read: there is nothing to suggest
        names = sorted(one.name for one in path.parent.iterdir() if one.name != path.name)
    close = closest(path.name, names)
    return f"did you mean `{path.with_name(close[0])}`? Else {otherwise}" if close else otherwise
