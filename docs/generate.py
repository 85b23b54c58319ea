"""Write docs/cli.md from the commands' own help: `make docs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.main import envferry

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGET = Path(__file__).with_name("cli.md")
HEADER = """# Commands

Written by `make docs` from the commands' own help.
"""


def commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, click.Context]]:
    """Yield every command line of envferry with its context, groups first."""
    context = click.Context(command, info_name=" ".join(path), terminal_width=88)
    yield " ".join(path), context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from commands(child, (*path, name))


def render() -> str:
    """Return the page."""
    parts = [HEADER]
    for path, context in commands(envferry, ("envferry",)):
        parts.append(f"## {path}\n\n```\n{context.get_help()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(render())
