"""Drafts out of pixi manifests: the default environment, for each platform what holds there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from envferry.errors import SpecError
from envferry.names import PLATFORMS
from envferry.specs.channel_names import channel_name
from envferry.specs.drafts import SpecDraft
from envferry.specs.importing.pixi_manifest import PixiManifest
from envferry.specs.importing.pixi_platforms import platforms_of, system_of
from envferry.specs.importing.project_folders import project_line
from envferry.specs.importing.pyproject_tables import (
    conda_python,
    git_requirement,
    other_requirements,
)
from envferry.specs.syntax.conda_lines import conda_name, parse_conda_line
from envferry.specs.syntax.requirement_lines import relative
from envferry.specs.syntax.selectors import SELECTORS
from envferry.specs.syntax.toml_text import all_of, parse_toml

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

CONDA_TABLES = ("dependencies", "host-dependencies", "build-dependencies")
"""What pixi installs into an environment, the later ones first."""
BRACKETS = ("build-number", "file-name", "subdir", "md5", "sha256", "license", "url")
"""Keys of a conda dependency that a match spec has in brackets."""
MATCH_SPEC_KEYS = {"file-name": "fn"}
ENVIRONMENT_KEYS = ("features", "no-default-feature")
"""What an environment has beside the tables of a feature."""
WORKSPACE_FACTS = (
    *("name", "version", "description", "authors", "license", "license-file", "readme"),
    *("homepage", "repository", "documentation", "channels", "platforms", "preview"),
    *("requires-pixi", "build-variants", "conda-pypi-map"),
)


def draft_pixi(text: str, path: Path, base: Path, name: str, wanted: str | None) -> SpecDraft:
    """Read a `pixi.toml`, or the `[tool.pixi]` of a pyproject.toml.

    It is the environment `wanted` that is read, where there is one of this name, else the default.
    """
    manifest = PixiManifest(parse_toml(text), path, base)
    workspace = manifest.workspace
    features = _features(manifest, wanted)
    draft = SpecDraft(name=name, channels=_channels(manifest, workspace, features))
    draft.system = system_of(manifest, features)
    draft.platforms = platforms_of(manifest, workspace, features, draft.system)
    # For all that there are: a spec may be locked for more platforms than it names.
    platforms = [*PLATFORMS.values()]
    draft.add_pip({item: _options(manifest, features, item) for item in platforms})
    draft.add_conda({item: _conda(manifest, features, item) for item in platforms})
    if manifest.in_pyproject:
        _add_project(manifest, draft)
    draft.add_pip({item: _pypi(manifest, features, item) for item in platforms})
    _name_the_rest(manifest, workspace, features)
    draft.left_out, draft.notes = manifest.left_out, manifest.notes
    if manifest.others and not (draft.conda or draft.pip):
        message = f"the {manifest.environment} environment of {path} is empty"
        raise SpecError(message, hint=f"choose one with `--name`: {', '.join(manifest.others)}")
    return draft


def _add_project(manifest: PixiManifest, draft: SpecDraft) -> None:
    """Add what pixi takes of `[project]`: its dependencies, and python where nothing else asks."""
    project = manifest.table(manifest.document.get("project", {}), "project")
    lines = [str(line) for line in project.get("dependencies", [])]
    conda = [parse_conda_line(line) for line in draft.conda if line not in draft.conda_selectors]
    bounds = {line.name: line.version for line in conda if line}
    # pixi, too, asks no index for what conda has.
    repeated = [line for line in lines if _adds_no_bound(line, bounds)]
    if repeated:
        manifest.notes.append(
            f"[project] dependencies that conda has already: {', '.join(repeated)}"
        )
    draft.pip += [
        project_line(line, manifest.path.parent, manifest.base)
        for line in lines
        if line not in repeated
    ]
    if "requires-python" in project and not any(
        conda_name(line) == "python" for line in draft.conda
    ):
        draft.conda.insert(0, conda_python(str(project["requires-python"]), manifest.path))
    for text in other_requirements(manifest.document):
        manifest.leave_out(text)


def _adds_no_bound(line: str, bounds: Mapping[str, str]) -> bool:
    """Whether a requirement is of a conda package, by name, and adds no bound to its own."""
    try:
        wanted = Requirement(line)
        held = bounds.get(str(canonicalize_name(wanted.name)))
        if held is None or wanted.url or wanted.marker or wanted.extras:
            return False
        return not wanted.specifier or wanted.specifier == SpecifierSet(held)
    except (InvalidRequirement, InvalidSpecifier):
        return False


def _features(manifest: PixiManifest, wanted: str | None) -> list[tuple[str, dict[str, Any]]]:
    """Return the tables of one environment, each with its name; first wins."""
    known = manifest.table(manifest.root.get("feature", {}), "feature")
    environments = manifest.table(manifest.root.get("environments", {}), "environments")
    chosen = wanted if wanted and wanted in environments else "default"
    manifest.environment = chosen
    content = environments.get(chosen, [])
    own = content.get("features", []) if isinstance(content, dict) else content
    alone = isinstance(content, dict) and content.get("no-default-feature") is True
    tables = []
    if isinstance(content, dict):
        table = {key: item for key, item in content.items() if key not in ENVIRONMENT_KEYS}
        tables.append((f"environments.{chosen}.", table))
    for feature in own:
        if feature not in known:
            message = f"{manifest.path}: the {chosen} environment has the feature `{feature}`"
            msg = f"{message}, which is not defined"
            raise SpecError(msg, hint="correct `[environments]`")
        tables.append((f"feature.{feature}.", manifest.table(known[feature], f"feature.{feature}")))
    reason = f"only the {chosen} environment is read"
    manifest.others = [name for name in environments if name != chosen]
    for feature in known:
        if feature not in own:
            manifest.leave_out(f"[feature.{feature}] {all_of(known[feature])}: {reason}")
    for name in manifest.others:
        shown = f"{name} = {environments[name]!r}"
        manifest.leave_out(f"[environments] {shown}: {reason} (see `--name`)")
    return tables if alone else [*tables, ("", manifest.root)]


def _channels(
    manifest: PixiManifest, workspace: dict[str, Any], features: list[tuple[str, dict[str, Any]]]
) -> list[str]:
    """Return channels by priority: those of features first, as pixi has them."""
    found: list[tuple[int, str]] = []
    lists = [table.get("channels", []) for name, table in features if name]
    lists.append(workspace.get("channels", []))
    for item in [channel for several in lists for channel in several]:
        priority = item.get("priority", 0) if isinstance(item, dict) else 0
        channel = item.get("channel") if isinstance(item, dict) else item
        if not isinstance(channel, str) or not isinstance(priority, int):
            msg = f"{manifest.path}: {item!r} is not a channel"
            raise SpecError(msg, hint="correct `channels`")
        found.append((-priority, channel_name(channel)))
        for key in item.keys() - {"channel", "priority"} if isinstance(item, dict) else ():
            manifest.leave_out(f"[channels] {key} = {item[key]!r} of {channel}: ignored")
    # Stable: channels of one priority stay in their order.
    found.sort(key=lambda item: item[0])
    return list(dict.fromkeys(channel for _, channel in found))


def _tables(
    manifest: PixiManifest, feature: tuple[str, dict[str, Any]], platform: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the tables of a feature that hold on a platform: what counts least first."""
    name, table = feature
    yield name, table
    targets = manifest.table(table.get("target", {}), f"{name}target")
    # False sorts before True: the platform's own table comes last and wins over `linux` or `unix`.
    for target in sorted(targets, key=lambda item: item == platform):
        if target == platform or target in SELECTORS[platform]:
            key = f"{name}target.{target}"
            yield f"{key}.", manifest.table(targets[target], key)


