"""Commands whose options are a frozen dataclass: one declaration, known to the type checker.

    @dataclass(frozen=True, kw_only=True)
    class TagOptions(RegistryOptions):
        ref: str = argument()
        dry_run: bool = option("--dry-run", is_flag=True, help="Change nothing.")

    @command(TagOptions)
    def tag(console: Console, options: TagOptions) -> None: ...

The name of a field is the name of its parameter. Options that several commands share are a class
that theirs derive from; a command's own come first in its help.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

from envferry.cli.console import Console
from envferry.cli.failures import Answer
from envferry.config import forget_relative_path_entries, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Options = TypeVar("Options")
Decorator = Any
"""What click.option returns: click's own type of it is not public."""


def option(*names: str, **settings: Any) -> Any:  # noqa: ANN401  (dataclasses.field's way)
    """Declare a field that is an option, with the settings of click.option."""
    return field(metadata={"declare": partial(_option, names, settings), "is_option": True})


def _option(names: tuple[str, ...], settings: dict[str, Any], name: str) -> Decorator:
    return click.option(*names, name, **settings)


def argument(**settings: Any) -> Any:  # noqa: ANN401
    """Declare a field that is an argument, with the settings of click.argument."""
    return field(metadata={"declare": partial(click.argument, **settings), "is_option": False})


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """For commands that have only the options of every command."""


def command(
    options: type[Options], *, group: click.Group | None = None
) -> Callable[[Callable[[Console, Options], int | None]], click.Command]:
    """Make a function a command that gets its Console and its options.

    Every command also has `--json`, `-q` and `-v`, of which the Console is made. An int that the
    function returns is the exit code.
    """

    def decorate(function: Callable[[Console, Options], int | None]) -> click.Command:
        def run(*, as_json: bool, is_quiet: bool, verbosity: int, **values: object) -> int | None:
            forget_relative_path_entries()
            if (umask := settings().umask) is not None:
                os.umask(umask)
            console = Console(as_json=as_json, is_quiet=is_quiet, verbosity=verbosity)
            console.answer = click.get_current_context().ensure_object(Answer)
            return function(console, options(**values))

        run.__doc__ = function.__doc__
        decorated: Any = run
        for declare in reversed([*_declared(options), *COMMON]):
            decorated = declare(decorated)
        name = function.__name__.removesuffix("_command").replace("_", "-")
        made: click.Command = click.command(name)(decorated)
        if group is not None:
            group.add_command(made)
        return made

    return decorate


COMMON: tuple[Decorator, ...] = (
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout."),
    click.option("-q", "--quiet", "is_quiet", is_flag=True, help="No progress, no warnings."),
    click.option("-v", "--verbose", "verbosity", count=True, help="Show every command that runs."),
)


def _declared(options: Any) -> Iterator[Decorator]:  # noqa: ANN401  (a class that is a dataclass)
    """Yield click's decorators of a class's fields: arguments, its own options, inherited ones."""
    bases = (base for base in options.__mro__[1:] if is_dataclass(base))
    inherited = {item.name for base in bases for item in fields(base)}
    declared = sorted(
        fields(options), key=lambda item: (item.metadata["is_option"], item.name in inherited)
    )
    for item in declared:
        yield item.metadata["declare"](item.name)
