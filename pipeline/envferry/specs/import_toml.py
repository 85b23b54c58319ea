"""Drafts out of TOML: pixi manifests and the dependencies of a pyproject.toml."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from envferry.errors import SpecError
from envferry.models import PLATFORMS
from envferry.specs.drafts import Draft
from envferry.specs.requirement_lines import relative

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SELECTORS = {
    "linux-64": "linux64",
    "linux-aarch64": "aarch64",
    "linux-ppc64le": "ppc64le",
    "osx-64": "osx64",
    "osx-arm64": "arm64",
    "linux": "linux",
    "osx": "osx",
    "unix": "unix",
}
LEFT_OUT = ("feature", "environments", "tasks", "activation", "build-dependencies")


def draft_pixi(text: str, path: Path, base: Path, name: str) -> Draft:
    """Read a `pixi.toml`, or the `[tool.pixi]` of a pyproject.toml: its default environment."""
    document = tomllib.loads(text)
    root = _table(document.get("tool", {}).get("pixi", document), path, "pixi")
    project = _table(root.get("workspace", root.get("project", {})), path, "workspace")
    channels = [
        str(item["channel"] if isinstance(item, dict) and "channel" in item else item)
        for item in project.get("channels", [])
    ]
    draft = Draft(name=name, channels=channels)
    draft.platforms = [item for item in project.get("platforms", []) if item in PLATFORMS.values()]
    dropped = [str(item) for item in project.get("platforms", []) if item not in draft.platforms]
    if dropped:
        draft.notes.append(f"platforms that envferry does not know: {', '.join(dropped)}")
    system = _table(root.get("system-requirements", {}), path, "system-requirements")
    libc = system.get("libc", "")
    glibc = libc.get("version", "") if isinstance(libc, dict) else libc
    draft.system = {
        key: str(value) for key, value in (("glibc", glibc), ("cuda", system.get("cuda"))) if value
    }
    _add_pixi_tables(draft, root, path, base)
    for platform, table in _table(root.get("target", {}), path, "target").items():
        if platform in SELECTORS:
            before = {*draft.conda, *draft.pip}
            _add_pixi_tables(draft, _table(table, path, f"target.{platform}"), path, base)
            for line in {*draft.conda, *draft.pip} - before:
                draft.selectors[line] = SELECTORS[platform]
    project_lines = _table(document.get("project", {}), path, "project").get("dependencies", [])
    draft.pip += [str(line) for line in project_lines] if root is not document else []
    for key in LEFT_OUT:
        if root.get(key):
            draft.notes.append(f"`{key}` is left out: only the default environment is read")
    return draft


def draft_pyproject(text: str, path: Path, base: Path, name: str, channels: Iterable[str]) -> Draft:
    """Read `[project] dependencies` and `requires-python`; the project itself is not among them."""
    document = tomllib.loads(text)
    project = _table(document.get("project", {}), path, "project")
    dependencies = project.get("dependencies", [])
    if not isinstance(dependencies, list):
        raise SpecError(f"{path}: `dependencies` is no list", hint="correct it")
    draft = Draft(name=name, channels=list(channels))
    python = _conda_version(str(project.get("requires-python", "")))
    draft.conda = [f"python {python}".strip(), "pip"]
    draft.pip = [str(line) for line in dependencies]
    if not draft.pip:
        draft.notes.append(f"{path.name} has no `dependencies`: only python is asked for")
    extras = project.get("optional-dependencies")
    if isinstance(extras, dict) and extras:
        draft.notes.append(f"the extras {', '.join(extras)} are left out")
    draft.notes.append(
        f"the project itself is not in the spec: add `- {relative(path.parent, base)}` "
        "under `pip:` to carry it too"
    )
    sources = document.get("tool", {}).get("uv", {}).get("sources")
    if sources:
        draft.notes.append(f"`[tool.uv.sources]` is not read: write out {', '.join(sources)}")
    return draft


def _table(value: object, path: Path, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SpecError(f"{path}: `{name}` is no table", hint="correct it")
    return value


def _add_pixi_tables(draft: Draft, root: dict[str, Any], path: Path, base: Path) -> None:
    """Add the `dependencies` and `pypi-dependencies` of one table."""
    for name, value in _table(root.get("dependencies", {}), path, "dependencies").items():
        draft.conda.append(_conda_line(name, value))
    pypi = _table(root.get("pypi-dependencies", {}), path, "pypi-dependencies")
    for name, value in pypi.items():
        draft.pip.append(_pypi_line(name, value, path, base))
        if isinstance(value, dict) and "index" in value:
            option = f"--extra-index-url {value['index']}"
            if option not in draft.pip:
                draft.pip.insert(0, option)


def _conda_line(name: str, value: object) -> str:
    """Return the match spec of a pixi dependency: a version, or a table that pins more."""
    table = value if isinstance(value, dict) else {"version": value}
    version = re.sub(r"\s*,\s*", ",", str(table.get("version", "*"))).strip()
    build = str(table.get("build", ""))
    channel = f"{table['channel']}::" if "channel" in table else ""
    if version == "*" and not build:
        return f"{channel}{name}"
    if re.fullmatch(r"==[^,|\s]+", version) and build:
        return f"{channel}{name}={version[2:]}={build}"
    if re.match(r"[\d]", version) and not build:
        return f"{channel}{name} {version}" if "*" in version else f"{channel}{name}={version}"
    return f"{channel}{name} {version} {build}".rstrip()


def _pypi_line(name: str, value: object, path: Path, base: Path) -> str:
    """Return the requirement of a pixi pypi dependency."""
    table: dict[str, Any] = value if isinstance(value, dict) else {"version": value}
    extras = f"[{','.join(map(str, table['extras']))}]" if table.get("extras") else ""
    if "git" in table:
        revision = table.get("rev") or table.get("tag") or table.get("branch")
        at = f"@{revision}" if revision else ""
        folder = f"#subdirectory={table['subdirectory']}" if table.get("subdirectory") else ""
        return f"{name}{extras} @ git+{table['git']}{at}{folder}"
    if "url" in table:
        return f"{name}{extras} @ {table['url']}"
    if "path" in table:
        return relative(path.parent / str(table["path"]), base) + extras
    version = str(table.get("version", "*"))
    if version in ("*", ""):
        return f"{name}{extras}"
    return f"{name}{extras}{version if version[0] in '=<>!~' else f'=={version}.*'}"


def _conda_version(requires_python: str) -> str:
    """Turn a python version specifier into conda's form."""
    try:
        specifiers = SpecifierSet(requires_python)
    except InvalidSpecifier:
        return ""
    parts = sorted(str(item) for item in specifiers)
    return ",".join(part.replace("===", "==") for part in parts)