def _conda(
    manifest: PixiManifest, features: list[tuple[str, dict[str, Any]]], platform: str
) -> list[str]:
    """Return the conda lines for one platform: within a feature targets win, all features hold."""
    lines: list[str] = []
    # The workspace's own tables come last in the list, and their lines first in the spec.
    for feature in reversed(features):
        found: dict[str, str] = {}
        for kind in CONDA_TABLES:
            for name, table in _tables(manifest, feature, platform):
                key = f"{name}{kind}"
                for package, value in manifest.table(table.get(kind, {}), key).items():
                    found[package] = _conda_line(
                        manifest, key, package, _inherited(manifest, key, package, value)
                    )
        lines += filter(None, found.values())
    return list(dict.fromkeys(lines))


def _inherited(manifest: PixiManifest, key: str, name: str, value: object) -> object:
    """Return a dependency; of the workspace's, where it says `{workspace = true}`."""
    if not (isinstance(value, dict) and value.get("workspace") is True):
        return value
    known = manifest.table(manifest.workspace.get("dependencies", {}), "workspace.dependencies")
    if name not in known:
        msg = f"{manifest.path}: `{name}` in [{key}] is not in [workspace.dependencies]"
        raise SpecError(msg, hint="add it there, or name a version")
    manifest.inherited.add(name)
    rest = {item: value[item] for item in value if item != "workspace"}
    own = known[name]
    return {**(own if isinstance(own, dict) else {"version": own}), **rest}


