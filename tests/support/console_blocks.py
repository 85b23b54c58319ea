"""Run the console blocks of a page in one shell, and compare what they print with the page."""

from __future__ import annotations

import re
import secrets
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

BLOCK = re.compile(r"^```(?P<kind>console|yaml)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBERS = (
    (re.compile(r"\b[0-9a-f]{12}\b"), "ID"),
    (re.compile(r"\b\d{4}-\d\d-\d\d( \d\d:\d\d)?"), "DATE"),
    (re.compile(r"\d[\d.,]*\d|\d"), "N"),
    (re.compile(r"N (B|kB|MB|GB)\b"), "SIZE"),
    (re.compile(r": N s(, SIZE)?(, SIZE/s)?$"), ": N s"),
    (re.compile(r"[ \t]+"), " "),
)
"""What differs from machine to machine and run to run."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: commands with what they print, or the text of a file."""

    kind: str
    text: str

    def commands(self) -> Iterator[tuple[str, list[str]]]:
        """Yield each command, and the lines that it is said to print."""
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            command, *lines = part.rstrip("\n").split("\n")
            yield command, lines


def blocks_of(page: str) -> list[Block]:
    """Return the console and yaml blocks of a page, in order."""
    return [Block(kind=one["kind"], text=one["text"]) for one in BLOCK.finditer(page)]


def plain(line: str) -> str:
    """Return a line without what no two runs have in common."""
    for pattern, name in NUMBERS:
        line = pattern.sub(name, line)
    return line.strip()


def agrees(said: Sequence[str], shown: Sequence[str]) -> bool:
    """Whether output is what a page shows: `…` alone is any lines, within one it is anything."""
    parts = []
    for line in filter(str.strip, shown):
        if line.strip() == "…":
            parts.append(r"(?:.*\n)*?")
        else:
            parts.append(".*".join(map(re.escape, plain(line).split("…"))) + "\n")
    text = "".join(f"{plain(line)}\n" for line in said if line.strip())
    return re.fullmatch("".join(parts), text) is not None


def check_page(
    steps: Sequence[tuple[str, list[str]]],
    folder: Path,
    environ: Mapping[str, str],
    *,
    within: Sequence[str] = (),
) -> None:
    """Run commands one after the other; fail with all that print something else than is shown.

    A step is a command and the lines that it is to print.
    """
    said = run_commands([command for command, _ in steps], folder, environ, within=within)
    wrong = [
        "\n".join([f"$ {command}", *printed])
        for (command, shown), printed in zip(steps, said, strict=True)
        if not agrees(printed, shown)
    ]
    assert not wrong, "\n".join(wrong)


def run_commands(
    commands: Sequence[str], folder: Path, environ: Mapping[str, str], *, within: Sequence[str] = ()
) -> list[list[str]]:
    """Run commands in one bash, so that `cd` and `export` last; return the lines of each.

    `within` starts the bash, such as in a container.
    """
    mark = secrets.token_hex(8)
    script = "".join(f"{{ {command}\n}} 2>&1\necho\necho {mark}\n" for command in commands)
    argv = [*within, "bash", "--norc", "-c", script]
    finished = subprocess.run(
        argv, cwd=folder, env=dict(environ), capture_output=True, text=True, check=False
    )
    assert finished.stderr == "", finished.stderr
    return [part.splitlines() for part in finished.stdout.split(f"{mark}\n")[:-1]]
