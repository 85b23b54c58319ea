"""Words of shells, in scripts that others run."""

from __future__ import annotations


def quoted(text: str) -> str:
    """Return a text as a word of a POSIX shell, in quotes also where it needs none yet."""
    # Single quotes have no escape (POSIX, Quoting): they are closed, `'` follows in double quotes,
    # and they are opened again.
    return "'" + text.replace("'", "'\"'\"'") + "'"


def fish_quoted(text: str) -> str:
    """Return a text as a word of fish."""
    # In fish's single quotes, a backslash escapes itself and the quote.
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
