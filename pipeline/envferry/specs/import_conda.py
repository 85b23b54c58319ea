"""Drafts out of what conda itself writes: explicit lists, exported lists, and prefixes."""

from __future__ import annotations

import re
from email.parser import HeaderParser
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import msgspec
from packaging.utils import canonicalize_name

from envferry.base.json import decode_json
from envferry.errors import SpecError
from envferry.models import PLATFORMS, without_credentials
from envferry.specs.drafts import Draft

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PACKAGE_URL = re.compile(
    r"(?P<channel>.+)/(?P<subdir>noarch|linux-\w+|osx-\w+|win-\w+)/"
    r"(?P<name>[^/]+)-(?P<version>[^-/]+)-(?P<build>[^-/]+?)(\.conda|\.tar\.bz2)"
)
PIP_COMMENT = re.compile(r"#\s*pip\s+(?P<name>\S+)\s+@\s+(?P<url>\S+)(\s+--hash=(?P<hash>\S+))?")
DEFAULT_PARTS = re.compile(r"https?://[^/]+/pkgs/(main|r|free|msys2)")
NAMED_CHANNEL = re.compile(r"https?://conda\.[^/]+/(?P<name>[^/]+)")
PIP_BUILDS = ("pypi_0", "pypi", "<pip>")


class _Record(msgspec.Struct):
    """What we read of a `conda-meta/*.json`."""

    name: str
    version: str
    build: str = ""
    url: str | None = None
    """Null in records of 2015."""
    subdir: str = ""
    files: list[str] = []


def draft_explicit(text: str, path: Path, name: str) -> Draft:
    """Read an `@EXPLICIT` list; its packages become exact pins of the channels they came from."""
    draft = Draft(name=name)
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        pip = PIP_COMMENT.fullmatch(line)
        if pip:
            draft.pip.append(f"{pip['name']} @ {without_credentials(pip['url'])}")
        if not line or line.startswith(("#", "@")):
            continue
        if not _add_url(draft, line.partition("#")[0]):
            message = f"{path}:{number}: `{without_credentials(line)[:80]}` is no conda package URL"
            raise SpecError(message, hint="an explicit list holds one package URL on each line")
    draft.notes.append("the hashes of the list are left out: the lock records its own")
    return draft


def draft_conda_list(text: str, name: str, channels: Iterable[str]) -> Draft:
    """Read `conda list --export`: NAME=VERSION=BUILD on each line."""
    draft = Draft(name=name, channels=list(channels))
    for line in map(str.strip, text.splitlines()):
        platform = re.fullmatch(r"#\s*platform:\s*(\S+)", line)
        if platform and platform[1] in PLATFORMS.values():
            draft.platforms.append(platform[1])
        if line and not line.startswith("#"):
            package, version, build = line.split("=")
            if build in PIP_BUILDS:
                draft.pip.append(f"{package}=={version}")
            else:
                draft.conda.append(line)
    return draft


def draft_prefix(prefix: Path, name: str, channels: Iterable[str]) -> Draft:
    """Read an environment as it is installed: its `conda-meta` and `dist-info`, without conda."""
    draft = Draft(name=name)
    owned: set[str] = set()
    for record in _records(prefix):
        if not (record.url and _add_url(draft, without_credentials(record.url))):
            draft.conda.append("=".join(filter(None, (record.name, record.version, record.build))))
        owned.update(file for file in record.files if ".dist-info/" in file)
        owned.update(file for file in record.files if ".egg-info" in file)
    draft.channels = draft.channels or list(channels)
    for info in sorted(prefix.glob("lib/python3*/site-packages/*.dist-info")):
        if (info / "METADATA").relative_to(prefix).as_posix() not in owned:
            _add_distribution(draft, info)
    has_python = any(line.split("=")[0].endswith("python") for line in draft.conda)
    if draft.pip and not has_python:
        version = next(prefix.glob("lib/python3*")).name.removeprefix("python")
        draft.conda.insert(0, f"python={version}")
        draft.notes.append(f"python={version} is the interpreter whose packages these are")
    if not draft.conda:
        message = f"{prefix} holds no packages: nothing in `conda-meta` or `dist-info`"
        raise SpecError(message, hint="name another prefix")
    return draft


def _add_url(draft: Draft, url: str) -> bool:
    """Add the package that a URL names, its channel and platform; False when it names none."""
    found = PACKAGE_URL.fullmatch(url.strip())
    if not found:
        return False
    channel = _channel_name(found["channel"])
    if channel not in draft.channels:
        draft.channels.append(channel)
    if found["subdir"] != "noarch" and found["subdir"] not in draft.platforms:
        draft.platforms.append(found["subdir"])
    draft.conda.append(f"{found['name']}={unquote(found['version'])}={unquote(found['build'])}")
    return True


def _channel_name(url: str) -> str:
    """Return the short name of a channel that has one for conda, else its URL."""
    url = without_credentials(url)
    if DEFAULT_PARTS.fullmatch(url):
        return "defaults"
    named = NAMED_CHANNEL.fullmatch(url)
    return named["name"] if named else url


def _records(prefix: Path) -> list[_Record]:
    records = []
    for path in sorted((prefix / "conda-meta").glob("*.json")):
        try:
            records.append(decode_json(path.read_bytes(), _Record))
        except msgspec.MsgspecError as error:
            message = f"{path} is damaged: {error}"
            raise SpecError(message, hint="reinstall that package, or remove the file") from error
    return records


def _add_distribution(draft: Draft, info: Path) -> None:
    """Add one installed python distribution, from where it was installed."""
    metadata = info / "METADATA"
    if not metadata.is_file():
        draft.notes.append(f"{info.name} has no METADATA and is left out")
        return
    fields = HeaderParser().parsestr(metadata.read_text(encoding="utf-8", errors="replace"))
    name, version = fields.get("Name", ""), fields.get("Version", "")
    if not name or not version:
        draft.notes.append(f"{info.name} says neither name nor version and is left out")
        return
    name = str(canonicalize_name(name))
    draft.pip.append(_origin(info / "direct_url.json", name, draft) or f"{name}=={version}")


def _origin(path: Path, name: str, draft: Draft) -> str:
    """Return the requirement for what was not installed from an index (PEP 610)."""
    if not path.is_file():
        return ""
    try:
        origin: dict[str, Any] = decode_json(path.read_bytes(), dict[str, Any])
        url = without_credentials(str(origin["url"]))
        vcs: dict[str, Any] = origin.get("vcs_info") or {}
        suffix = f"#subdirectory={origin['subdirectory']}" if origin.get("subdirectory") else ""
    except (msgspec.MsgspecError, KeyError) as error:
        raise SpecError(f"{path} is damaged: {error}", hint="reinstall that package") from error
    if vcs:
        return f"{name} @ {vcs.get('vcs', 'git')}+{url}@{vcs.get('commit_id', '')}{suffix}"
    if urlsplit(url).scheme == "file":
        draft.notes.append(f"{name} was installed from {url}, which is on this machine only")
    return f"{name} @ {url}{suffix}"
