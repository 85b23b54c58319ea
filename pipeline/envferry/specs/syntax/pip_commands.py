"""`pip install …` as people copy it from a page into a file: the lines of a requirements file."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from envferry.specs.syntax.pip_lines import OBEYED, SHORT

if TYPE_CHECKING:
    from envferry.specs.syntax.requirement_lines import Line

COMMAND = re.compile(
    r"(?:[$%!] ?)?(?:sudo )?(?:uv |(?:\S*/)?python[\d.]* -m )?pip[\d.]* install (?P<words>.+)"
)
ABOUT_INSTALLING = (
    *("-U", "--upgrade", "--user", "-q", "--quiet", "-v", "--verbose", "--no-cache-dir"),
    *("--break-system-packages", "--force-reinstall", "--no-input", "--system"),
    "--progress-bar=off",
)
"""Options that say how to install, not what."""


def requirements_of(lines: list[Line]) -> str:
    """Return the requirements that `pip install` commands ask for; empty when any line is none.

    An option that is not for requirements files stays a line of its own, for the reader to refuse.
    """
    found: list[str] = []
    for line in lines:
        command = COMMAND.fullmatch(line.text)
        if not command:
            return ""
        try:
            words = shlex.split(command["words"])
        # A quotation mark is not closed: this was no command.
        except ValueError:
            return ""
        found += _lines_of([word for word in words if word not in ABOUT_INSTALLING])
    return "".join(f"{line}\n" for line in found)


def _lines_of(words: list[str]) -> list[str]:
    """Join options with their values; each word else is a requirement."""
    lines: list[str] = []
    waiting = iter(words)
    # One iterator in both places: the value of an option is taken out of the loop.
    for word in waiting:
        takes_value = OBEYED.get(SHORT.get(word, word), False)
        lines.append(f"{word} {next(waiting, '')}".strip() if takes_value else word)
    return lines
