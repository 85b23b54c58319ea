"""What the host asks of the builder inside a container, and what it answers."""

from __future__ import annotations

import msgspec

WORK_DIR = "/envferry"
"""Where a container sees the order, the downloads and its answer."""


class CondaFile(msgspec.Struct, frozen=True, kw_only=True):
    """A downloaded and verified conda package."""

    path: str
    """Where the container sees it."""
    name: str
    url: str
    sha256: str | None = None
    md5: str | None = None


class Wheel(msgspec.Struct, frozen=True, kw_only=True):
    """A downloaded and verified wheel."""

    path: str
    """Where the container sees it."""
    name: str
    version: str
    sha256: str


class BuildOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Make this environment."""

    prefix: str
    scratch: str
    """A directory on the file system of the prefix, for caches to hard-link from."""
    platform: str
    conda: tuple[CondaFile, ...]
    wheels: tuple[Wheel, ...]


class BuildAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """How it went."""

    tools: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    error: str | None = None
    hint: str = ""
    exit_code: int = 0
