"""How to lock."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from envferry.errors import UsageError
from envferry.names import check_platform

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.lock.conda.relax_pins import RelaxLevel


class LockOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to lock, beyond what the spec says."""

    platforms: tuple[str, ...] = ()
    """Platforms to lock for; those that the lock has already stay in it."""
    channels: tuple[str, ...] = ()
    """Channels to use instead of the spec's."""
    solver: Path | None = None
    """A conda, mamba or micromamba to use instead of our own solver."""
    relax: RelaxLevel | None = None
    """How far a conda pin that the channels cannot satisfy may be relaxed."""
    updated: tuple[str, ...] = ()
    """Packages that alone may move; nothing else of the lock does."""
    upgrade: bool = False
    """Whether the existing lock is ignored; else it is kept where possible."""
    exclude_newer: str | None = None
    """A date (ISO 8601): what channels and indexes got later does not exist."""
    offline: bool = False
    """Whether only the caches of channels and indexes are read; what they lack is an error."""
    dry_run: bool = False
    """Whether the lock is only returned, and not written."""


def check_options(options: LockOptions) -> None:
    """Refuse unknown platforms, and an invalid date, or one that the solver does not support."""
    for platform in options.platforms:
        check_platform(platform)
    if options.exclude_newer is None:
        return
    try:
        # Python 3.10 does not read the `Z` of ISO 8601.
        datetime.fromisoformat(options.exclude_newer.replace("Z", "+00:00"))
    except ValueError as error:
        message = f"`{options.exclude_newer}` is not a valid date"
        raise UsageError(message, hint="write it as 2026-11-21, or with a time after it") from error
    if options.solver:
        message = f"{options.solver} cannot exclude packages newer than a date"
        raise UsageError(message, hint="leave out `--solver` or `--exclude-newer`")
