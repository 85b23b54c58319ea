"""Write the pages that the code describes, and the schema of specs: `make docs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from docs.api_page import api_page
from envferry.base.settings_table import SETTINGS, Setting
from envferry.cli.main import envferry
from envferry.specs.schema import spec_schema

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGET = Path(__file__).with_name("cli.md")
SCHEMA = TARGET.with_name("spec.schema.json")
SETTINGS_PAGE = TARGET.with_name("settings.md")
API_PAGE = TARGET.with_name("api.md")
SETTINGS_HEADER = """# Settings

Written by `make docs` from `base/settings_table.py`. `envferry config` shows each value and what
says so.

From the least important to the most: the default, `/etc/envferry/config.toml`, the user's file
(`~/.config/envferry/config.toml`), the variable, the option of a command.

```toml
# /etc/envferry/config.toml
registry = "https://envs.example/prod"
require_signatures = true
post_install_hooks = ["/etc/envferry/hooks/announce"]
modulefile_dir = "/opt/modulefiles"
```

An unknown key is an error, and so is a relative path. A file is refused if every user may write to
it or to its folder, or if it belongs neither to root nor to the user who runs envferry; root
refuses, too, what a group may write.

| key | variable | option | default | meaning |
|---|---|---|---|---|
"""
SETTINGS_FOOTER = """
`SOURCE_DATE_EPOCH`, seconds since 1970, becomes the time of every file in an archive; default:
315532800 (1980).

A hook runs after the change, outside of the environment's lock, with envferry's own variables and
directory. It must be executable, not lie in the envs directory, and belong to root or to the user
who runs envferry; no other user may be able to change it. One that fails makes the command exit
with 4; what was changed stays.
"""
HEADER = """# Commands

Written by `make docs` from the commands' own help.
"""


def settings_page() -> str:
    """Return the page of all settings."""
    rows = [
        f"| {key_of(one)} | `{one.variable}` | {one.option and f'`{one.option}`'} | "
        f"{default_of(one)} | {one.help} |"
        for one in SETTINGS
    ]
    return SETTINGS_HEADER + "\n".join(rows) + "\n" + SETTINGS_FOOTER


def key_of(setting: Setting) -> str:
    """Return the key of a setting in a file."""
    return f"`{setting.key}`" if setting.in_files else ""


def default_of(setting: Setting) -> str:
    """Return what counts where nothing is set."""
    if setting.shown_default:
        return setting.shown_default
    return f"`{str(setting.default).lower() if setting.kind == 'flag' else setting.default}`"


def commands(
    command: click.Command, name: str, parent: click.Context | None = None
) -> Iterator[click.Context]:
    """Yield the context of every command line of envferry, groups first."""
    settings = command.context_settings
    context = click.Context(command, parent, info_name=name, terminal_width=80, **settings)
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
    SETTINGS_PAGE.write_text(settings_page())
    API_PAGE.write_text(api_page())
    SCHEMA.write_text(json.dumps(spec_schema(), indent=1) + "\n")
