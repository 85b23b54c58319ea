"""What may be shown on a terminal: text that does no more than colour it, and tables."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CONTROL = re.compile(r"\x1b(?!\[[0-9;]*m)|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]")
"""Control characters but tab, newline and what sets colours."""


def harmless(text: str) -> str:
    """Return a text that can only colour a terminal: names and licences come from anybody."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def table(
    headers: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int]
) -> Iterator[str]:
    """Yield the lines of a table; the columns numbered in `right` are aligned to the right."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(headers, *texts, strict=True)]
    for number, row in enumerate([list(headers), *texts]):
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        line = "  ".join(cells).rstrip()
        yield click.style(line, bold=True) if number == 0 else line
