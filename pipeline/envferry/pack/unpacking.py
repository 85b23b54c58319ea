"""What `bin/conda-unpack` does: give an archive that `tar` unpacked the prefix at which it lies.

The source of this module is written into the script, after those of `archive/relocating.py` and
`archive/shebangs.py`: Python 3.7 or newer, the standard library, nothing else.
"""

from __future__ import annotations

import argparse
import os
import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from envferry.archive.relocating import (
    NotTheIndexed,
    edited_strings,
    edited_text,
    padded_line,
    without_stale_checksums,
)
from envferry.archive.shebangs import with_short_shebang

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

ACTIVATE = "bin/activate"
PREFIX_LINE = "_envferry_prefix="
"""The line of bin/activate that says which prefix the environment has: it is changed last."""
PUNCTUATION = " /._-+@=~"
"""As `check_env_prefix` in names.py has it."""


class MovedFile(NamedTuple):
    """One file that holds the prefix."""

    path: str
    kind: str
    """`text`, `strings`, `link` or `record`, of conda's."""
    data: Any
    """Size and places; strings and places; the target after the prefix; nothing."""


class Move(NamedTuple):
    """The way from one prefix to another."""

    old: bytes
    new: bytes
    edited: Container[str]
    """The files whose content becomes another one."""


def edited_file(content: bytes, file: MovedFile, move: Move) -> bytes | None:
    """Return the new content of a file; None when it is not as it was packed any more."""
    if file.kind == "record":
        return without_stale_checksums(content, move.edited)
    try:
        if file.kind == "text":
            size, at, padded = file.data
            if len(content) != size:
                return None
            moved = edited_text(content, move.old, move.new, at)
            moved = with_short_shebang(moved, move.new)
            return padded_line(moved, size) if padded else moved
        strings, at = file.data
        for offset, length, _, _ in strings:
            # What follows tells a path that was changed already from one that starts alike.
            if content.find(b"\0", offset) not in (offset + length, -1):
                return None
        edited = bytearray(content)
        for offset, replacement in edited_strings(content, move.old, move.new, strings, at):
            edited[offset : offset + len(replacement)] = replacement
    except NotTheIndexed:
        return None
    return bytes(edited)


def replace_file(path: Path, content: bytes) -> None:
    """Put a new file in the place of an old one: a program that runs keeps the old one."""
    status = path.stat()
    partial = path.with_name(path.name + ".conda-unpack")
    partial.write_bytes(content)
    partial.chmod(status.st_mode & 0o7777)
    os.utime(partial, ns=(status.st_atime_ns, status.st_mtime_ns))
    partial.replace(path)


def odd_characters(prefix: str) -> list[str]:
    """Return what scripts that hold this prefix would break on, or interpret."""
    kinds = {character: unicodedata.category(character)[0] for character in prefix}
    return sorted(one for one in kinds if kinds[one] not in "LMN" and one not in PUNCTUATION)


def refuse_odd(prefix: str) -> None:
    """Stop, before anything is changed, when no environment can live at a prefix."""
    odd = odd_characters(prefix)
    if odd:
        sys.exit(
            f"conda-unpack: no environment can live in {prefix!a}, as scripts would interpret "
            f"{' '.join(map(ascii, odd))}: unpack the archive in another folder"
        )


def refuse_long(files: Sequence[MovedFile], old: bytes, new: bytes) -> None:
    """Stop, before anything is changed, when the new prefix does not fit somewhere."""
    longest, tightest = len(new), ""
    for file in files:
        for _, length, capacity, count in file.data[0] if file.kind == "strings" else ():
            room = len(old) + (capacity - length) // count
            if room < longest:
                longest, tightest = room, file.path
    if tightest:
        sys.exit(
            f"conda-unpack: {tightest} has room for a prefix of {longest} bytes, {new.decode()} "
            f"has {len(new)}: unpack the archive in a folder with a shorter path"
        )


def noted_prefix(root: Path) -> str:
    """Return the prefix that the environment has by now."""
    with (root / ACTIVATE).open(encoding="utf-8") as stream:
        for line in stream:
            if line.startswith(PREFIX_LINE):
                return line[len(PREFIX_LINE) :].strip().strip("'")
    return sys.exit(f"conda-unpack: {root / ACTIVATE} does not belong to this archive")


def move_file(root: Path, file: MovedFile, move: Move) -> None:
    """Give one file or link the new prefix; say so when it cannot be given one."""
    target = root / file.path
    if file.kind == "link":
        old = move.old.decode() + file.data
        if target.is_symlink() and os.readlink(target) == old:  # noqa: PTH115  (as it is)
            target.unlink()
            target.symlink_to(move.new.decode() + file.data)
        return
    is_there = target.is_file() and not target.is_symlink()
    content = edited_file(target.read_bytes(), file, move) if is_there else None
    if content is None:
        sys.stderr.write(
            f"conda-unpack: {file.path} has changed since it was packed: left unchanged\n"
        )
    else:
        replace_file(target, content)


def main(parts: Sequence[str], files: Sequence[MovedFile], version: str) -> None:
    """Move all files, each whole or not at all: what was changed already is found out.

    The prefix of the build comes in parts: so the script does not hold it, and is never edited.
    """
    prefix = "/" + "/".join(parts)
    parser = argparse.ArgumentParser(
        prog="conda-unpack",
        description="Give an environment that was unpacked with tar the prefix at which it lies.",
    )
    parser.add_argument("--version", action="store_true", help="show the version, then exit")
    parser.add_argument("--verbose", "-v", action="store_true", help="name each file")
    arguments = parser.parse_args()
    if arguments.version:
        sys.stdout.write(f"conda-unpack of envferry {version}\n")
        return
    root = Path(os.path.abspath(__file__)).parent.parent  # noqa: PTH100  (links stay as they are)
    found = noted_prefix(root)
    if found == str(root):
        return
    if found != prefix:
        sys.exit(f"conda-unpack: already set up for {found}: unpack the archive again")
    refuse_odd(str(root))
    new = os.fsencode(root)
    refuse_long(files, prefix.encode(), new)
    edited = {file.path for file in files if file.kind in ("text", "strings")}
    for file in files:
        if arguments.verbose:
            sys.stdout.write(f"{file.path}\n")
        move_file(root, file, Move(prefix.encode(), new, edited))
