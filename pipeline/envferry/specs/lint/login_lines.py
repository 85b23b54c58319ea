"""Lint of logins and tokens in URLs: S116."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.specs.syntax.requirement_lines import (
    CONSTRAINT,
    INCLUDE,
    included_lines,
    logical_lines,
)
from envferry.specs.syntax.url_logins import channel_texts, has_login
from envferry.specs.syntax.yaml_text import Mapping, Sequence, Text, line_of, read_text

if TYPE_CHECKING:
    import re
    from collections.abc import Iterator
    from pathlib import Path

CODE = "S116"
_Found = tuple[str, object, str]


def login_lines(root: Mapping, path: Path) -> Iterator[_Found]:
    """Yield what has a login or a token in it, each once; `path` is that of the spec."""
    sections = [one["pip"] for one in root["dependencies"] if isinstance(one, Mapping)]
    pip = [one for part in sections if isinstance(part, Sequence) for one in part]
    conda = (one for one in root["dependencies"] if isinstance(one, Text))
    found = [one for one in (*channel_texts(root), *conda) if has_login(one, is_channel=True)]
    lines = (part for one in pip if isinstance(one, Text) for part in _with_named(one, path.parent))
    found += [one for one in lines if has_login(one, is_channel=False)]
    # An alias repeats a value together with its line.
    for line in {(line_of(one), str(one)): one for one in found}.values():
        # Without it: what lint says of a line has no logins.
        yield CODE, line, f"`{line.strip()}` has a login or a token"


def _with_named(line: Text, base: Path) -> Iterator[Text]:
    """Yield a line, and those of requirement files that it names, at its place, as written."""
    yield line
    if (file := _named(INCLUDE, line.strip(), base)) and file.is_file():
        for inner in included_lines(file, read_text(file), base):
            yield Text.at(inner.written, line_of(line))
            # What includes name starts from their own folders.
            yield from _constraints(inner.written, inner.path.parent, line)
    yield from _constraints(line.strip(), base, line)


def _constraints(written: str, folder: Path, line: Text) -> Iterator[Text]:
    # A file that is not there is an error of the lock.
    if (file := _named(CONSTRAINT, written, folder)) and file.is_file():
        for one in logical_lines(read_text(file)):
            yield Text.at(one.text, line_of(line))


def _named(option: re.Pattern[str], line: str, folder: Path) -> Path | None:
    found = option.fullmatch(line)
    return folder / found["path"] if found and "://" not in found["path"] else None
