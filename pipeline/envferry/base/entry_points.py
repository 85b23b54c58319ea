"""The scripts that a wheel's `entry_points.txt` asks for.

https://packaging.python.org/en/latest/specifications/entry-points/#file-format
"""

from __future__ import annotations

import configparser
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT_GROUPS = ("gui_scripts", "console_scripts")


def read_scripts(text: str) -> Iterator[tuple[str, str]]:
    """Yield each script's name and what it calls, as written; raise ValueError for other text.

    A name that is there as both is yielded twice, the console script last.
    """
    # Only `=` separates: the value has a colon. `%` means nothing in this format.
    parser = configparser.ConfigParser(delimiters=("=",), strict=False, interpolation=None)
    # configparser would turn names into lower case: scripts are called as they are written.
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(text)
    except configparser.Error as error:
        message = f"its entry_points.txt cannot be read: {error}"
        raise ValueError(message) from error
    for group in SCRIPT_GROUPS:
        yield from parser.items(group) if parser.has_section(group) else ()
