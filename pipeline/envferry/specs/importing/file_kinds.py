"""Recognise a file by its content: whatever its name, what kind of environment list is it."""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Any

import msgspec

from envferry.base.json import decode_json
from envferry.base.site_packages import site_packages_folders
from envferry.errors import NotFound, SpecError
from envferry.specs.syntax.conda_lines import TEMPLATE, conda_name, parse_conda_line
from envferry.specs.syntax.pip_commands import requirements_of
from envferry.specs.syntax.pip_lines import pip_line_problem
from envferry.specs.syntax.requirement_lines import logical_lines
from envferry.specs.syntax.toml_text import TOMLDecodeError, parse_toml
from envferry.specs.syntax.yaml_text import Mapping, parse_yaml, read_text
from envferry.suggestions import did_you_mean_file

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.specs.syntax.requirement_lines import Line

EXPORT_LINE = re.compile(r"[A-Za-z0-9_][\w.-]*=[^=<>~\s]+=([\w.]+|<pip>)")
TABLE_LINE = re.compile(r"[A-Za-z0-9_][\w.-]*\s+[\w.!+-]+(\s+[\w.<>-]+(\s+\S+)?)?")
CONDA_TABLE = re.compile(r"# packages in environment at |#\s+Name\s+Version\s+Build")
PIP_TABLE = re.compile(r"Package\s+Version(\s+Editable project location)?")
ASKS_FOR_PYTHON = re.compile(r"python\s*([=<>!~].*)?$")
BRACKET_KEYS = re.compile(r"""(\s*\w+\s*=\s*('[^']*'|"[^"]*"|[^,'"]*)\s*(,|$))*""")
YAML_KEY = re.compile(
    r"""(?:^|\A\s*\{[^#]*?)["']?(?:dependencies|channels|name|package|packages|metadata)["']?\s*:""",
    re.MULTILINE,
)
"""A key of a file in YAML: in the flow style, too, and JSON is of that style."""
# Locks of other tools are among the files.
MAX_BYTES = 64 << 20


class FileKind(Enum):
    """What a file or folder is, in the words of a message."""

    ENVIRONMENT = "a conda environment file"
    REQUIREMENTS = "a pip requirements file"
    EXPLICIT = "an explicit list of conda packages"
    CONDA_LIST = "a list by `conda list --export`"
    CONDA_SPECS = "a list of conda packages"
    CONDA_TABLE = "a list by `conda list`"
    PIP_TABLE = "a list by `pip list`"
    CONDA_LOCK = "a conda-lock.yml"
    PIXI_LOCK = "a pixi.lock"
    UV_LOCK = "a uv.lock"
    PYLOCK = "a pylock.toml"
    PIXI = "a pixi manifest"
    PYPROJECT = "a pyproject.toml"
    POETRY = "a pyproject.toml of poetry"
    PREFIX = "an environment's folder"
    VENV = "a virtual environment"


FOREIGN_LOCKS = (FileKind.CONDA_LOCK, FileKind.PIXI_LOCK, FileKind.UV_LOCK, FileKind.PYLOCK)

PIPENV = ("pipenv requirements --hash > requirements.txt", "requirements.txt")
POETRY = ("poetry export -o requirements.txt", "requirements.txt")
PDM = ("pdm export -f pylock -o pylock.toml", "pylock.toml")
"""What other tools write of their own locks, and where: with hashes."""

NAMES = (
    (
        re.compile(r"(requirements|constraints).*\.(txt|in)|.*requirements\.txt"),
        FileKind.REQUIREMENTS,
    ),
    (re.compile(r"env(ironment)?[^/]*\.ya?ml"), FileKind.ENVIRONMENT),
    (re.compile(r"pixi\.toml"), FileKind.PIXI),
    (re.compile(r"pyproject\.toml"), FileKind.PYPROJECT),
    (re.compile(r".*conda-lock\.ya?ml"), FileKind.CONDA_LOCK),
    (re.compile(r"pixi\.lock"), FileKind.PIXI_LOCK),
    (re.compile(r"uv\.lock"), FileKind.UV_LOCK),
    (re.compile(r"pylock(\..+)?\.toml"), FileKind.PYLOCK),
)