def _conda_line(manifest: PixiManifest, key: str, name: str, value: object) -> str:
    """Return the match spec of a dependency; empty for one that is not a package of a channel."""
    if not isinstance(value, (str, dict)):
        msg = f"{manifest.path}: `{name}` in [{key}] is not a version"
        raise SpecError(msg, hint="correct it")
    table: dict[str, Any] = value if isinstance(value, dict) else {"version": value}
    # pixi builds these with a backend of its own.
    if {"git", "path"} & table.keys():
        place = table.get("git") or table.get("path")
        rest = {item: table[item] for item in table if item not in ("git", "path")}
        more = f" ({all_of(rest)})" if rest else ""
        manifest.leave_out(
            f"[{key}] {name} from {place}{more}: built by pixi, not available from a channel"
        )
        return ""
    if not re.fullmatch(r"[A-Za-z0-9_][\w.-]*", name):
        msg = f"{manifest.path}: `{name}` in [{key}] is not a package"
        raise SpecError(msg, hint="correct it")
    for unknown in table.keys() - {"version", "build", "channel", *BRACKETS}:
        manifest.leave_out(f"[{key}] {name} {{{unknown} = {table[unknown]!r}}}: not understood")
    # In a match spec, a blank would begin the build.
    version = re.sub(r"\s*,\s*", ",", str(table.get("version", "*"))).strip() or "*"
    build = str(table.get("build", ""))
    brackets = [
        f"{MATCH_SPEC_KEYS.get(item, item.replace('-', '_'))}='{table[item]}'"
        for item in BRACKETS
        if item in table
    ]
    channel = f"{channel_name(str(table['channel']))}::" if "channel" in table else ""
    return _match_spec(f"{channel}{name}", version, build) + (
        f"[{','.join(brackets)}]" if brackets else ""
    )


def _match_spec(name: str, version: str, build: str) -> str:
    if version == "*" and not build:
        return name
    if re.fullmatch(r"==[^,|\s*]+", version) and build:
        return f"{name}={version[2:]}={build}"
    if re.match(r"[\d]", version) and not build:
        return f"{name} {version}" if "*" in version else f"{name}={version}"
    return f"{name} {version} {build}".rstrip()


def _pypi(
    manifest: PixiManifest, features: list[tuple[str, dict[str, Any]]], platform: str
) -> list[str]:
    lines: list[str] = []
    for feature in reversed(features):
        found: dict[str, str] = {}
        for name, table in _tables(manifest, feature, platform):
            key = f"{name}pypi-dependencies"
            for package, value in manifest.table(table.get("pypi-dependencies", {}), key).items():
                found[package] = _pypi_line(manifest, key, package, value)
        lines += found.values()
    return list(dict.fromkeys(lines))


def _pypi_line(manifest: PixiManifest, key: str, name: str, value: object) -> str:
    """Return the requirement of a pypi dependency."""
    table: dict[str, Any] = value if isinstance(value, dict) else {"version": value}
    known = {"version", "extras", "git", "rev", "tag", "branch", "subdirectory", "url", "path"}
    for unknown in table.keys() - {*known, "index", "editable", "env-markers"}:
        manifest.leave_out(f"[{key}] {name} {{{unknown} = {table[unknown]!r}}}: not understood")
    if table.get("editable"):
        manifest.leave_out(f"[{key}] {name} {{editable = true}}: it is built into a wheel")
    marker = f" ; {table['env-markers']}" if table.get("env-markers") else ""
    extras = f"[{','.join(map(str, table['extras']))}]" if table.get("extras") else ""
    if "git" in table:
        return git_requirement(f"{name}{extras}", table) + marker
    if "url" in table:
        return f"{name}{extras} @ {table['url']}{marker}"
    if "path" in table:
        return relative(manifest.path.parent / str(table["path"]), manifest.base) + extras + marker
    version = str(table.get("version", "*"))
    if version in ("*", ""):
        return f"{name}{extras}{marker}"
    return f"{name}{extras}{version if version[0] in '=<>!~' else f'=={version}.*'}{marker}"


