"""The command `man`: man pages for this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from envferry.base.files import expand_home, make_folders, write_bytes
from envferry.base.text import plural
from envferry.cli.shared.command import CommandOptions, argument, command

if TYPE_CHECKING:
    from envferry.cli.shared.console import Console

USUAL_DIR = "~/.local/share/man"


class ManOptions(CommandOptions):
    """Where the pages go."""

    directory: Path = argument(
        type=click.Path(path_type=Path), required=False, default=USUAL_DIR, metavar="[DIR]"
    )


@command(ManOptions)
def man(console: Console, options: ManOptions) -> None:
    """Write the man pages of all commands to DIR/man1.

    The default DIR is ~/.local/share/man, where `man` looks: `man envferry-install` then shows the
    page of `envferry install`. As root, /usr/local/share/man serves all users. Run it again after
    an update of envferry.
    """
    from envferry.cli.main import SECTIONS, envferry
    from envferry.cli.man_pages import man_pages
    from envferry.errors import HostError

    folder = expand_home(options.directory) / "man1"
    pages = dict(man_pages(envferry, SECTIONS))
    try:
        make_folders(folder)
        for name, text in pages.items():
            write_bytes(folder / name, text.encode())
    except OSError as error:
        message = f"cannot write to {folder}: {error.strerror}"
        raise HostError(message, hint="name another directory: `envferry man DIR`") from error
    facts = {"directory": folder, "pages": list(pages)}
    console.result(facts, lambda: [f"{folder}: {plural(len(pages), 'man page')}"])
