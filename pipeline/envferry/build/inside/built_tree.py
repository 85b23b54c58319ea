"""The tree that a build makes: what is to be said of it, and when it must be made from scratch."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field


@dataclass(slots=True)
class BuiltTree:
    """What is to be said of a tree that was made."""

    conda_warnings: list[str] = field(default_factory=list)
    wheel_warnings: list[str] = field(default_factory=list)
    why_not_reusable: str = ""
    """Why something that was brought cannot go without a trace; empty where all of it can."""
    contested: tuple[str, ...] = ()
    """The files that several wheels have, with other contents."""
    wheel_files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    conda_files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What each conda package has brought that was linked."""
    conda_tied: str = ""
    """Why no conda package can come or go by itself; empty where each of them can."""
    site_packages: str = ""
    """Where wheels go, relative to the prefix."""
    data: list[str] = field(default_factory=list)
    """Where the files landed that belong to no package, relative to the prefix."""

    def forbid_reuse(self, reason: str) -> None:
        """Note why no other build can start from this tree; the first reason stays."""
        self.why_not_reusable = self.why_not_reusable or reason


class NotIncremental(Exception):
    """New packages conflict with the earlier tree: everything is built from scratch."""


class NotSeparable(Exception):
    """A wheel whose files only an installer can place as they should be."""


def say(text: str) -> None:
    """Report progress: the host shows our stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