def recognise(path: Path) -> tuple[FileKind, str]:
    """Return what a file or folder is and its text, which is empty for folders.

    Raises NotFound when it is not there, SpecError when it is nothing known.
    """
    if path.is_dir():
        if (path / "conda-meta").is_dir():
            return FileKind.PREFIX, ""
        if site_packages_folders(path):
            return FileKind.VENV, ""
        message = f"{path} is a folder without `conda-meta` or `lib/python3*/site-packages`"
        raise SpecError(message, hint="name an environment's prefix, or one file")
    try:
        text = read_text(path, MAX_BYTES)
    except FileNotFoundError as error:
        message = f"{path} does not exist"
        hint = did_you_mean_file(path, "name a file or an environment's prefix")
        raise NotFound(message, hint=hint) from error
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise SpecError(message, hint="name a file or an environment's prefix") from error
    # Commands are the requirements that they install.
    if " install " in text:
        text = requirements_of(logical_lines(text)) or text
    return _kind_of(text, path), text


def name_mismatch(path: Path, kind: FileKind) -> str:
    """Say that a file is not what its name promises; empty when it is."""
    named = next((known for name, known in NAMES if name.fullmatch(path.name)), kind)
    if named is kind or {named, kind} <= {FileKind.PIXI, FileKind.PYPROJECT, FileKind.POETRY}:
        return ""
    return f"{path.name}: this is {kind.value}, not {named.value}"


def _kind_of(text: str, path: Path) -> FileKind:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    content = [line for line in lines if not line.startswith("#")]
    # The forms that leave no doubt come first: a word alone is a requirement, too.
    if "@EXPLICIT" in content:
        return FileKind.EXPLICIT
    if not content:
        message = f"{path} is empty, expected an environment file or a list of packages"
        raise SpecError(message, hint="check that this is the file you meant")
    if all(EXPORT_LINE.fullmatch(line) for line in content):
        return FileKind.CONDA_LIST
    if any(map(CONDA_TABLE.match, lines)) and all(map(TABLE_LINE.fullmatch, content)):
        return FileKind.CONDA_TABLE
    if PIP_TABLE.fullmatch(content[0]) and len(content) > 1 and set(content[1]) <= {"-", " "}:
        return FileKind.PIP_TABLE
    # Before lists: TOML with tables or strings is a list of neither tool.
    document, fault = _toml(text)
    if document:
        return _toml_kind(document, path)
    listed = logical_lines(text)
    # The first that is wrong is enough: locks have a hundred thousand lines.
    wrong = next(((line, problem) for line in listed if (problem := _problem(line.text))), None)
    list_kind = _list_kind(listed, is_pips=wrong is None)
    if list_kind:
        return list_kind
    yaml_kind = _yaml_kind(text, path)
    if yaml_kind:
        return yaml_kind
    assert wrong is not None  # else it would be a list
    if content[0].startswith("{") and (document := _json(text)):
        raise _other_json(document, path)
    raise _nothing_known(path, fault, *wrong)


def _list_kind(lines: list[Line], *, is_pips: bool) -> FileKind | None:
    """Return whose list of packages the lines are, if they are one; `is_pips`: pip would take all.

    No index has a package `python`: what asks for it is a list for `conda create --file`.
    """
    asks_for_python = any(ASKS_FOR_PYTHON.match(line.text) for line in lines)
    if is_pips and not asks_for_python:
        return FileKind.REQUIREMENTS
    if all(_is_conda_spec(line.text) for line in lines):
        return FileKind.CONDA_SPECS
    return FileKind.REQUIREMENTS if is_pips else None


def _nothing_known(path: Path, fault: str, line: Line, problem: str) -> SpecError:
    """Say what a file is not, and what its first strange line would have to be."""
    place = f"{path}:{line.number}"
    hint = "correct that line, or name another file"
    if fault and re.match(r"\[[\w.\[\]\" -]+\]$", line.text):
        message = f"{path}: expected TOML, as its first lines are: {fault}"
        return SpecError(message, hint="correct that line")
    if re.match(r"[$\w][\w-]*:(\s|$)", line.text):
        message = f"{place}: this is YAML without `dependencies:`, so it lists no packages"
        return SpecError(message, hint="name an environment.yml, or a list of packages")
    if re.match(r"- \S", line.text):
        hint = "drop the dashes, or write `dependencies:` above the list"
    elif TEMPLATE.search(line.text):
        hint = "write the value itself: envferry does not expand templates"
    message = (
        f"{place}: this is neither an environment file nor a list of packages: "
        f"`{line.text[:60]}` is not a valid requirement: {problem}"
    )
    return SpecError(message, hint=hint)


