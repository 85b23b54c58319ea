"""Locks that pixi wrote: `pixi.lock`, versions 4 to 7."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from packaging.utils import canonicalize_name

from envferry.errors import SpecError
from envferry.models import LockedPackage
from envferry.names import PLATFORMS
from envferry.redaction import without_credentials, without_login
from envferry.specs.channel_names import channel_name
from envferry.specs.conda_needs import locked_needs
from envferry.specs.drafts import SpecDraft
from envferry.specs.importing.conda_environments import PACKAGE_URL
from envferry.specs.importing.foreign_lock import ForeignLock, git_url, lock_of, without_nulls
from envferry.specs.syntax.yaml_text import parse_yaml, plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PIXI_VERSIONS = ("4", "5", "6", "7")
DIRECT = "direct+"
"""Before the URL of an archive that a requirement names, up to version 6 of the format."""


def read_pixi_lock(text: str, path: Path, name: str) -> ForeignLock:
    """Read one environment of a `pixi.lock`: the one called `name`, else the default one."""
    document = without_nulls(plain(parse_yaml(text, path)))
    version = str(document["version"])
    if version not in PIXI_VERSIONS:
        message = (
            f"{path} has the lock format {version}, expected one of {', '.join(PIXI_VERSIONS)}"
        )
        raise SpecError(message, hint="regenerate it with a pixi that writes one of these")
    draft = SpecDraft(name=name)
    environment = _environment(document["environments"], path, draft)
    draft.channels = [channel_name(str(item["url"])) for item in environment.get("channels") or []]
    indexes = [str(item) for item in environment.get("indexes") or []]
    # Environments list places only; what is known of a package stands once, for all of them.
    known = {_place(item): item for item in document.get("packages") or []}
    packages = []
    direct = set()
    for platform, places in _platforms(document, environment, draft):
        for place in places:
            found = _locked_package(known[_place(place)], platform, path.parent)
            if found:
                packages.append(found)
                direct |= {found.name} if _is_direct(_place(place)[1]) else set()
            else:
                shown = _place(place)[1]
                words = f"{shown}: built by pixi, not available from a channel"
                draft.left_out += [words] if words not in draft.left_out else []
    lock = lock_of(draft, packages, path, direct)
    if any(package.manager == "pip" for package in packages):
        draft.pip[:0] = [f"--extra-index-url {item}" for item in indexes]
    return lock


def _platforms(
    document: Mapping[str, Any], environment: Mapping[str, Any], draft: SpecDraft
) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Yield platforms with their packages; note what hosts of them are expected to offer.

    From version 7 on, a platform has a name of its own, and there may be several of one subdir:
    the one that is called like it, else the first, is taken.
    """
    tables = {str(one["name"]): one for one in document.get("platforms") or []}
    subdirs = {name: str(one.get("subdir") or name) for name, one in tables.items()}
    taken: dict[str, str] = {}
    named = environment["packages"].items()
    # False sorts before True: a platform that is called like its subdir is taken first.
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
                # `__cuda=12.4=0`: name, version and build.
                what, _, value = str(text).removeprefix("__").partition("=")
                if what in ("cuda", "glibc") and subdir.startswith("linux"):
                    draft.system.setdefault(what, value.partition("=")[0])
            yield subdir, places


def _environment(
    environments: Mapping[str, Any], path: Path, draft: SpecDraft
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


def _place(item: Mapping[str, Any]) -> tuple[str, str]:
    """Return what tells one package of a pixi.lock from the others."""
    for kind in ("conda", "pypi", "conda_source"):
        if kind in item:
            return kind, str(item[kind])
    return str(item["kind"]), str(item.get("url", item.get("path")))


def _locked_package(item: Mapping[str, Any], platform: str, folder: Path) -> LockedPackage | None:
    """Return what a pixi.lock locks; None for what pixi builds from source itself."""
    kind, place = _place(item)
    sha256 = str(item["sha256"]) if item.get("sha256") else None
    if kind == "pypi":
        url, commit = _pypi_url(place, folder)
        return LockedPackage(
            manager="pip",
            name=str(canonicalize_name(str(item["name"]))),
            # 0 for a source whose version only a build can tell.
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
        dependencies=locked_needs(map(str, item.get("depends") or [])),
    )


def _is_direct(place: str) -> bool:
    """Say whether a pypi package is asked for by this place, not by its version on an index.

    On an index, anyone may have registered the name of a file beside the lock.
    """
    return place.startswith(DIRECT) or "://" not in place


def _pypi_url(place: str, folder: Path) -> tuple[str, str]:
    """Return the URL of a pypi package as our locks have it, and its commit if it has one."""
    if place.startswith("git+"):
        return git_url(place.removeprefix("git+"))
    if "://" in place:
        return without_login(place.removeprefix(DIRECT)), ""
    # As text: a link in the path stays, as the lock's author wrote it.
    target = Path(os.path.normpath(folder.absolute() / place))
    is_file = target.name.endswith((".whl", ".tar.gz", ".zip"))
    return target.as_uri() + ("" if is_file else "/"), ""
