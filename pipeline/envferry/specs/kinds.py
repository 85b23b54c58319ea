"""Recognise a file by its content: whatever its name, what kind of environment list is it."""

from __future__ import annotations

import re
import sys
from enum import Enum
from typing import TYPE_CHECKING, Any

from packaging.requirements import InvalidRequirement, Requirement

from envferry.base.site_packages import site_packages_folders
from envferry.errors import NotFound, SpecError
from envferry.specs.reading import PATH_LINE
from envferry.specs.requirement_lines import logical_lines
from envferry.specs.yaml_text import Mapping, parse_yaml, read_text

if TYPE_CHECKING:
    from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXPORT_LINE = re.compile(r"[A-Za-z0-9_][\w.-]*=[^=<>!~\s]+=[\w.]+")
MAX_BYTES = 8 << 20


class Kind(Enum):
    """What a file or folder is, in the words of a message."""

    ENVIRONMENT = "a conda environment file"
    REQUIREMENTS = "a pip requirements file"
    EXPLICIT = "an explicit list of conda packages"
    CONDA_LIST = "a list by `conda list --export`"
    PIXI = "a pixi manifest"
    PYPROJECT = "a pyproject.toml"
    PREFIX = "an environment's folder"


NAMES = (
    (re.compile(r"(requirements|constraints).*\.(txt|in)|.*requirements\.txt"), Kind.REQUIREMENTS),
    (re.compile(r"env(ironment)?[^/]*\.ya?ml"), Kind.ENVIRONMENT),
    (re.compile(r"pixi\.toml"), Kind.PIXI),
    (re.compile(r"pyproject\.toml"), Kind.PYPROJECT),
)


def recognise(path: Path) -> tuple[Kind, str]:
    """Return what a file or folder is and its text, which is empty for folders.

    Raises NotFound when it is not there, SpecError when it is nothing known.
    """
    if path.is_dir():
        if (path / "conda-meta").is_dir() or site_packages_folders(path):
            return Kind.PREFIX, ""
        message = f"{path} is a folder without `conda-meta` or `lib/python3*/site-packages`"
        raise SpecError(message, hint="name an environment's prefix, or one file")
    try:
        text = read_text(path, MAX_BYTES)
    except FileNotFoundError as error:
        message = f"there is no {path}"
        raise NotFound(message, hint="name a file or an environment's prefix") from error
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise SpecError(message, hint="name a file or an environment's prefix") from error
    return _kind_of(text, path), text


def surprise(path: Path, kind: Kind) -> str:
    """Say that a file is not what its name promises; empty when it is."""
    named = next((known for name, known in NAMES if name.fullmatch(path.name)), kind)
    if named is kind or {named, kind} == {Kind.PIXI, Kind.PYPROJECT}:
        return ""
    return f"{path.name}: this is {kind.value}, not {named.value}"


def _kind_of(text: str, path: Path) -> Kind:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    content = [line for line in lines if not line.startswith("#")]
    if "@EXPLICIT" in content:
        return Kind.EXPLICIT
    if not content:
        message = f"{path} is empty, expected an environment file or a list of packages"
        raise SpecError(message, hint="check that this is the file you meant")
    if all(EXPORT_LINE.fullmatch(line) for line in content):
        return Kind.CONDA_LIST
    document = _toml(text)
    if document:
        return _toml_kind(document, path)
    wrong = [line for line in logical_lines(text) if not _is_requirement(line.text)]
    if not wrong:
        return Kind.REQUIREMENTS
    if _is_environment(text, path):
        return Kind.ENVIRONMENT
    message = (
        f"{path}:{wrong[0].number}: this is no environment file and no list of packages: "
        f"`{wrong[0].text[:60]}` is no requirement"
    )
    raise SpecError(message, hint="correct that line, or name another file")


def _toml(text: str) -> dict[str, Any]:
    """Return a TOML document that has tables; empty when the text is no such thing."""
    try:
        document: dict[str, Any] = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return {}
    return document if any(isinstance(item, dict) for item in document.values()) else {}


def _toml_kind(document: dict[str, Any], path: Path) -> Kind:
    tool = document.get("tool")
    if isinstance(tool, dict) and "pixi" in tool:
        return Kind.PIXI
    project = document.get("workspace", document.get("project"))
    if isinstance(project, dict) and "channels" in project:
        return Kind.PIXI
    if "project" in document:
        return Kind.PYPROJECT
    message = f"{path} is TOML with neither `[workspace]` nor `[project]`, so it lists nothing"
    raise SpecError(message, hint="name a pixi.toml or a pyproject.toml with `[project]`")


def _is_environment(text: str, path: Path) -> bool:
    """Whether a text is a conda environment file; raise SpecError for YAML of another kind."""
    if not re.search(r"^(dependencies|channels|name|package|metadata)\s*:", text, re.M):
        return False
    root = parse_yaml(text, path)
    if not isinstance(root, Mapping):
        return False
    if {"package", "metadata"} <= root.keys():
        message = f"{path} is a lock, not a spec"
        raise SpecError(message, hint="`envferry build` takes a lock through its spec's name")
    return "dependencies" in root


def _is_requirement(line: str) -> bool:
    if line.startswith("-") or PATH_LINE.fullmatch(line):
        return True
    if re.match(r"(git|hg|svn|bzr)\+|https?://", line):
        return True
    try:
        Requirement(re.split(r"\s+--", line)[0].strip())
    except InvalidRequirement:
        return False
    return True
