"""Commands whose options are the fields of a class: one declaration, known to the type checker.

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
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from envferry.cli.shared.console import Console
from envferry.cli.shared.failures import Answer
from envferry.config import settings, tidy_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Options = TypeVar("Options", bound="CommandOptions")
Decorator = Any
"""What click.option returns: click's own type of it is not public."""


class Declared(msgspec.Struct, frozen=True):
    """What a field of a class of options is on the command line."""

    declare: Callable[[str], Decorator]
    """Gives click's decorator for the field's name."""
    is_option: bool


def option(*names: str, **settings: Any) -> Any:  # noqa: ANN401  (as dataclasses.field)
    """Declare a field that is an option, with the settings of click.option."""
    return Declared(lambda name: click.option(*names, name, **settings), is_option=True)


def argument(**settings: Any) -> Any:  # noqa: ANN401
    """Declare a field that is an argument, with the settings of click.argument."""
    return Declared(lambda name: click.argument(name, **settings), is_option=False)


class CommandOptions:
    """The values of a command's options: click gives each of them.

    No dataclass: those compile their methods whenever a program starts, and structs cannot have
    two bases.
    """

    def __init__(self, **values: object) -> None:
        """Take a value for each field; raises TypeError for one that is missing or unknown."""
        if values.keys() != declared_fields(type(self)).keys():
            odd = sorted(values.keys() ^ declared_fields(type(self)).keys())
            message = f"{type(self).__name__}: missing or unknown: {', '.join(odd)}"
            raise TypeError(message)
        self.__dict__.update(values)


class NoOptions(CommandOptions):
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
            # First: relative entries of PATH would let the current folder decide which programs
            # run.
            tidy_environment()
            if (umask := settings().umask) is not None:
                os.umask(umask)
            console = Console(as_json=as_json, is_quiet=is_quiet, verbosity=verbosity)
            console.answer = click.get_current_context().ensure_object(Answer)
            return function(console, options(**values))

        run.__doc__ = function.__doc__
        decorated: Any = run
        # click shows parameters in the order in which decorators are written, and the last one
        # written is the first to be applied.
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


def declared_fields(options: type[CommandOptions]) -> dict[str, Declared]:
    """Return the fields of a class of options, inherited ones too, by name."""
    return {
        name: value
        for base in reversed(options.__mro__)
        for name, value in vars(base).items()
        if isinstance(value, Declared)
    }


def _declared(options: type[CommandOptions]) -> Iterator[Decorator]:
    """Yield click's decorators of a class's fields: arguments, its own options, inherited ones."""
    inherited = {name for base in options.__mro__[1:] for name in vars(base)}
    found = declared_fields(options)
    for name in sorted(found, key=lambda name: (found[name].is_option, name in inherited)):
        yield found[name].declare(name)
