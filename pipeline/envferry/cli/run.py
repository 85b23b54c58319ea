"""Commands that start programs in an installed environment, without conda: run, shell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from envferry.cli.shared.command import argument, command
from envferry.cli.shared.completions import complete_installed
from envferry.cli.shared.shared_options import EnvsDirOptions
from envferry.config import child_environ

if TYPE_CHECKING:
    from envferry.cli.shared.console import Console


class RunOptions(EnvsDirOptions):
    """What to run, and where."""

    name: str = argument(shell_complete=complete_installed)
    words: tuple[str, ...] = argument(
        nargs=-1, required=True, metavar="-- CMD [ARG]...", type=click.UNPROCESSED
    )


class ShellOptions(EnvsDirOptions):
    """Where to open a shell."""

    name: str = argument(shell_complete=complete_installed)


@command(RunOptions)
def run(console: Console, options: RunOptions) -> None:
    """Run CMD in the environment NAME, activated; no conda is needed.

    The spec's `variables:` are set and the packages' activation scripts have run. CMD replaces
    envferry: its signals and its exit code are its own.
    """
    from envferry import process
    from envferry.install.programs.running import start_in
    from envferry.install.records.env_home import EnvHome

    start = start_in(EnvHome.of(options.envs_dir, options.name), options.words)
    process.replace_process(start.argv, start.environ)


@command(ShellOptions)
def shell(console: Console, options: ShellOptions) -> None:
    """Open a shell in the environment NAME, activated; `exit` leaves it.

    The shell is the one in SHELL, else bash or sh. bash, zsh and fish read the user's own files
    first: what these activate does not hide the environment.
    """
    from envferry import process
    from envferry.install.programs.running import interactive_shell
    from envferry.install.records.env_home import EnvHome

    home = EnvHome.of(options.envs_dir, options.name)
    start = interactive_shell(home, child_environ().get("SHELL", ""))
    process.replace_process(start.argv, start.environ)
