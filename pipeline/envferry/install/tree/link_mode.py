"""How installations share files."""

from __future__ import annotations

from enum import Enum


class Link(Enum):
    """How a file gets into a second tree."""

    AUTO = "auto"
    REFLINK = "reflink"
    HARDLINK = "hardlink"
    COPY = "copy"
