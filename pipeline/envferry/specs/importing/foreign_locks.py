"""Locks of other tools, read and not solved again: which files they name, with which hashes.

`conda-lock.yml` (CEP 37), `pixi.lock` (versions 4 to 7), and `@EXPLICIT` lists name the files of an
environment; `uv.lock` (version 1) and `pylock.toml` (PEP 751) name all files of each package of the
pip half, of which the python and the platform choose: that is for the lock stage.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec
from packaging.utils import canonicalize_name

from envferry.errors import SpecError
from envferry.models import LockedPackage
from envferry.names import PLATFORMS, current_platform
from envferry.redaction import without_credentials, without_login
from envferry.specs.drafts import Draft
from envferry.specs.importing.conda_environments import PACKAGE_URL, channel_name, draft_explicit
from envferry.specs.importing.file_kinds import FileKind
from envferry.specs.syntax.conda_lines import parse_conda_line
from envferry.specs.syntax.yaml_text import parse_yaml, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from envferry.specs.importing.conda_environments import ExplicitLine

PIXI_VERSIONS = ("4", "5", "6", "7")
CONDA_LOCK_VERSION = "1"
DEFAULT_CATEGORIES = ("main", "dev")
"""What `conda-lock install` installs unless it is told otherwise."""
NULLS = ("null", "Null", "NULL", "~", "")
GIT_COMMIT = re.compile(r"[0-9a-f]{40}")


class ForeignLock(msgspec.Struct, frozen=True, kw_only=True):
    """What another tool's lock holds."""

    draft: Draft
    """A spec that asks for just these packages."""
    packages: tuple[LockedPackage, ...] = ()
    """The files, some without a hash: what the source does not know is fetched."""
    candidates: tuple[Mapping[str, Any], ...] = ()
    """Entries of the pip half as in `pylock.toml`, of which python and platform choose files."""
    base: Path = Path()
    """The folder that relative paths of candidates start from."""


def read_explicit(text: str, path: Path, name: str) -> ForeignLock:
    """Read an `@EXPLICIT` list."""
    draft, lines = draft_explicit(text, path, name)
    platforms = draft.platforms or [current_platform()]
    packages = [_explicit_package(line, platform) for line in lines for platform in platforms]
    return ForeignLock(draft=draft, packages=tuple(packages))


def read_foreign_lock(
    text: str, path: Path, kind: FileKind, name: str, python: str | None
) -> ForeignLock:
    """Read a lock that is a document; raise SpecError when it is damaged or of another version.

    `python` is for locks of the pip half alone.
    """
    from envferry.specs.importing.pylocks import read_pylock, read_uv_lock

    try:
        if kind is FileKind.CONDA_LOCK:
            return _read_conda_lock(text, path, name)
        if kind is FileKind.PIXI_LOCK:
            return _read_pixi_lock(text, path, name)
        read = read_uv_lock if kind is FileKind.UV_LOCK else read_pylock
        return read(text, path, name, python)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"it has no `{error.args[0]}`" if isinstance(error, KeyError) else str(error)
        message = f"{path} is damaged, expected {kind.value}: {what}"
        raise SpecError(message, hint="regenerate it with the tool that wrote it") from error


def _explicit_package(line: ExplicitLine, platform: str) -> LockedPackage:
    return LockedPackage(
        manager="conda" if line.build is not None else "pip",
        name=line.name,
        version=line.version,
        platform=platform,
        url=line.url,
        sha256=line.sha256,
        md5=line.md5,
        build=line.build,
    )


def _read_conda_lock(text: str, path: Path, name: str) -> ForeignLock:
    document = _without_nulls(plain(parse_yaml(text, path)))
    if str(document.get("version", CONDA_LOCK_VERSION)) != CONDA_LOCK_VERSION:
        message = f"{path} has the lock format {document['version']}, expected {CONDA_LOCK_VERSION}"
        raise SpecError(message, hint="regenerate it with conda-lock, or import a pixi.lock")
    metadata = document["metadata"]
    draft = Draft(name=name)
    for channel in metadata.get("channels") or []:
        draft.channels.append(channel_name(str(channel["url"])))
    packages = []
    other: dict[str, int] = {}
    for item in document.get("package") or []:
        category = item.get("category") or "main"
        if item["platform"] not in PLATFORMS.values():
            other[item["platform"]] = other.get(item["platform"], 0) + 1
        elif category not in DEFAULT_CATEGORIES:
            draft.left_out.append(f"{item['name']} {item['version']}: in the category {category}")
        else:
            packages.append(_conda_lock_package(item))
    draft.left_out += [
        f"{count} packages for {platform}: envferry does not lock for it"
        for platform, count in sorted(other.items())
    ]
    direct = {
        item["name"]
        for item in document.get("package") or []
        if (item.get("source") or {}).get("url")
    }
    return _foreign(draft, packages, path, direct)


