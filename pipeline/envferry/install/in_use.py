"""Which processes use the files of an installation, as /proc tells."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

LINKS = ("exe", "cwd", "root")
TABLES = ("maps", "mountinfo")
"""Mapped libraries; and what containers have mounted."""


def users_of(tree: Path, proc: Path = Path("/proc")) -> dict[int, str]:
    """Return the processes that run from, stand in, map, hold open or mount files of a tree.

    By process id, with the program's name. The tree is known by the last parts of its path, which
    are its own: in a container the same files have another path before them. What this user may
    not look into is passed over.
    """
    own = os.fsencode("/" + "/".join(tree.parts[-3:]))
    found = {}
    for directory in proc.iterdir():
        if directory.name.isdecimal() and any(names_tree(text, own) for text in traces(directory)):
            found[int(directory.name)] = program_of(directory)
    return found


def names_tree(text: bytes, own: bytes) -> bool:
    """Whether a path, or a line of a table, names the tree or something in it."""
    start = text.find(own)
    while start >= 0:
        following = text[start + len(own) : start + len(own) + 1]
        if following in (b"", b"/", b" ", b"\n"):
            return True
        start = text.find(own, start + 1)
    return False


def traces(directory: Path) -> Iterator[bytes]:
    """Yield the texts in which a process's files show."""
    for name in LINKS:
        yield read_link(directory / name)
    for name in TABLES:
        try:
            yield (directory / name).read_bytes()
        except OSError:
            continue
    try:
        descriptors = list((directory / "fd").iterdir())
    except OSError:
        return
    for descriptor in descriptors:
        yield read_link(descriptor)


def read_link(path: Path) -> bytes:
    """Return where a link leads, nothing when it may not be read or is gone."""
    try:
        return os.readlink(os.fsencode(path))  # noqa: PTH115
    except OSError:
        return b""


def program_of(directory: Path) -> str:
    """Return the name of a process's program."""
    try:
        return (directory / "comm").read_text().strip()
    except OSError:
        return "?"
