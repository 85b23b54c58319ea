"""What a host records of an installation, in `ID.json` beside its tree."""

from __future__ import annotations

from typing import Literal

import msgspec

from envferry.models import Checks, SystemRequirements

Finding = Literal["arch", "glibc", "cuda", "space", "inodes", "readonly", "noexec", "symlinks"]
"""What can be wrong with a host."""


class Unchecked(msgspec.Struct, frozen=True, kw_only=True):
    """What was at `envs/NAME` before an installation whose checks have not passed yet."""

    before: str | None = None
    """The id of the installation that was current."""
    aside: str | None = None
    """What the thing that was not ours is called now, in the envs directory."""


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """How an installation got to its host."""

    time: str
    """When it was installed, in UTC: `2026-11-28T23:10:00Z`."""
    user: str
    """Who installed it."""
    source: str
    """The registry, without logins, or the path of the archive."""
    ref: str = ""
    """What was asked for: `NAME@TAG`, `NAME@ID` or a file."""
    tag: str | None = None
    """The tag that was asked for, and led to this id."""
    signed_by: tuple[str, ...] = ()
    """The keys that signed it and that this host trusted then, by id."""


class Sharing(msgspec.Struct, frozen=True, kw_only=True):
    """The files that an installation took over from others as hard links, all in one number."""

    files: int
    size: int
    """Bytes."""
    with_: tuple[str, ...] = msgspec.field(name="with")
    """The installations that have them, too: `NAME@ID`."""


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """`ID.json` beside an installed tree, written last: no record, no installation."""

    name: str
    id: str
    platform: str
    prefix: str
    """The path that the tree believes it lives at."""
    built_prefix: str
    archive_xxh128: str
    files: int
    size: int
    """The bytes of its files."""
    checks: Checks = Checks()
    edited: dict[str, tuple[int, str]] = {}
    """Size and XXH3-128 of the files that are not as the archive has them: prefix edits."""
    unchecked: Unchecked | None = None
    """Set while it is current and its checks have not passed: the next command goes back."""
    version: str | None = None
    """The environment's own version, as its spec gives it."""
    origin: Origin | None = None
    """None in records that envferry 0.2 and older wrote."""
    sharing: Sharing | None = None
    """What it shared by hard links when it was installed."""
    mounted: bool = False
    """Whether its tree is the mounted image `ID.squashfs` beside it."""
    requirements: SystemRequirements = SystemRequirements()
    """What it needs of its host."""
    cuda_code: dict[str, tuple[str, ...]] = {}
    """For which GPUs its packages have compiled code; empty where that is not known."""
    schema: int = 1
