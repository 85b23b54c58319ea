"""What our conda-compatible solver is told beyond the words of conda's command line."""

from __future__ import annotations

import msgspec


class Preferences(msgspec.Struct, frozen=True, kw_only=True):
    """A file beside the solver, by its option `--preferences`."""

    specs: tuple[str, ...] = ()
    """What to solve, in full; the command line has only the names of it."""
    kept: tuple[str, ...] = ()
    """URLs of packages that stay where the specs allow it."""
    updated: tuple[str, ...] = ()
    """Names that alone may move; when there are any, all else of `kept` must stay."""
    exclude_newer: str | None = None
    """A date or time (ISO 8601): what a channel got later does not exist."""
    offline: bool = False
    """Whether only the cache of repodata is read."""
    channels: dict[str, str] = {}
    """The URLs of channels with their logins, by what the command line calls them."""
