"""Drafts out of a pyproject.toml: its dependencies, where uv gets them, what is left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from envferry.errors import SpecError
from envferry.specs.drafts import Draft
from envferry.specs.import_pixi import git_requirement
from envferry.specs.pip_lines import requirement_name
from envferry.specs.requirement_lines import relative
from envferry.specs.toml_text import parse_toml, table_at

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

UV_PACKAGES = (
    *("constraint-dependencies", "override-dependencies", "dev-dependencies", "environments"),
    *("exclude-dependencies", "no-binary-package", "no-build-package", "find-links", "prerelease"),
    *("extra-index-url", "index-url", "index-strategy", "resolution", "exclude-newer", "conflicts"),
    *("dependency-metadata", "required-environments", "no-sources", "extra-build-dependencies"),
)
"""Keys of `[tool.uv]` that decide packages, beside `index` and `sources`."""


def draft_pyproject(text: str, path: Path, base: Path, name: str, channels: Iterable[str]) -> Draft:
    """Read `[project] dependencies` and `requires-python`; the project itself is not among them."""
    document = parse_toml(text)
    project = table_at(document.get("project", {}), path, "project")
    dependencies = project.get("dependencies", [])
    if not isinstance(dependencies, list):
        msg = f"{path}: `dependencies` is not a list"
        raise SpecError(msg, hint="correct it")
    draft = Draft(name=name, channels=list(channels))
    python = _conda_version(str(project.get("requires-python", "")), path)
    draft.conda = [f"python {python}".strip(), "pip"]
    uv = table_at(table_at(document.get("tool", {}), path, "tool").get("uv", {}), path, "tool.uv")
    sources = table_at(uv.get("sources", {}), path, "tool.uv.sources")
    draft.pip += _indexes(uv, path, draft)
    draft.pip += [_requirement(str(line), sources, path, base, draft) for line in dependencies]
    if not draft.pip:
        draft.notes.append(f"{path.name} has no `dependencies`: only python is required")
    asked = {requirement_name(str(line)) for line in dependencies}
    for package, source in sources.items():
        if str(canonicalize_name(package)) not in asked:
            draft.left_out.append(
                f"[tool.uv.sources] {package} = {source!r}: no dependency requires it"
            )
    _name_the_rest(document, project, uv, draft)
    draft.notes.append(
        f"the project itself is not in the spec: add `- {relative(path.parent, base)}` "
        "under `pip:` to carry it too"
    )
    return draft


def _indexes(uv: dict[str, Any], path: Path, draft: Draft) -> list[str]:
    """Return the option lines that `[[tool.uv.index]]` stands for."""
    indexes = uv.get("index", [])
    if not isinstance(indexes, list):
        msg = f"{path}: `tool.uv.index` is not a list"
        raise SpecError(msg, hint="correct it")
    lines = []
    for item in indexes:
        table = table_at(item, path, "tool.uv.index")
        url = str(table.get("url", ""))
        if not url:
            msg = f"{path}: an index of `[[tool.uv.index]]` has no URL"
            raise SpecError(msg, hint="add it")
        lines.append(f"{'--index-url' if table.get('default') else '--extra-index-url'} {url}")
        if table.get("explicit"):
            draft.left_out.append(
                f"[[tool.uv.index]] {table.get('name', url)} {{explicit = true}}: "
                "it is searched for every package"
            )
    return lines


def _requirement(line: str, sources: dict[str, Any], path: Path, base: Path, draft: Draft) -> str:
    """Return a requirement, from where `[tool.uv.sources]` has it."""
    try:
        wanted = Requirement(line)
    except InvalidRequirement as error:
        reason = str(error).splitlines()[0]
        message = f"{path}: `{line[:60]}` in `dependencies` is not a valid requirement: {reason}"
        raise SpecError(message, hint="write it as `name==version`") from error
    known = {str(canonicalize_name(name)): source for name, source in sources.items()}
    name = str(canonicalize_name(wanted.name))
    source = known.get(name)
    if source is None:
        return line
    extras = f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else ""
    marker = f" ; {wanted.marker}" if wanted.marker else ""
    if isinstance(source, dict) and "marker" not in source:
        if "git" in source:
            return git_requirement(f"{wanted.name}{extras}", source) + marker
        if "url" in source:
            return f"{wanted.name}{extras} @ {source['url']}{marker}"
        if "path" in source:
            return relative(path.parent / str(source["path"]), base) + extras + marker
    draft.left_out.append(f"[tool.uv.sources] {name} = {source!r}: any index may provide it")
    return line


def _name_the_rest(
    document: dict[str, Any], project: dict[str, Any], uv: dict[str, Any], draft: Draft
) -> None:
    """Name the packages that the file asks for elsewhere."""
    for table, what in (
        (project.get("optional-dependencies"), "[project.optional-dependencies]"),
        (document.get("dependency-groups"), "[dependency-groups]"),
    ):
        for name, lines in table.items() if isinstance(table, dict) else ():
            listed = ", ".join(map(_shown, lines)) if isinstance(lines, list) else str(lines)
            draft.left_out.append(f"{what} {name}: {listed}")
    for key in UV_PACKAGES:
        if key in uv:
            draft.left_out.append(f"[tool.uv] {key} = {uv[key]!r}")
    if "dependencies" in project.get("dynamic", []):
        draft.left_out.append(
            "[project] dynamic dependencies: only a build of the project knows them"
        )
    poetry = document.get("tool", {}).get("poetry", {})
    for key in ("dependencies", "group", "source") if isinstance(poetry, dict) else ():
        if key in poetry:
            draft.left_out.append(f"[tool.poetry] {key}: poetry's own format")


def _shown(line: object) -> str:
    return f"the group {line.get('include-group')}" if isinstance(line, dict) else str(line)


def _conda_version(requires_python: str, path: Path) -> str:
    """Turn a python version specifier into conda's form."""
    try:
        specifiers = SpecifierSet(requires_python)
    except InvalidSpecifier as error:
        message = f"{path}: `requires-python = {requires_python!r}` is not a valid version"
        raise SpecError(message, hint="write it as in `>=3.10`") from error
    parts = sorted(str(item) for item in specifiers)
    return ",".join(part.replace("===", "==") for part in parts)
