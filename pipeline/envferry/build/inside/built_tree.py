"""The tree that a build makes: what is to be said of it, and when it must be made from scratch."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field


@dataclass(slots=True)
class BuiltTree:
    """What is to be said of a tree that was made."""

    conda_warnings: list[str] = field(default_factory=list)
    wheel_warnings: list[str] = field(default_factory=list)
    is_plain: bool = True
    """What each wheel and each data file has brought can go without a trace."""
    wheel_files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    conda_files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What each conda package has brought that was linked."""
    conda_tied: str = ""
    """Why no conda package can come or go by itself; empty where each of them can."""
    data: list[str] = field(default_factory=list)
    """Where the files landed that belong to no package, relative to the prefix."""


class NotIncremental(Exception):
    """New packages conflict with the earlier tree: everything is built from scratch."""


def say(text: str) -> None:
    """Report progress: the host shows our stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