def _without_nulls(value: Any) -> Any:  # noqa: ANN401  (what YAML holds is what it holds)
    """Drop the keys without a value: our parser has scalars as they are written, `null` too."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item not in NULLS}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _conda_lock_package(item: Mapping[str, Any]) -> LockedPackage:
    digests = item.get("hash") or {}
    is_conda = item["manager"] == "conda"
    url = (without_credentials if is_conda else without_login)(str(item["url"]))
    found = PACKAGE_URL.fullmatch(url)
    commit = re.search(r"@([0-9a-f]{40})(#|$)", url) if url.startswith("git+") else None
    return LockedPackage(
        manager="conda" if is_conda else "pip",
        name=str(item["name"]),
        version=str(item["version"]),
        platform=str(item["platform"]),
        url=url,
        sha256=commit[1] if commit else (digests.get("sha256") or None),
        md5=digests.get("md5") or None,
        build=unquote(found["build"]) if is_conda and found else None,
        dependencies={
            str(key): str(value) for key, value in (item.get("dependencies") or {}).items()
        },
    )


def _read_pixi_lock(text: str, path: Path, name: str) -> ForeignLock:
    document = _without_nulls(plain(parse_yaml(text, path)))
    version = str(document["version"])
    if version not in PIXI_VERSIONS:
        message = (
            f"{path} has the lock format {version}, expected one of {', '.join(PIXI_VERSIONS)}"
        )
        raise SpecError(message, hint="regenerate it with a pixi that writes one of these")
    draft = Draft(name=name)
    environment = _pixi_environment(document["environments"], path, draft)
    draft.channels = [channel_name(str(item["url"])) for item in environment.get("channels") or []]
    indexes = [str(item) for item in environment.get("indexes") or []]
    known = {_pixi_place(item): item for item in document.get("packages") or []}
    packages = []
    for platform, places in _pixi_platforms(document, environment, draft):
        for place in places:
            found = _pixi_package(known[_pixi_place(place)], platform, path.parent)
            if found:
                packages.append(found)
            else:
                shown = _pixi_place(place)[1]
                words = f"{shown}: built by pixi, not available from a channel"
                draft.left_out += [words] if words not in draft.left_out else []
    lock = _foreign(draft, packages, path, set())
    if any(package.manager == "pip" for package in packages):
        draft.pip[:0] = [f"--extra-index-url {item}" for item in indexes]
    return lock


def _pixi_platforms(
    document: Mapping[str, Any], environment: Mapping[str, Any], draft: Draft
) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Yield platforms with their packages; note what hosts of them are expected to offer.

    From version 7 on, a platform has a name of its own, and there may be several of one subdir:
    the one that is called like it, else the first, is taken.
    """
    tables = {str(one["name"]): one for one in document.get("platforms") or []}
    subdirs = {name: str(one.get("subdir") or name) for name, one in tables.items()}
    taken: dict[str, str] = {}
    named = environment["packages"].items()
    for name, places in sorted(named, key=lambda item: item[0] != subdirs.get(item[0], item[0])):
        subdir = subdirs.get(name, name)
        if subdir not in PLATFORMS.values():
            draft.left_out.append(
                f"{len(places)} packages for {name}: envferry does not lock for it"
            )
        elif subdir in taken:
            reason = f"for {subdir}, those of {taken[subdir]} are read"
            draft.left_out.append(f"{len(places)} packages for {name}: {reason}")
        else:
            taken[subdir] = name
            for text in tables.get(name, {}).get("virtual-packages") or []:
                what, _, value = str(text).removeprefix("__").partition("=")
                if what in ("cuda", "glibc") and subdir.startswith("linux"):
                    draft.system.setdefault(what, value.partition("=")[0])
            yield subdir, places


def _pixi_environment(
    environments: Mapping[str, Any], path: Path, draft: Draft
) -> Mapping[str, Any]:
    """Return the environment of the draft's name, else the default one, else the only one."""
    named = next((item for item in (draft.name, "default") if item in environments), None)
    if named is None and len(environments) == 1:
        named = next(iter(environments))
    if named is None:
        message = f"{path} has several environments, none of them the default"
        known = ", ".join(environments)
        raise SpecError(message, hint=f"choose one with `--name`: {known}")
    for other in environments:
        if other != named:
            draft.left_out.append(f"the environment {other}: only {named} is read (see `--name`)")
    environment: Mapping[str, Any] = environments[named]
    full = [name for name, item in environments.items() if any(item["packages"].values())]
    if named not in full and full:
        message = f"the environment {named} of {path} is empty"
        raise SpecError(message, hint=f"choose another with `--name`: {', '.join(full)}")
    return environment


