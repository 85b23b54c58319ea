"""Write docs/cli.md from the commands' own help, and the schema of specs: `make docs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from envferry.cli.main import envferry
from envferry.specs.schema import spec_schema

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGET = Path(__file__).with_name("cli.md")
SCHEMA = TARGET.with_name("spec.schema.json")
HEADER = """# Commands

Written by `make docs` from the commands' own help.
"""


def commands(
    command: click.Command, name: str, parent: click.Context | None = None
) -> Iterator[click.Context]:
    """Yield the context of every command line of envferry, groups first."""
    settings = command.context_settings
    context = click.Context(command, parent, info_name=name, terminal_width=88, **settings)
    yield context
    if isinstance(command, click.Group):
        for child_name in command.list_commands(context):
            child = command.get_command(context, child_name)
            assert child is not None
            yield from commands(child, child_name, context)


def render() -> str:
    """Return the page."""
    parts = [HEADER]
    for context in commands(envferry, "envferry"):
        parts.append(f"## {context.command_path}\n\n```\n{context.get_help()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(render())
    SCHEMA.write_text(json.dumps(spec_schema(), indent=1) + "\n")