def _options(
    manifest: PixiManifest, features: list[tuple[str, dict[str, Any]]], platform: str
) -> list[str]:
    """Return the option lines that `[pypi-options]` and the `index` of dependencies stand for."""
    lines: list[str] = []
    for name, table in [*features, ("workspace.", manifest.workspace)]:
        key = f"{name}pypi-options"
        lines += _option_lines(manifest, key, manifest.table(table.get("pypi-options", {}), key))
    for feature in features:
        for name, table in _tables(manifest, feature, platform):
            pypi = manifest.table(table.get("pypi-dependencies", {}), f"{name}pypi-dependencies")
            tables = [item for item in pypi.values() if isinstance(item, dict)]
            lines += [f"--extra-index-url {item['index']}" for item in tables if "index" in item]
    return list(dict.fromkeys(lines))


def _option_lines(manifest: PixiManifest, key: str, options: dict[str, Any]) -> Iterable[str]:
    for name, value in options.items():
        if name == "index-url":
            yield f"--index-url {value}"
        elif name == "extra-index-urls" and isinstance(value, list):
            yield from (f"--extra-index-url {item}" for item in value)
        elif name == "find-links" and isinstance(value, list):
            yield from _find_links(manifest, value)
        elif name == "no-build" and value:
            names = [":all:"] if value is True else [str(item) for item in value]
            yield from (f"--only-binary {item}" for item in names)
        elif name == "no-binary" and value:
            names = [":all:"] if value is True else [str(item) for item in value]
            yield from (f"--no-binary {item}" for item in names)
        elif name == "prerelease-mode" and value == "allow":
            yield "--pre"
        else:
            manifest.leave_out(f"[{key}] {name} = {value!r}: uv's default applies")


def _find_links(manifest: PixiManifest, places: list[Any]) -> Iterable[str]:
    for place in places:
        for key in place.keys() - {"path", "url"} if isinstance(place, dict) else ():
            manifest.leave_out(f"find-links {key} = {place[key]!r}: not understood")
        if isinstance(place, dict) and "path" in place:
            path = relative(manifest.path.parent / str(place["path"]), manifest.base)
            yield f"--find-links {path}"
        else:
            yield f"--find-links {place['url'] if isinstance(place, dict) else place}"


def _name_the_rest(
    manifest: PixiManifest, workspace: dict[str, Any], features: list[tuple[str, dict[str, Any]]]
) -> None:
    """Note every key that was not taken over."""
    taken = {*CONDA_TABLES, "pypi-dependencies", "pypi-options", "system-requirements", "target"}
    for name, table in features:
        for key, value in table.items():
            if name == "" and (key in ("workspace", "feature", "environments") or key == "tool"):
                continue
            # In older manifests `[project]` is the workspace, which is read.
            if name == "" and key == "project" and ("workspace" not in table):
                continue
            if key in taken or (name and key in ("channels", "platforms")):
                continue
            manifest.leave_out_table(f"{name}{key}", value)
        for target, content in manifest.table(table.get("target", {}), f"{name}target").items():
            _name_target(manifest, f"{name}target.{target}", target, content)
    for name in workspace.get("dependencies", {}).keys() - manifest.inherited:
        shown = all_of(workspace["dependencies"][name])
        manifest.leave_out(f"[workspace.dependencies] {name} = {shown}: no dependency inherits it")
    facts = {*WORKSPACE_FACTS, "pypi-options", "dependencies"}
    # Strict is the default of both, so nothing is lost.
    if workspace.get("channel-priority", "strict") == "strict":
        facts.add("channel-priority")
    for key in workspace.keys() - facts:
        manifest.leave_out(f"[workspace] {key} = {workspace[key]!r}: ignored")


def _name_target(manifest: PixiManifest, place: str, target: str, content: dict[str, Any]) -> None:
    known = any(target == item or target in SELECTORS[item] for item in SELECTORS)
    if not known:
        manifest.leave_out(f"[{place}] {all_of(content)}: envferry does not lock for it")
        return
    for key in content.keys() - {*CONDA_TABLES, "pypi-dependencies"}:
        manifest.leave_out_table(f"{place}.{key}", content[key])
