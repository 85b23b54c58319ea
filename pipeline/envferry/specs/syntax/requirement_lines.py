"""The lines of a pip requirements file: joined where they continue, without comments."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from envferry.errors import SpecError
from envferry.redaction import without_login
from envferry.specs.syntax.pip_lines import is_editable, is_path, option_of, plain_requirement
from envferry.specs.syntax.yaml_text import read_text

INCLUDE = re.compile(r"(?:-r|--requirements?)(?:\s+|=)?(?P<path>\S.*)")
CONSTRAINT = re.compile(r"(?:-c|--constraints?)(?:\s+|=)?(?P<path>\S.*)")
FIND_LINKS = re.compile(r"(?:-f|--find-links)(?:\s+|=)?(?P<path>\S.*)")
PATH = re.compile(r"(?P<path>[^;\[]*?)(?P<rest>(\[[^\]]*\])?(\s*;.*|\s+--.*)?)")
MAX_INCLUDES = 50


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One requirement or option, with the number of the line that it starts on."""

    text: str
    number: int


class IncludedLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a requirements file, and the file and line where it stands."""

    text: str
    """Without a login, and with its path from the folder that was asked for."""
    written: str
    path: Path
    number: int


def logical_lines(text: str) -> list[Line]:
    """Join continued lines and drop comments, as pip does."""
    lines: list[Line] = []
    pending, start = "", 0
    for number, raw in enumerate(text.splitlines(), start=1):
        start = start if pending else number
        is_comment = raw.lstrip().startswith("#")
        # A comment is never continued, and it ends a line that was, as for pip.
        if raw.endswith("\\") and not is_comment:
            pending += raw[:-1]
            continue
        line = re.sub(r"(^|\s+)#.*$", "", pending + ("" if is_comment else raw)).strip()
        pending = ""
        if line:
            lines.append(Line(text=" ".join(line.split()), number=start))
    if pending.strip():
        lines.append(Line(text=" ".join(pending.split()), number=start))
    return lines


def read_requirements(path: Path, text: str, base: Path) -> list[str]:
    """Return a requirements file with its `-r` includes written out.

    Other paths are made to start from the folder `base`. Raises SpecError for an include that is
    missing or includes itself.
    """
    return list(dict.fromkeys(line.text for line in included_lines(path, text, base)))


def included_lines(
    path: Path, text: str, base: Path, within: tuple[Path, ...] = ()
) -> list[IncludedLine]:
    """Return the lines of a requirements file and of what it includes, each with its place."""
    if path.resolve() in within or len(within) > MAX_INCLUDES:
        message = f"{path} includes itself through {' -> '.join(map(str, within))}"
        raise SpecError(message, hint="take one of the `-r` lines out")
    lines: list[IncludedLine] = []
    for line in logical_lines(text):
        include = INCLUDE.fullmatch(line.text)
        if include and "://" not in include["path"]:
            inner = path.parent / include["path"]
            if not inner.is_file():
                fault = "is not a file" if inner.exists() else "does not exist"
                message = f"{path}:{line.number}: `{line.text}` names {inner}, which {fault}"
                raise SpecError(message, hint="correct the path; it starts from that file's folder")
            lines += included_lines(inner, read_text(inner), base, (*within, path.resolve()))
        else:
            text_here = rebased(line.text, path.parent, base)
            lines.append(
                IncludedLine(text=text_here, written=line.text, path=path, number=line.number)
            )
    return lines


def rebased(line: str, folder: Path, base: Path) -> str:
    """Make the relative path in a line start from `base`; name what is a bare URL."""
    for option in (CONSTRAINT, FIND_LINKS):
        found = option.fullmatch(line)
        if found and "://" not in found["path"]:
            return line[: found.start("path")] + relative(folder / found["path"], base)
    if is_editable(line):
        target = option_of(line)[1]
        if is_path(target) and not target.startswith("file:"):
            return f"-e {_moved(target, folder, base)}"
    elif is_path(line) and not line.startswith("file:"):
        return _moved(line, folder, base)
    return without_login(plain_requirement(line))


def _moved(line: str, folder: Path, base: Path) -> str:
    """Make a path start from another folder; extras and a marker after it stay."""
    found = PATH.fullmatch(line)
    assert found is not None  # every text has a path, perhaps an empty one
    path = Path(found["path"].strip())
    # An absolute path, or one below the home, means the same from every folder.
    if path.is_absolute() or found["path"].startswith("~"):
        return line
    return relative(folder / path, base) + found["rest"]


def relative(target: Path, base: Path) -> str:
    """Return a path from `base`, always with a leading dot: `./wheels`, `../app`."""
    text = Path(os.path.relpath(target.absolute(), base.absolute())).as_posix()
    return text if text.startswith("..") else f"./{text}"
