"""Compare two trees that ought to be the same, and say where and how they differ."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import msgspec

from envferry.base.files import COPY_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHOWN_BYTES = 24
KINDS = {stat.S_IFDIR: "a directory", stat.S_IFLNK: "a link", stat.S_IFREG: "a file"}


class TreeDifference(msgspec.Struct, frozen=True, kw_only=True):
    """One path that is not the same in both trees."""

    path: str
    how: str

    def __str__(self) -> str:
        return f"{self.path}: {self.how}"


def compare_trees(one: Path, other: Path) -> Iterator[TreeDifference]:
    """Yield the differences between two trees: names, kinds, modes, links and contents.

    Owners and times are not compared: no archive holds them.
    """
    ours, theirs = paths_below(one), paths_below(other)
    for path in sorted(ours | theirs):
        if path not in theirs:
            yield TreeDifference(path=path, how="only in the first")
        elif path not in ours:
            yield TreeDifference(path=path, how="only in the second")
        elif how := compare_paths(one / path, other / path):
            yield TreeDifference(path=path, how=how)


def paths_below(tree: Path) -> set[str]:
    """Return everything below a directory, relative to it; links are not followed."""
    return {
        os.path.relpath(os.path.join(directory, name), tree)  # noqa: PTH118  (thrice as fast)
        for directory, directories, files in os.walk(tree)
        for name in (*directories, *files)
    }


def compare_paths(one: Path, other: Path) -> str:
    """Say how two paths differ, empty when they do not."""
    ours, theirs = one.lstat(), other.lstat()
    kinds = [KINDS.get(stat.S_IFMT(item.st_mode), "something else") for item in (ours, theirs)]
    if kinds[0] != kinds[1]:
        return f"{kinds[0]} in the first, {kinds[1]} in the second"
    if kinds[0] == "a link":
        links = one.readlink(), other.readlink()
        return "" if links[0] == links[1] else f"links to {links[0]} and to {links[1]}"
    if ours.st_mode != theirs.st_mode:
        return f"mode {stat.S_IMODE(ours.st_mode):04o} and {stat.S_IMODE(theirs.st_mode):04o}"
    return compare_contents(one, other) if kinds[0] == "a file" else ""


def compare_contents(one: Path, other: Path) -> str:
    """Say where two files begin to differ, empty when they do not."""
    offset = 0
    with one.open("rb") as ours, other.open("rb") as theirs:
        while True:
            left, right = ours.read(COPY_BYTES), theirs.read(COPY_BYTES)
            if left != right:
                at = first_difference(left, right)
                shown = [chunk[at : at + SHOWN_BYTES] for chunk in (left, right)]
                return f"at byte {offset + at}: {shown[0]!r} and {shown[1]!r}"
            if not left:
                return ""
            offset += len(left)


def first_difference(left: bytes, right: bytes) -> int:
    """Return where two byte strings begin to differ."""
    # One file may be the beginning of the other.
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(left), len(right)))
