"""Locks that conda-lock wrote: `conda-lock.yml` (CEP 37)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from envferry.errors import SpecError
from envferry.models import LockedPackage
from envferry.names import PLATFORMS
from envferry.redaction import without_credentials, without_login
from envferry.specs.channel_names import channel_name
from envferry.specs.drafts import SpecDraft
from envferry.specs.importing.conda_environments import PACKAGE_URL
from envferry.specs.importing.foreign_lock import ForeignLock, lock_of, without_nulls
from envferry.specs.syntax.yaml_text import parse_yaml, plain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONDA_LOCK_VERSION = "1"
OTHER_VERSION = (
    "regenerate it with the tool that wrote it: conda-lock, or pixi 0.17 or newer, "
    "whose format was like conda-lock's before"
)
DEFAULT_CATEGORIES = ("main", "dev")
"""What `conda-lock install` installs unless it is told otherwise."""


def read_conda_lock(text: str, path: Path, name: str) -> ForeignLock:
    """Read a `conda-lock.yml`: what `conda-lock install` would install of it."""
    document = without_nulls(plain(parse_yaml(text, path)))
    if str(document.get("version", CONDA_LOCK_VERSION)) != CONDA_LOCK_VERSION:
        message = f"{path} has the lock format {document['version']}, expected {CONDA_LOCK_VERSION}"
        raise SpecError(message, hint=OTHER_VERSION)
    metadata = document["metadata"]
    draft = SpecDraft(name=name)
    for channel in metadata.get("channels") or []:
        draft.channels.append(channel_name(str(channel["url"])))
    packages = []
    other: dict[str, int] = {}
    for item in document.get("package") or []:
        category = item.get("category") or "main"
        if item["platform"] not in PLATFORMS.values():
            # Counted: a note for each of a thousand packages would hide all other notes.
            other[item["platform"]] = other.get(item["platform"], 0) + 1
        elif category not in DEFAULT_CATEGORIES:
            draft.left_out.append(f"{item['name']} {item['version']}: in the category {category}")
        else:
            packages.append(_locked_package(item))
    draft.left_out += [
        f"{count} packages for {platform}: envferry does not lock for it"
        for platform, count in sorted(other.items())
    ]
    direct = {
        item["name"]
        for item in document.get("package") or []
        if (item.get("source") or {}).get("url")
    }
    return lock_of(draft, packages, path, direct)


def _locked_package(item: Mapping[str, Any]) -> LockedPackage:
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
        # CEP 37: a hash is that of a downloaded file, which a git dependency does not have.
        sha256=commit[1] if commit else (digests.get("sha256") or None),
        md5=digests.get("md5") or None,
        build=unquote(found["build"]) if is_conda and found else None,
        dependencies={
            str(key): str(value) for key, value in (item.get("dependencies") or {}).items()
        },
    )
