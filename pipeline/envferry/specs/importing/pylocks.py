"""Locks of the pip half alone: `uv.lock` and `pylock.toml` (PEP 751), for one python."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace
from packaging.markers import Marker
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from envferry.errors import SpecError
from envferry.names import current_platform
from envferry.specs.drafts import SpecDraft
from envferry.specs.importing.foreign_lock import ForeignLock, git_url
from envferry.specs.syntax.markers import target_environment
from envferry.specs.syntax.toml_text import parse_toml

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

UV_VERSION = 1
PYLOCK_VERSIONS = re.compile(r"1\.\d+")
MINOR = re.compile(r"3\.\d+")
NEWEST_PYTHON = 14
PATCHES = range(100)
"""More than any python has had."""
OLDEST_USUAL = "3.10"
"""Older ones are taken only where nothing newer fits."""
OWN_SOURCES = ("editable", "virtual")
"""How uv calls the project itself and members of its workspace."""


class _Target(msgspec.Struct, frozen=True, kw_only=True):
    python: str
    platform: str
    groups: tuple[str, ...] = ()

    @property
    def environment(self) -> dict[str, Any]:
        """The marker variables, those of PEP 751 too: no extra is asked for."""
        variables: dict[str, Any] = {**target_environment(self.python, self.platform)}
        return {**variables, "extras": set(), "dependency_groups": {*self.groups}}

    def accepts(self, marker: str | None) -> bool:
        # In this context `extras` and `dependency_groups` are sets (PEP 751).
        return not marker or Marker(marker).evaluate(self.environment, context="lock_file")


def read_pylock(text: str, path: Path, name: str, python: str | None) -> ForeignLock:
    """Read a `pylock.toml`."""
    document = parse_toml(text)
    version = str(document["lock-version"])
    if not PYLOCK_VERSIONS.fullmatch(version):
        msg = f"{path} has the lock format {version}, expected 1.0"
        raise SpecError(msg, hint="regenerate it")
    draft, target = _draft(name, str(document.get("requires-python", "")), path, python)
    environments = document.get("environments") or []
    if environments and not any(target.accepts(str(item)) for item in environments):
        message = f"{path} is for {' or '.join(map(str, environments))}, not for {target.platform}"
        raise SpecError(message, hint="regenerate it for this platform")
    # A group that was not asked for is installed all the same, such as pdm's own packages.
    target = replace(target, groups=_names(document, "default-groups"))
    for kind in ("extras", "dependency-groups"):
        others = [item for item in _names(document, kind) if item not in target.groups]
        if others:
            draft.left_out.append(f"{kind} {', '.join(others)}: none is selected")
    entries = []
    for entry in document.get("packages") or []:
        requires = SpecifierSet(str(entry.get("requires-python", "")))
        if target.accepts(entry.get("marker")) and requires.contains(_full(target.python)):
            entries.append({**entry, "name": str(canonicalize_name(str(entry["name"])))})
    return _foreign(draft, entries, path)


def _names(document: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return an array of names; raise ValueError for anything else."""
    found = document.get(key, [])
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        message = f"`{key}` is not an array of names"
        raise ValueError(message)
    return tuple(found)


def read_uv_lock(text: str, path: Path, name: str, python: str | None) -> ForeignLock:
    """Read a `uv.lock`: what the project needs, without extras and groups."""
    document = parse_toml(text)
    if document["version"] != UV_VERSION:
        message = f"{path} has the lock format {document['version']}, expected {UV_VERSION}"
        raise SpecError(message, hint="regenerate it with a uv that writes it")
    draft, target = _draft(name, str(document.get("requires-python", "")), path, python)
    packages = document.get("package") or []
    roots = [item for item in packages if {*OWN_SOURCES} & item["source"].keys()]
    roots += _manifest_root(document.get("manifest") or {}, name, draft)
    for root in roots:
        for table in ("optional-dependencies", "dev-dependencies"):
            for group, items in (root.get(table) or {}).items():
                # Several entries of one name differ by their markers.
                names = ", ".join(dict.fromkeys(str(item["name"]) for item in items))
                draft.left_out.append(f"{root['name']} [{table}] {group}: {names}")
        if "editable" in root.get("source", {}):
            draft.left_out.append(f"{root['name']} itself, from {root['source']['editable']}")
    entries = [_uv_entry(item) for item in _reached(packages, roots, target)]
    return _foreign(draft, entries, path)


