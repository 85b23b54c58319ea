"""Drafts out of a pyproject.toml: its dependencies, where uv gets them, what is left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from envferry.errors import SpecError
from envferry.specs.drafts import SpecDraft
from envferry.specs.importing.project_folders import project_line
from envferry.specs.importing.pyproject_tables import (
    conda_python,
    git_requirement,
    other_requirements,
)
from envferry.specs.syntax.pip_lines import requirement_name
from envferry.specs.syntax.requirement_lines import relative
from envferry.specs.syntax.toml_text import parse_toml, table_at

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

UV_FACTS = (
    *("add-bounds", "allow-insecure-host", "audit", "build-backend", "cache-dir", "cache-keys"),
    *("check-url", "compile-bytecode", "concurrent-builds", "concurrent-downloads"),
    *("concurrent-installs", "default-groups", "http-proxy", "https-proxy", "keyring-provider"),
    *("link-mode", "managed", "native-tls", "no-cache", "no-proxy", "offline", "package"),
    *("preview", "preview-features", "publish-url", "pypy-install-mirror", "python-downloads"),
    *("python-downloads-json-url", "python-install-mirror", "python-preference", "reinstall"),
    *("reinstall-package", "required-version", "system-certs", "trusted-publishing", "upgrade"),
    *("upgrade-package", "index", "sources"),
)
"""Keys of `[tool.uv]` that decide no packages, and the two that are read."""
INDEX_FACTS = (
    *("name", "url", "default", "explicit", "format", "authenticate", "cache-control"),
    *("ignore-error-codes", "publish-url"),
)
SOURCE_KEYS = {
    "git": ("git", "rev", "tag", "branch", "subdirectory"),
    "url": ("url", "subdirectory"),
    "path": ("path",),
}
"""What is taken over of a source, by the key that says its kind."""
CONDITIONS = ("marker", "extra", "group")
"""Keys of a source that is not for every platform or group."""


def draft_pyproject(
    text: str, path: Path, base: Path, name: str, channels: Iterable[str]
) -> SpecDraft:
    """Read `[project] dependencies` and `requires-python`; the project itself is not among them."""
    document = parse_toml(text)
    project = table_at(document.get("project", {}), path, "project")
    dependencies = project.get("dependencies", [])
    if not isinstance(dependencies, list):
        msg = f"{path}: `dependencies` is not a list"
        raise SpecError(msg, hint="correct it")
    draft = SpecDraft(name=name, channels=list(channels))
    draft.conda = [conda_python(str(project.get("requires-python", "")), path), "pip"]
    uv = table_at(table_at(document.get("tool", {}), path, "tool").get("uv", {}), path, "tool.uv")
    sources = table_at(uv.get("sources", {}), path, "tool.uv.sources")
    draft.pip += _indexes(uv, path, base, draft)
    draft.pip += [_requirement(str(line), sources, path, base, draft) for line in dependencies]
    if not draft.pip:
        draft.notes.append(f"{path.name} has no `dependencies`: only python is required")
    asked = {requirement_name(str(line)) for line in dependencies}
    for package, source in sources.items():
        if str(canonicalize_name(package)) not in asked:
            draft.left_out.append(
                f"[tool.uv.sources] {package} = {source!r}: no dependency requires it"
            )
    draft.left_out += [f"[tool.uv] {key} = {uv[key]!r}" for key in sorted(uv.keys() - {*UV_FACTS})]
    draft.left_out += other_requirements(document)
    draft.notes.append(
        f"the project itself is not in the spec: add `- {relative(path.parent, base)}` "
        "under `pip:` to carry it too"
    )
    return draft


def _indexes(uv: dict[str, Any], path: Path, base: Path, draft: SpecDraft) -> list[str]:
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
        is_flat = table.get("format") == "flat"
        option = "--index-url" if table.get("default") else "--extra-index-url"
        if "://" not in url:
            place = path.parent.absolute() / url
            # `--find-links` takes a path, which travels with the repository; an index is a URL.
            url = relative(place, base) if is_flat else place.as_uri()
        lines.append(f"{'--find-links' if is_flat else option} {url}")
        label = f"[[tool.uv.index]] {table.get('name', url)}"
        # pip has no index for some packages only, so the spec cannot say it.
        if table.get("explicit"):
            draft.left_out.append(f"{label} {{explicit = true}}: it is searched for every package")
        draft.left_out += [
            f"{label} {{{key} = {table[key]!r}}}: not understood"
            for key in sorted(table.keys() - {*INDEX_FACTS})
        ]
    return lines


def _requirement(
    line: str, sources: dict[str, Any], path: Path, base: Path, draft: SpecDraft
) -> str:
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
        return project_line(line, path.parent, base)
    kind = next((key for key in SOURCE_KEYS if key in source), "")
    # A list has a source for each marker, and one requirement can name only one place.
    if not isinstance(source, dict) or not kind or {*CONDITIONS} & source.keys():
        draft.left_out.append(f"[tool.uv.sources] {name} = {source!r}: any index may provide it")
        return line
    draft.left_out += [
        f"[tool.uv.sources] {name} {{{key} = {source[key]!r}}}: ignored"
        for key in sorted(source.keys() - {*SOURCE_KEYS[kind]})
    ]
    extras = f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else ""
    marker = f" ; {wanted.marker}" if wanted.marker else ""
    if kind == "git":
        return git_requirement(f"{wanted.name}{extras}", source) + marker
    if kind == "url":
        folder = f"#subdirectory={source['subdirectory']}" if source.get("subdirectory") else ""
        return f"{wanted.name}{extras} @ {source['url']}{folder}{marker}"
    return relative(path.parent / str(source["path"]), base) + extras + marker
