"""What may be shown on a terminal: text that does no more than colour it, and tables."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from typing import TYPE_CHECKING

import click

from envferry.config import started_file, wants_colours

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CONTROL = re.compile(r"\x1b(?!\[[0-9;]*m)|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]")
"""Control characters but tab, newline and what sets colours."""
LEAST_WIDTH = 8
COPIED = ("ID", "ARTIFACT", "NAME")
"""Columns that people copy words from: they are never cut."""


def harmless(text: str) -> str:
    """Return a text that can only colour a terminal: names and licences come from anybody."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def printable(text: str) -> str:
    """Return what is told to people: harmless, and with commands in backticks as they are typed."""
    return harmless(text.replace("`envferry ", f"`{own_name()} "))


def own_name() -> str:
    """Return what a user types for `envferry`: of the one-file tool its path, unless on PATH."""
    path = started_file()
    return f"sh {shlex.quote(str(path))}" if path and path.name != "envferry" else "envferry"


def styled(text: str, *, bold: bool = False, fg: str | None = None) -> str:
    """Return a text in bold or a colour, unless the user or the terminal wants neither."""
    return click.style(text, bold=bold or None, fg=fg) if wants_colours() else text


def terminal_width() -> int | None:
    """Return how many columns the terminal has; None where the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[object]],
    right: Sequence[int],
    width: int | None = None,
) -> Iterator[str]:
    """Yield the lines of a table; the columns numbered in `right` are aligned to the right.

    It is cut to `width` columns, those of the terminal by default, as far as that is possible
    without cutting what is copied from it.
    """
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(headers, *texts, strict=True)]
    widths = fitted(headers, widths, width or terminal_width())
    for number, row in enumerate([list(headers), *texts]):
        cells = [
            cell.rjust(size) if column in right else cell.ljust(size)
            for column, (text, size) in enumerate(zip(row, widths, strict=True))
            for cell in [text if len(text) <= size else f"{text[: size - 1]}…"]
        ]
        line = "  ".join(cells).rstrip()
        yield styled(line, bold=True) if number == 0 else line


def fitted(headers: Sequence[str], widths: list[int], width: int | None) -> list[int]:
    """Narrow the widest columns until a table fits, or nothing more can be cut from it."""
    fitting = list(widths)
    while width is not None and sum(fitting) + 2 * (len(fitting) - 1) > width:
        candidates = [
            (size, column)
            for column, size in enumerate(fitting)
            if size > max(LEAST_WIDTH, len(headers[column])) and headers[column] not in COPIED
        ]
        if not candidates:
            break
        _, widest = max(candidates)
        fitting[widest] -= 1
    return fitting
