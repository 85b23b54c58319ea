"""Options that several commands share: classes that the options of a command derive from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from envferry.cli.command import COMMON, option
from envferry.cli.console import Console
from envferry.cli.failures import Answer
from envferry.config import forget_relative_path_entries, settings
from envferry.models import current_platform

if TYPE_CHECKING:
    from collections.abc import Callable

Function = TypeVar("Function", bound="Callable[..., Any]")


@dataclass(frozen=True, kw_only=True)
class RegistryOptions:
    """For commands that open a registry."""

    registry: str = option(
        "--registry",
        metavar="URL",
        default=lambda: settings().registry,
        show_default="ENVFERRY_REGISTRY, else ./artifacts",
        help="Where artifacts live: a directory, s3://bucket/prefix or https://…",
    )


@dataclass(frozen=True, kw_only=True)
class PlatformOptions:
    """For commands about an artifact, which is of one platform."""

    platform: str = option(
        "--platform",
        metavar="PLATFORM",
        default=current_platform,
        help="A platform other than this machine's.",
    )


@dataclass(frozen=True, kw_only=True)
class TrustedKeyOptions:
    """For commands that check signatures."""

    trusted_keys: tuple[Path, ...] = option(
        "--trusted-key",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Also trust this public key, besides /etc/envferry/trusted.d/*.pub; repeatable.",
    )


@dataclass(frozen=True, kw_only=True)
class SignKeyOptions:
    """For commands that sign."""

    sign_keys: tuple[Path, ...] = option(
        "--sign-key",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Sign with this key; repeatable. Default: the key in ENVFERRY_SIGN_KEY, if any.",
    )


def common_options(function: Function) -> Function:
    """Add `--json`, `-q`, `-v` to a command, which gets a Console as its first argument."""

    @wraps(function)
    def wrapper(*, as_json: bool, is_quiet: bool, verbosity: int, **others: object) -> object:
        forget_relative_path_entries()
        console = Console(as_json=as_json, is_quiet=is_quiet, verbosity=verbosity)
        console.answer = click.get_current_context().ensure_object(Answer)
        return function(console, **others)

    decorated: Any = wrapper
    for declare in reversed(COMMON):
        decorated = declare(decorated)
    return decorated  # type: ignore[no-any-return]


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
