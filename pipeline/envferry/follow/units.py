"""The systemd units that poll: templates, with this envferry in them."""

from __future__ import annotations

from pathlib import Path

from envferry.base.files import write_bytes

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
