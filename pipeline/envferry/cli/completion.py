"""The command `completion`: the script with which a shell asks how a line goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.shell_completion import get_completion_class

from envferry.cli.shared.command import CommandOptions, argument, command
from envferry.config import COMPLETION_VARIABLE

if TYPE_CHECKING:
    from envferry.cli.shared.console import Console

SHELLS = ("bash", "zsh", "fish")


class CompletionOptions(CommandOptions):
    """Which shell is meant."""

    shell: str = argument(type=click.Choice(SHELLS))


@command(CompletionOptions)
def completion(console: Console, options: CompletionOptions) -> None:
    """Print the script that makes SHELL complete commands, options, specs, refs and names.

    bash: add `eval "$(envferry completion bash)"` to ~/.bashrc; zsh: the same in ~/.zshrc.
    fish: `envferry completion fish > ~/.config/fish/completions/envferry.fish`.
    """
    from envferry.cli.main import envferry

    kind = get_completion_class(options.shell)
    assert kind is not None
    script = kind(envferry, {}, "envferry", COMPLETION_VARIABLE).source()
    console.result({"shell": options.shell, "script": script}, lambda: [script])
