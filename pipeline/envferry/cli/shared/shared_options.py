"""Options that several commands share: classes that the options of a command derive from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from envferry.cli.shared.command import CommandOptions, option
from envferry.config import settings
from envferry.names import current_platform

if TYPE_CHECKING:
    from collections.abc import Callable
    from enum import Enum

Value = TypeVar("Value", bound="Enum")


def becomes(kind: type[Value]) -> Callable[[click.Context, click.Parameter, str], Value]:
    """Return the callback of an option whose value is a member of an enum."""

    def convert(_context: click.Context, _option: click.Parameter, text: str) -> Value:
        return kind(text)

    return convert


class RegistryOptions(CommandOptions):
    """For commands that open a registry."""

    registry: str = option(
        "--registry",
        metavar="URL",
        default=lambda: settings().registry,
        show_default="ENVFERRY_REGISTRY, else ./artifacts",
        help="Where artifacts live: a directory, s3://bucket/prefix, oci://host/repository, https://…",
    )


class PlatformOptions(CommandOptions):
    """For commands about an artifact, which is of one platform."""

    platform: str = option(
        "--platform",
        metavar="PLATFORM",
        default=current_platform,
        help="A platform other than this machine's.",
    )


class InterpreterOptions(CommandOptions):
    """For commands that make the one-file tool."""

    interpreter: Path | None = option(
        "--interpreter",
        type=click.Path(path_type=Path),
        metavar="PATH",
        help="The Python in envferry.run: bin/python3.X, needed for another platform; default: the"
        " one that runs envferry.",
    )


class TrustedKeyOptions(CommandOptions):
    """For commands that check signatures."""

    trusted_keys: tuple[Path, ...] = option(
        "--trusted-key",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Also trust this public key, besides /etc/envferry/trusted.d/*.pub; repeatable.",
    )


class SignKeyOptions(CommandOptions):
    """For commands that sign."""

    sign_keys: tuple[str, ...] = option(
        "--sign-key",
        multiple=True,
        # Names of keys in agents and tokens are no paths: one would lose slashes.
        type=click.Path(path_type=str),
        metavar="KEY",
        help="Sign with this key: a file, `ssh:NAME` in an ssh-agent, or a URI `pkcs11:…`;"
        " repeatable. Default: the key in ENVFERRY_SIGN_KEY, if any.",
    )


class TagExpiryOptions(CommandOptions):
    """For commands that move tags."""

    tag_days: int | None = option(
        "--tag-expires",
        type=click.IntRange(1, 36500),
        metavar="DAYS",
        help="The tags expire after so many days, unless they are moved or renewed.",
    )


class SignatureOptions(TrustedKeyOptions):
    """For commands that take artifacts in."""

    require_signature: bool = option(
        "--require-signature",
        is_flag=True,
        help="Reject what is unsigned even without trusted keys; see ENVFERRY_REQUIRE_SIGNATURES.",
    )


class EnvsDirOptions(CommandOptions):
    """For commands about what is installed on this host."""

    envs_dir: Path = option(
        "--envs-dir",
        type=click.Path(path_type=Path),
        default=lambda: settings().envs_dir,
        show_default="/opt/conda/envs",
        help="The directory that holds this host's environments.",
    )


class ThreadOptions(CommandOptions):
    """For commands that compress or write in parallel."""

    threads: int = option(
        "--threads",
        type=click.IntRange(min=0),
        metavar="N",
        default=0,
        help="The number of threads; default: one for each core.",
    )


class NewTagOptions(CommandOptions):
    """For commands that publish."""

    tags: tuple[str, ...] = option(
        "--tag",
        multiple=True,
        metavar="TAG",
        help="Also point this tag at the artifact; repeatable.",
    )


class ChosenTagOptions(CommandOptions):
    """For commands that copy artifacts by their tags."""

    tags: tuple[str, ...] = option(
        "--tag",
        multiple=True,
        metavar="TAG",
        help="Only this tag and the artifact it points to; repeatable.",
    )


class OfflineOptions(CommandOptions):
    """For commands that download."""

    offline: bool = option(
        "--offline", is_flag=True, help="Use only what is in the cache; download nothing."
    )


class DryRunOptions(CommandOptions):
    """For commands that write."""

    dry_run: bool = option(
        "--dry-run", is_flag=True, help="Print what would be done, and change nothing."
    )