def _manifest_root(
    manifest: Mapping[str, Any], name: str, draft: SpecDraft
) -> list[dict[str, Any]]:
    """Return what a script (PEP 723) or a workspace without a project needs, as a package does."""
    for group, items in (manifest.get("dependency-groups") or {}).items():
        names = ", ".join(dict.fromkeys(str(item["name"]) for item in items))
        draft.left_out.append(f"[manifest.dependency-groups] {group}: {names}")
    if manifest.get("build-constraints"):
        names = ", ".join(str(item["name"]) for item in manifest["build-constraints"])
        draft.left_out.append(
            f"[manifest] build-constraints: {names}: sources are built with others"
        )
    needs = [
        {**item, "extra": item.get("extras") or []} for item in manifest.get("requirements") or []
    ]
    return [{"name": name, "dependencies": needs}] if needs else []


def _draft(
    name: str, requires_python: str, path: Path, python: str | None
) -> tuple[SpecDraft, _Target]:
    """Choose the python: the one asked for, that of `.python-version`, else one that fits."""
    minors = [f"3.{minor}" for minor in range(6, NEWEST_PYTHON + 1)]
    specifiers = SpecifierSet(requires_python)
    fitting = [item for item in minors if _patches(item, specifiers)]
    usual = [item for item in fitting if item in minors[minors.index(OLDEST_USUAL) :]]
    pinned = path.with_name(".python-version")
    own = MINOR.match(pinned.read_text(encoding="utf-8").strip()) if pinned.is_file() else None
    preferred = [own[0]] if own and own[0] in fitting else []
    # The oldest of the usual ones; only where none of them fits, the newest of the older ones.
    chosen = python or next(iter([*preferred, *usual, *reversed(fitting)]), "")
    if not MINOR.match(chosen) or not _patches(chosen, specifiers):
        what = f"{python} does not fit" if python else "no known version fits"
        message = f"{path} requires python {requires_python}, and {what}"
        hint = f"choose one with `--python`: {', '.join(fitting) or 'as in --python 3.12'}"
        raise SpecError(message, hint=hint)
    line = _python_line(chosen, specifiers)
    draft = SpecDraft(name=name, conda=[line, "pip"], platforms=[current_platform()])
    says = f"requires python {requires_python}" if requires_python else "names no python"
    draft.notes.append(f"{path.name} {says}: using {line} on {draft.platforms[0]}")
    return draft, _Target(python=chosen, platform=draft.platforms[0])


def _patches(python: str, specifiers: SpecifierSet) -> list[str]:
    """Return the versions of a python such as `3.11` that fit; of `3.11.4`, that one or none."""
    tried = [python] if python.count(".") > 1 else [f"{python}.{patch}" for patch in PATCHES]
    return [item for item in tried if specifiers.contains(item, prereleases=True)]


def _python_line(python: str, specifiers: SpecifierSet) -> str:
    """Return the conda line for a python, with the bounds that lie within it."""
    if python.count(".") > 1 or len(_patches(python, specifiers)) == len(PATCHES):
        return f"python={python}"
    bounds = sorted(str(item).replace("===", "==") for item in specifiers)
    return f"python {','.join([f'{python}.*', *bounds])}"


def _reached(
    packages: list[dict[str, Any]], roots: list[dict[str, Any]], target: _Target
) -> list[dict[str, Any]]:
    """Return what the project needs on the target, in the order of the lock."""
    reached: list[int] = []
    waiting = [(root, frozenset[str]()) for root in roots]
    done: set[tuple[int, frozenset[str]]] = set()
    while waiting:
        package, extras = waiting.pop()
        # By identity: a package is a dictionary, which cannot be in a set, and names repeat.
        if (id(package), extras) in done:
            continue
        done.add((id(package), extras))
        if package not in roots:
            reached.append(id(package))
        for needed in _needed(package, extras):
            if target.accepts(needed.get("marker")):
                found = _find(packages, needed, target)
                waiting.append((found, frozenset(map(str, needed.get("extra") or []))))
    # In the order of the file, so that equal locks give equal specs.
    return [item for item in packages if id(item) in reached]


def _needed(package: dict[str, Any], extras: frozenset[str]) -> Iterator[dict[str, Any]]:
    yield from package.get("dependencies") or []
    for extra in extras:
        yield from (package.get("optional-dependencies") or {}).get(extra, [])


def _full(python: str) -> str:
    # Of `3.11` alone, conda takes the newest patch.
    return python if python.count(".") > 1 else f"{python}.99"


