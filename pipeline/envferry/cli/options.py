"""Options that every command has."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from envferry.cli.console import Console
from envferry.cli.failures import Answer
from envferry.config import forget_relative_path_entries, settings

if TYPE_CHECKING:
    from collections.abc import Callable

Function = TypeVar("Function", bound="Callable[..., Any]")


def common_options(function: Function) -> Function:
    """Add `--json`, `-q`, `-v` to a command, which gets a Console as its first argument."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
    @click.option("-q", "--quiet", "is_quiet", is_flag=True, help="No progress, no warnings.")
    @click.option("-v", "--verbose", "verbosity", count=True, help="Show every command that runs.")
    @wraps(function)
    def wrapper(*, as_json: bool, is_quiet: bool, verbosity: int, **others: object) -> object:
        forget_relative_path_entries()
        console = Console(as_json=as_json, is_quiet=is_quiet, verbosity=verbosity)
        console.answer = click.get_current_context().ensure_object(Answer)
        return function(console, **others)

    return wrapper  # type: ignore[return-value]


threads_option = click.option(
    "--threads", type=click.IntRange(min=0), metavar="N", default=0,
    help="How many threads work; as many as there are cores unless given.",
)  # fmt: skip


def registry_option(function: Function) -> Function:
    """Add `--registry`; its default is ENVFERRY_REGISTRY, else ./artifacts."""
    return click.option(
        "--registry",
        metavar="URL",
        default=lambda: settings().registry,
        show_default="ENVFERRY_REGISTRY, else ./artifacts",
        help="Where artifacts live: a directory, s3://bucket/prefix or https://…",
    )(function)