def _pixi_place(item: Mapping[str, Any]) -> tuple[str, str]:
    """Return what tells one package of a pixi.lock from the others."""
    for kind in ("conda", "pypi", "conda_source"):
        if kind in item:
            return kind, str(item[kind])
    return str(item["kind"]), str(item.get("url", item.get("path")))


def _pixi_package(item: Mapping[str, Any], platform: str, folder: Path) -> LockedPackage | None:
    """Return what a pixi.lock locks; None for what pixi builds from source itself."""
    kind, place = _pixi_place(item)
    sha256 = str(item["sha256"]) if item.get("sha256") else None
    if kind == "pypi":
        url, commit = _pypi_url(place, folder)
        return LockedPackage(
            manager="pip",
            name=str(canonicalize_name(str(item["name"]))),
            version=str(item.get("version") or "0"),
            platform=platform,
            url=url,
            sha256=commit or sha256,
        )
    url = without_credentials(place)
    found = PACKAGE_URL.fullmatch(url)
    if not found:
        return None
    return LockedPackage(
        manager="conda",
        name=str(item.get("name") or found["name"]),
        version=str(item.get("version") or unquote(found["version"])),
        platform=platform,
        url=url,
        sha256=sha256,
        md5=str(item["md5"]) if item.get("md5") else None,
        build=str(item.get("build") or unquote(found["build"])),
        dependencies=_needs(item.get("depends") or []),
    )


def _needs(specs: Iterable[object]) -> dict[str, str]:
    """Return match specs as a lock has them: the version by name."""
    found: dict[str, str] = {}
    for spec in specs:
        line = parse_conda_line(str(spec))
        if line and not line.name.startswith("__"):
            found[line.name] = line.version
    return found


def _pypi_url(place: str, folder: Path) -> tuple[str, str]:
    """Return the URL of a pypi package as our locks have it, and its commit if it has one."""
    if place.startswith("git+"):
        return git_url(place.removeprefix("git+"))
    if "://" in place:
        return without_login(place), ""
    target = Path(os.path.normpath(folder.absolute() / place))
    is_file = target.name.endswith((".whl", ".tar.gz", ".zip"))
    return target.as_uri() + ("" if is_file else "/"), ""


def git_url(url: str) -> tuple[str, str]:
    """Turn `URL?rev=main&subdirectory=x#COMMIT`, uv's and pixi's form, into `git+URL@COMMIT#…`."""
    place, _, commit = url.partition("#")
    parts = urlsplit(place)
    query = parse_qs(parts.query)
    bare = without_login(place.partition("?")[0])
    if not GIT_COMMIT.fullmatch(commit):
        at = re.search(r"@([0-9a-f]{40})$", bare)
        if not at:
            msg = f"`{without_login(url)}` names no commit"
            raise ValueError(msg)
        bare, commit = bare[: at.start()], at[1]
    folder = query.get("subdirectory", [""])[0]
    return f"git+{bare}@{commit}" + (f"#subdirectory={folder}" if folder else ""), commit


def _foreign(
    draft: Draft, packages: list[LockedPackage], path: Path, direct: set[str]
) -> ForeignLock:
    """Make the spec that asks for just these packages."""
    if not packages:
        message = f"{path} contains no packages that envferry can lock"
        raise SpecError(message, hint="regenerate it for a platform that envferry supports")
    draft.platforms = sorted({package.platform for package in packages})
    halves: dict[str, dict[str, list[str]]] = {
        manager: {platform: [] for platform in draft.platforms} for manager in ("conda", "pip")
    }
    for package in packages:
        halves[package.manager][package.platform].append(pin_of(package, direct))
        if package.manager == "conda" and not draft.channels:
            found = PACKAGE_URL.fullmatch(package.url)
            draft.channels += [channel_name(found["channel"])] if found else []
    draft.add_conda(halves["conda"])
    draft.add_pip(halves["pip"])
    return ForeignLock(draft=draft, packages=tuple(packages))


def pin_of(package: LockedPackage, direct: set[str]) -> str:
    """Return the line that asks for one locked package and no other."""
    if package.manager == "conda":
        return "=".join(filter(None, (package.name, package.version, package.build)))
    if package.kind in ("git", "directory") or package.version == "0" or package.name in direct:
        return f"{package.name} @ {package.url}"
    return f"{package.name}=={package.version}"
