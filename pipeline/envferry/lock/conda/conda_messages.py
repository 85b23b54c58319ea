"""What the conda half of a lock is asked for, and what is found."""

from __future__ import annotations

import msgspec

from envferry.models import ChannelPriority, LockedPackage, SystemRequirements


class SpecAsWritten(msgspec.Struct, frozen=True, kw_only=True):
    """What conda-lock's content hash is made of: no relaxed pin and no mirror is part of it."""

    path: str
    channels: tuple[str, ...]
    system: SystemRequirements = SystemRequirements()


class CondaRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to solve, for every platform at once."""

    written: SpecAsWritten
    platforms: tuple[str, ...]
    channels: tuple[str, ...]
    """The channels to solve with; they win over those of the spec."""
    conda: dict[str, tuple[str, ...]]
    """The match specs to solve, by platform."""
    has_pip: bool
    solver: str | None = None
    """A conda, mamba or micromamba to use instead of our solver."""
    kept: tuple[LockedPackage, ...] = ()
    """What an earlier lock has: stays, as far as the specs allow it."""
    updated: tuple[str, ...] = ()
    """Names that alone may move; when there are any, all else of `kept` must stay."""
    exclude_newer: str | None = None
    """A date: what a channel got later does not exist."""
    priority: ChannelPriority = "strict"
    """Whether a package may come from a channel behind the first that has its name."""
    offline: bool = False
    """Whether only the solver's cache of repodata is read."""


class CondaLockRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What conda-lock is asked for."""

    written: SpecAsWritten
    """The spec to hash."""
    platforms: tuple[str, ...]
    solve: CondaRequest | None = None
    """What its `solver` is to solve for these platforms; None: the spec is only hashed."""


class CondaAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What was found; `error` is the solver's own explanation when it found nothing."""

    packages: tuple[LockedPackage, ...] = ()
    content_hashes: dict[str, str] = {}
    """By platform; only conda-lock answers with them."""
    error: str = ""
    platform: str = ""
    """The platform that could not be solved."""
    bad_line: str = ""
    """The line that is not a valid match spec, if `error` is about one."""
    elsewhere: tuple[str, ...] = ()
    """`CHANNEL::NAME` of what a solution would take from channels that priority hides."""
