"""Words of shells, in scripts that others run."""

from __future__ import annotations


def quoted(text: str) -> str:
    """Return a text as a word of a POSIX shell, in quotes also where it needs none yet."""
    return "'" + text.replace("'", "'\"'\"'") + "'"


def fish_quoted(text: str) -> str:
    """Return a text as a word of fish."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