def _json(text: str) -> dict[str, Any]:
    """Return a JSON document, empty when the text is not one."""
    try:
        return decode_json(text, dict[str, Any])
    except msgspec.MsgspecError:
        return {}


def _other_json(document: dict[str, Any], path: Path) -> SpecError:
    """Say what a JSON document is: none lists packages for envferry."""
    if "_meta" in document and "default" in document:
        return _unread(path, "a Pipfile.lock", *PIPENV)
    message = f"{path} is JSON without `dependencies`, so it lists no packages"
    return SpecError(message, hint="name an environment.yml, or a list of packages")


def _toml(text: str) -> tuple[dict[str, Any], str]:
    """Return a TOML document that has tables, empty when the text is not TOML, and why.

    Texts and arrays are as good a sign; but a list of conda packages may have `numpy = 2.1`.
    """
    try:
        document = parse_toml(text)
    except (TOMLDecodeError, RecursionError) as error:
        return {}, str(error).splitlines()[0]
    is_one = any(isinstance(item, (dict, list, str)) for item in document.values())
    return (document, "") if is_one else ({}, "it has no tables")


def _toml_kind(document: dict[str, Any], path: Path) -> FileKind:
    tool = document.get("tool")
    # PEP 751 requires both of them.
    if "lock-version" in document and "created-by" in document:
        return FileKind.PYLOCK
    # Cargo.lock looks alike, but not all of its packages have a source.
    if isinstance(document.get("package"), list) and "version" in document:
        packages = document["package"]
        if all(isinstance(item, dict) and "source" in item for item in packages):
            return FileKind.UV_LOCK
    if isinstance(tool, dict) and "pixi" in tool:
        return FileKind.PIXI
    project = document.get("workspace", document.get("project"))
    if isinstance(project, dict) and "channels" in project:
        return FileKind.PIXI
    if "project" in document or "dependency-groups" in document:
        return FileKind.PYPROJECT
    if isinstance(tool, dict) and "poetry" in tool:
        return FileKind.POETRY
    raise _other_tool(document, path)


def _other_tool(document: dict[str, Any], path: Path) -> SpecError:
    """Name the tool whose TOML this is, and what that tool exports for others."""
    metadata = document.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    if "packages" in document or "dev-packages" in document or "requires" in document:
        return _unread(path, "a Pipfile", *PIPENV)
    if "lock-version" in metadata or "python-versions" in metadata:
        return _unread(path, "a lock of poetry", *POETRY)
    if "lock_version" in metadata:
        return _unread(path, "a lock of PDM", *PDM)
    if isinstance(document.get("package"), list):
        message = f"{path} is a lock of cargo or a similar tool, so it lists no packages of Python"
    else:
        message = f"{path} is TOML with neither `[workspace]` nor `[project]`, so it lists nothing"
    return SpecError(message, hint="name a pixi.toml or a pyproject.toml with `[project]`")


def _unread(path: Path, what: str, command: str, file: str) -> SpecError:
    message = f"{path} is {what}, which envferry cannot read"
    return SpecError(message, hint=f"run `{command}` beside it, then import {file}")


def _yaml_kind(text: str, path: Path) -> FileKind | None:
    """Return what a YAML text is; None for no YAML or another kind."""
    if not YAML_KEY.search(text):
        return None
    root = parse_yaml(text, path)
    if not isinstance(root, Mapping):
        return None
    if {"package", "metadata"} <= root.keys():
        return FileKind.CONDA_LOCK
    if {"environments", "packages", "version"} <= root.keys():
        return FileKind.PIXI_LOCK
    return FileKind.ENVIRONMENT if "dependencies" in root else None


def _problem(line: str) -> str:
    return "it starts with a dash" if re.match(r"-\s", line) else pip_line_problem(line)


def _is_conda_spec(line: str) -> bool:
    """Whether a line is one that `conda create --file` takes."""
    words = re.match(r"[A-Za-z0-9_.:/+-]+(::)?[\w.-]*(\s*[=<>!~*\[,|]|\s+[\d*]|$)", line)
    found = parse_conda_line(line)
    is_known = bool(words and found and conda_name(line) and not TEMPLATE.search(line))
    return is_known and BRACKET_KEYS.fullmatch(found.keys if found else "") is not None