def _find(
    packages: list[dict[str, Any]], needed: Mapping[str, Any], target: _Target
) -> dict[str, Any]:
    """Return the package that a dependency means, of several versions that of the target."""
    named = [item for item in packages if item["name"] == needed["name"]]
    for key in ("version", "source"):
        if key in needed:
            named = [item for item in named if item.get(key) == needed[key]]
    fitting = [
        item
        for item in named
        if not item.get("resolution-markers")
        or any(target.accepts(marker) for marker in item["resolution-markers"])
    ]
    if not fitting:
        msg = f"it has no package `{needed['name']}` for this python and platform"
        raise ValueError(msg)
    return fitting[0]


def _uv_entry(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return a package of uv.lock in the form of PEP 751."""
    source = item["source"]
    entry: dict[str, Any] = {"name": item["name"]}
    if "version" in item:
        entry["version"] = str(item["version"])
    entry["dependencies"] = [{"name": need["name"]} for need in item.get("dependencies") or []]
    if "registry" in source:
        entry["index"] = str(source["registry"])
    if "git" in source:
        url, commit = git_url(str(source["git"]))
        found = re.fullmatch(r"git\+(?P<url>.+)@[0-9a-f]{40}(#subdirectory=(?P<folder>.+))?", url)
        assert found is not None  # the form that git_url writes
        vcs = {"type": "git", "url": found["url"], "commit-id": commit}
        return entry | {"vcs": vcs | ({"subdirectory": found["folder"]} if found["folder"] else {})}
    for key in ("directory", "editable", "virtual"):
        if key in source:
            return entry | {"directory": {"path": str(source[key])}}
    wheels = [_uv_file(file, source) for file in item.get("wheels") or []]
    if wheels:
        entry["wheels"] = wheels
    if "sdist" in item:
        entry["sdist"] = _uv_file(item["sdist"], source)
    # A requirement named the file itself: by its version, an index could offer another one.
    if "url" in source or "path" in source:
        entry["direct"] = True
    return entry


def _uv_file(file: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    kind, _, digest = str(file.get("hash", "")).partition(":")
    place = {key: str(file[key]) for key in ("url", "path") if key in file}
    if "path" in place and "registry" in source:
        # A folder of files is an index for uv, and its files' paths start there.
        place["path"] = str(PurePath(source["registry"], place["path"]))
    if not place:
        # Of what a requirement names itself, the file has a name only: its source says where it is.
        place = {key: str(source[key]) for key in ("url", "path") if key in source}
    return {**place, "hashes": {kind: digest} if digest else {}}


def _foreign(draft: SpecDraft, entries: list[dict[str, Any]], path: Path) -> ForeignLock:
    indexes = dict.fromkeys(str(entry["index"]) for entry in entries if entry.get("index"))
    draft.pip = [f"--extra-index-url {item}" for item in indexes if "://" in item]
    draft.pip += [f"--find-links {item}" for item in _folders(entries, path.parent.absolute())]
    draft.pip += [_pin(entry, path) for entry in entries]
    if not entries:
        draft.notes.append(f"{path.name} names no package for this python and platform")
    return ForeignLock(draft=draft, candidates=tuple(entries), base=path.parent.absolute())


def _folders(entries: list[dict[str, Any]], base: Path) -> Iterable[Path]:
    """Return the folders in which files of a version are: on an index anyone may own that name."""
    files = [
        file
        for entry in entries
        if not entry.get("direct")
        for file in (*entry.get("wheels", ()), *([entry["sdist"]] if "sdist" in entry else ()))
    ]
    folders = [(base / str(file["path"])).parent for file in files if "path" in file]
    return dict.fromkeys(folders)


def _pin(entry: Mapping[str, Any], path: Path) -> str:
    """Return the line that asks for one entry and no other."""
    name = entry["name"]
    if "vcs" in entry:
        vcs = entry["vcs"]
        folder = f"#subdirectory={vcs['subdirectory']}" if vcs.get("subdirectory") else ""
        return f"{name} @ git+{vcs['url']}@{vcs['commit-id']}{folder}"
    if "directory" in entry:
        place = (path.parent.absolute() / str(entry["directory"]["path"])).resolve()
        return f"{name} @ {place.as_uri()}"
    archive = entry.get("archive")
    if archive or entry.get("direct"):
        file = archive or (entry.get("wheels") or [entry.get("sdist")])[0]
        url = file.get("url") or (path.parent.absolute() / str(file["path"])).as_uri()
        return f"{name} @ {url}"
    return f"{name}=={entry['version']}"
