"""The systemd units that poll: templates, with this envferry in them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from envferry.base.files import write_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

UNITS = Path(__file__).with_name("units")
EXECUTABLE = "/usr/local/bin/envferry"
"""What the templates start."""


def write_units(directory: Path, command: str) -> tuple[Path, ...]:
    """Write `envferry-follow@.service` and `.timer`; `command` starts envferry."""
    written = []
    for source in sorted(UNITS.iterdir()):
        target = directory / source.name
        text = source.read_text().replace(f"ExecStart={EXECUTABLE} ", f"ExecStart={command} ")
        write_bytes(target, text.encode())
        written.append(target)
    return tuple(written)


def options_line(words: Sequence[str]) -> str:
    """Return the line of an environment file that gives the service these options; empty for none.

    Quoted twice: for that file, and for the words that systemd makes of the value (systemd.exec(5),
    EnvironmentFile=; systemd.service(5), command lines).
    """
    if not words:
        return ""
    value = shlex.join(words).replace("\\", "\\\\").replace('"', '\\"')
    return f'OPTIONS="{value}"'
