"""The lines of a pip requirements file: joined where they continue, without comments."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from envferry.errors import SpecError
from envferry.models import without_login
from envferry.specs.yaml_text import read_text

INCLUDE = re.compile(r"(?:-r|--requirements?)(?:\s+|=)?(?P<path>\S.*)")
CONSTRAINT = re.compile(r"(?:-c|--constraints?)(?:\s+|=)?(?P<path>\S.*)")
FIND_LINKS = re.compile(r"(?:-f|--find-links)(?:\s+|=)?(?P<path>\S.*)")
BARE_URL = re.compile(r"(?P<url>(?:git\+|https?://)\S+)(?P<rest>.*)")
EGG = re.compile(r"[#&]egg=(?P<name>[A-Za-z0-9._-]+)(?P<extras>\[[^\]]*\])?")
MAX_INCLUDES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One requirement or option, with the number of the line that it starts on."""

    text: str
    number: int


def logical_lines(text: str) -> list[Line]:
    """Join continued lines and drop comments, as pip does."""
    lines: list[Line] = []
    pending, start = "", 0
    for number, raw in enumerate(text.splitlines(), start=1):
        start = start if pending else number
        is_comment = raw.lstrip().startswith("#")
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
    return _read(path, text, base, ())


def _read(path: Path, text: str, base: Path, within: tuple[Path, ...]) -> list[str]:
    if path.resolve() in within or len(within) > MAX_INCLUDES:
        message = f"{path} includes itself by way of {' -> '.join(map(str, within))}"
        raise SpecError(message, hint="take one of the `-r` lines out")
    lines: list[str] = []
    for line in logical_lines(text):
        include = INCLUDE.fullmatch(line.text)
        if include and "://" not in include["path"]:
            inner = path.parent / include["path"]
            if not inner.is_file():
                message = f"{path}:{line.number}: `{line.text}` names {inner}, which does not exist"
                raise SpecError(message, hint="correct the path; it starts from that file's folder")
            lines += _read(inner, read_text(inner), base, (*within, path.resolve()))
        else:
            lines.append(rebased(line.text, path.parent, base))
    return list(dict.fromkeys(lines))


def rebased(line: str, folder: Path, base: Path) -> str:
    """Make the relative path in a line start from `base`; name what is a bare URL."""
    for option in (CONSTRAINT, FIND_LINKS):
        found = option.fullmatch(line)
        if found and "://" not in found["path"]:
            return line[: found.start("path")] + relative(folder / found["path"], base)
    editable = re.fullmatch(r"(-e|--editable)[\s=]+(?P<path>\.\S*|/\S*)", line)
    if editable:
        return line[: editable.start("path")] + relative(folder / editable["path"], base)
    if line.startswith(("./", "../")) or line == ".":
        return relative(folder / line, base)
    if line.endswith(".whl") and "://" not in line and "@" not in line:
        return relative(folder / line, base)
    return without_login(named_url(line))


def named_url(line: str) -> str:
    """Turn `git+URL#egg=NAME` into `NAME @ git+URL`, which every tool reads."""
    bare = BARE_URL.fullmatch(line)
    egg = EGG.search(line) if bare else None
    if not bare or not egg:
        return line
    url = EGG.sub("", bare["url"])
    if "&" in url and "#" not in url:
        url = url.replace("&", "#", 1)
    return f"{egg['name']}{egg['extras'] or ''} @ {url}{bare['rest']}"


def relative(target: Path, base: Path) -> str:
    """Return a path from `base`, always with a leading dot: `./wheels`, `../app`."""
    text = Path(os.path.relpath(target.absolute(), base.absolute())).as_posix()
    return text if text.startswith("..") else f"./{text}"
