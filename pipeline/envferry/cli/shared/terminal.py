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
ELLIPSIS = "  …"
"""Stands for the columns that a terminal has no room for."""
COPIED = ("ID", "ARTIFACT", "NAME")
"""Columns that people copy words from: they are never cut."""


def harmless(text: str) -> str:
    """Return a text that can only colour a terminal: names and licences are untrusted input."""
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

    It is cut to `width` columns, those of the terminal by default, without cutting what is copied
    from it: empty columns go first, then long cells are cut, then columns go from the right, for
    which the header ends with an ellipsis.
    """
    width = width or terminal_width()
    texts = [list(headers), *([str(cell) for cell in row] for row in rows)]
    sizes = [max(map(len, column)) for column in zip(*texts, strict=True)]
    shown = shown_columns(texts, sizes, width)
    is_whole = all(column in shown or is_empty(texts, column) for column in range(len(headers)))
    rest = "" if is_whole else ELLIPSIS
    widths = fitted(headers, sizes, shown, width and width - len(rest))
    for number, row in enumerate(texts):
        cells = [
            cell.rjust(size) if column in right else cell.ljust(size)
            for column, size in zip(shown, widths, strict=True)
            for cell in [row[column] if len(row[column]) <= size else f"{row[column][: size - 1]}…"]
        ]
        line = "  ".join(cells).rstrip()
        yield styled(f"{line}{rest}", bold=True) if number == 0 else line


def shown_columns(
    texts: Sequence[Sequence[str]], sizes: Sequence[int], width: int | None
) -> list[int]:
    """Return the columns that a terminal has room for: all, or those that say most."""
    headers = texts[0]
    columns = list(range(len(headers)))
    if fits(sizes, width):
        return columns
    columns = [column for column in columns if not is_empty(texts, column)]
    room = width
    while not fits(fitted(headers, sizes, columns, room), room):
        last = [column for column in columns if headers[column] not in COPIED]
        if not last:
            break
        columns.remove(last[-1])
        # None stays None: what does not go to a terminal has any width.
        room = width and width - len(ELLIPSIS)
    return columns


def is_empty(texts: Sequence[Sequence[str]], column: int) -> bool:
    """Whether no row says anything in a column."""
    return len(texts) > 1 and not any(row[column] for row in texts[1:])


def fits(sizes: Sequence[int], width: int | None) -> bool:
    """Whether columns and the blanks between them have room."""
    return width is None or sum(sizes) + 2 * (len(sizes) - 1) <= width


def fitted(
    headers: Sequence[str], sizes: Sequence[int], shown: Sequence[int], width: int | None
) -> list[int]:
    """Narrow the widest of some columns until they fit, or nothing more can be cut from them."""
    fitting = {column: sizes[column] for column in shown}
    while not fits([*fitting.values()], width):
        candidates = [
            (size, column)
            for column, size in fitting.items()
            if size > max(LEAST_WIDTH, len(headers[column])) and headers[column] not in COPIED
        ]
        if not candidates:
            break
        _, widest = max(candidates)
        fitting[widest] -= 1
    return [*fitting.values()]
