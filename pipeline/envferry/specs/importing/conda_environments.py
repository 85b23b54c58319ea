"""Drafts out of what conda itself writes: explicit lists, exported lists, and prefixes."""

from __future__ import annotations

import re
from email.parser import HeaderParser
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec
from packaging.utils import canonicalize_name

from envferry.base.json import decode_json
from envferry.base.site_packages import site_packages_folders
from envferry.errors import SpecError
from envferry.names import PLATFORMS, file_name_of
from envferry.redaction import without_credentials, without_login
from envferry.specs.channel_names import channel_name
from envferry.specs.drafts import SpecDraft

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PACKAGE_URL = re.compile(
    r"(?P<channel>.+)/(?P<subdir>noarch|(?:linux|osx|win|freebsd|emscripten|wasi|zos)-\w+)/"
    r"(?P<name>[^/]+)-(?P<version>[^-/]+)-(?P<build>[^-/]+?)(\.conda|\.tar\.bz2)"
)
PACKAGE_FILE = re.compile(
    r"(file://|/).*/(?P<name>[^/]+)-(?P<version>[^-/]+)-(?P<build>[^-/]+?)(\.conda|\.tar\.bz2)"
)
HASH = re.compile(r"(?:sha256:)?(?P<sha256>[0-9a-fA-F]{64})|(?:md5:)?(?P<md5>[0-9a-fA-F]{32})")
PIP_COMMENT = re.compile(r"#\s*pip\s+(?P<name>\S+)\s+@\s+(?P<url>\S+)(\s+--hash=(?P<hash>\S+))?")
# What condas of different ages show as the build of a package of pip.
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


class ExplicitLine(msgspec.Struct, frozen=True, kw_only=True):
    """One package of an `@EXPLICIT` list."""

    name: str
    version: str
    build: str | None
    subdir: str
    """Empty for a file in no channel, and for pip packages."""
    url: str
    sha256: str | None = None
    md5: str | None = None


def draft_explicit(text: str, path: Path, name: str) -> tuple[SpecDraft, list[ExplicitLine]]:
    """Read an `@EXPLICIT` list: exact pins of their channels, and the files."""
    draft, found = SpecDraft(name=name), []
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        pip = PIP_COMMENT.fullmatch(line)
        platform = re.fullmatch(r"#\s*platform:\s*(\S+)", line)
        if pip:
            url = without_login(pip["url"])
            draft.pip.append(f"{pip['name']} @ {url}")
            found.append(_explicit_pip(pip["name"], url, pip["hash"] or ""))
        elif platform:
            _add_platform(draft, platform[1])
        if not line or line.startswith(("#", "@")):
            continue
        package = _explicit_line(line)
        if package is None:
            message = (
                f"{path}:{number}: `{without_credentials(line)[:80]}` is not a conda package URL"
            )
            raise SpecError(message, hint="an explicit list has one package URL per line")
        _add_url(draft, package.url)
        if not package.subdir:
            # By its name alone it would come from the channels, which may be another package of
            # that name.
            draft.conda.append(package.url)
        found.append(package)
    _check_platforms(draft, path)
    return draft, found


def _explicit_line(line: str) -> ExplicitLine | None:
    url, _, fragment = line.partition("#")
    url = without_credentials(url.strip())
    found = PACKAGE_URL.fullmatch(url) or PACKAGE_FILE.fullmatch(url)
    if not found:
        return None
    # conda reads an MD5, and a SHA-256 with or without `sha256:` before it.
    digest = HASH.fullmatch(fragment.strip())
    return ExplicitLine(
        name=found["name"],
        version=unquote(found["version"]),
        build=unquote(found["build"]),
        subdir=found.groupdict().get("subdir") or "",
        # conda takes a bare path in such a list, too.
        url=url if "://" in url else f"file://{url}",
        sha256=digest["sha256"].lower() if digest and digest["sha256"] else None,
        md5=digest["md5"].lower() if digest and digest["md5"] else None,
    )


def _explicit_pip(name: str, url: str, digest: str) -> ExplicitLine:
    file_name = file_name_of(url)
    parts = file_name.split("-")
    found = HASH.fullmatch(digest)
    return ExplicitLine(
        name=str(canonicalize_name(name)),
        version=parts[1] if file_name.endswith(".whl") and parts[1:] else "0",
        build=None,
        subdir="",
        url=url,
        sha256=found["sha256"].lower() if found and found["sha256"] else None,
    )


def draft_conda_list(text: str, path: Path, name: str, channels: Iterable[str]) -> SpecDraft:
    """Read `conda list --export`: NAME=VERSION=BUILD on each line."""
    draft = SpecDraft(name=name, channels=list(channels))
    for line in map(str.strip, text.splitlines()):
        platform = re.fullmatch(r"#\s*platform:\s*(\S+)", line)
        if platform:
            _add_platform(draft, platform[1])
        if line and not line.startswith("#"):
            package, version, build = line.split("=")
            _add_listed(draft, package, version, build)
    _check_platforms(draft, path)
    return draft


def draft_conda_table(text: str, name: str, channels: Iterable[str]) -> SpecDraft:
    """Read `conda list`: name, version, build and channel on each line."""
    draft = SpecDraft(name=name, channels=[])
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith("#"):
            continue
        package, version, *more = line.split()
        build, channel = [*more, "", ""][:2]
        if channel == "pypi" or build in PIP_BUILDS:
            draft.pip.append(f"{package}=={version}")
            continue
        _add_listed(draft, package, version, build)
        if channel and channel not in draft.channels:
            draft.channels.append(channel)
    draft.channels = draft.channels or list(channels)
    return draft


def draft_pip_table(text: str, name: str, channels: Iterable[str]) -> SpecDraft:
    """Read `pip list`: name and version on each line, and where an editable one is."""
    draft = SpecDraft(name=name, channels=list(channels))
    for line in map(str.strip, text.splitlines()[2:]):
        if not line:
            continue
        package, version, *place = line.split(maxsplit=2)
        draft.pip.append(f"{package}=={version}")
        if place:
            draft.left_out.append(
                f"{package} is editable, from {place[0]}: required by version instead"
            )
    return draft


def _add_listed(draft: SpecDraft, package: str, version: str, build: str) -> None:
    if build in PIP_BUILDS:
        draft.pip.append(f"{package}=={version}")
    elif re.fullmatch(r"dev_\d+", build):
        draft.left_out.append(
            f"{package}={version}={build}: conda-develop put a folder on the path"
        )
    else:
        draft.conda.append("=".join(filter(None, (package, version, build))))


def _add_platform(draft: SpecDraft, platform: str) -> None:
    if platform not in ("noarch", *draft.platforms):
        draft.platforms.append(platform)


def _check_platforms(draft: SpecDraft, path: Path) -> None:
    """Refuse a list of packages for a platform that envferry does not lock for."""
    others = [item for item in draft.platforms if item not in PLATFORMS.values()]
    if others:
        message = f"{path} lists packages for {', '.join(others)}, which envferry does not lock for"
        hint = f"list an environment on one of {', '.join(PLATFORMS.values())}"
        raise SpecError(message, hint=hint)


def draft_prefix(prefix: Path, name: str, channels: Iterable[str]) -> SpecDraft:
    """Read an environment as it is installed: its `conda-meta` and `dist-info`, without conda."""
    draft = SpecDraft(name=name)
    owned: set[str] = set()
    for record in _records(prefix):
        if not (record.url and _add_url(draft, without_credentials(record.url))):
            draft.conda.append("=".join(filter(None, (record.name, record.version, record.build))))
        # What conda brought must not be asked of an index again.
        owned.update(file for file in record.files if ".dist-info/" in file)
        owned.update(file for file in record.files if ".egg-info" in file)
    draft.channels = draft.channels or list(channels)
    folders = site_packages_folders(prefix)
    add_distributions(draft, prefix, owned)
    has_python = any(line.split("=")[0].endswith("python") for line in draft.conda)
    if draft.pip and not has_python:
        version = folders[0].parent.name.removeprefix("python")
        draft.conda.insert(0, f"python={version}")
        draft.notes.append(f"python={version} is the interpreter whose packages these are")
    if not draft.conda:
        message = f"{prefix} contains no packages: nothing in `conda-meta` or `dist-info`"
        raise SpecError(message, hint="name another prefix")
    return draft


def add_distributions(draft: SpecDraft, prefix: Path, owned: set[str]) -> None:
    """Add the python distributions of a prefix that no conda package owns."""
    # Read from the files, without the environment's python: it may not run here.
    for packages in site_packages_folders(prefix):
        for info in sorted(packages.glob("*.dist-info")):
            if (info / "METADATA").relative_to(prefix).as_posix() not in owned:
                _add_distribution(draft, info)
        for old in sorted([*packages.glob("*.egg-info"), *packages.glob("*.egg-link")]):
            place = old.relative_to(prefix).as_posix()
            if not any(item == place or item.startswith(f"{place}/") for item in owned):
                draft.left_out.append(f"{old.name}: its source is not recorded")


def _add_url(draft: SpecDraft, url: str) -> bool:
    """Add the package that a URL names, its channel and platform; False when it names none."""
    found = PACKAGE_URL.fullmatch(url.strip())
    if not found:
        return False
    channel = channel_name(found["channel"])
    if channel not in draft.channels:
        draft.channels.append(channel)
    _add_platform(draft, found["subdir"])
    draft.conda.append(f"{found['name']}={unquote(found['version'])}={unquote(found['build'])}")
    return True


def _records(prefix: Path) -> list[_Record]:
    records = []
    for path in sorted((prefix / "conda-meta").glob("*.json")):
        try:
            records.append(decode_json(path.read_bytes(), _Record))
        except msgspec.MsgspecError as error:
            message = f"{path} is damaged: {error}"
            raise SpecError(message, hint="reinstall that package, or remove the file") from error
    return records


def _add_distribution(draft: SpecDraft, info: Path) -> None:
    """Add one installed python distribution, from where it was installed."""
    metadata = info / "METADATA"
    if not metadata.is_file():
        draft.left_out.append(f"{info.name} has no METADATA")
        return
    # Some old METADATA is not UTF-8; names and versions are ASCII.
    fields = HeaderParser().parsestr(metadata.read_text(encoding="utf-8", errors="replace"))
    name, version = fields.get("Name", ""), fields.get("Version", "")
    if not name or not version:
        draft.left_out.append(f"{info.name} specifies neither name nor version")
        return
    name = str(canonicalize_name(name))
    draft.pip.append(_origin(info / "direct_url.json", name, draft) or f"{name}=={version}")


def _origin(path: Path, name: str, draft: SpecDraft) -> str:
    """Return the requirement for what was not installed from an index (PEP 610)."""
    if not path.is_file():
        return ""
    try:
        origin: dict[str, Any] = decode_json(path.read_bytes(), dict[str, Any])
        url = without_login(str(origin["url"]))
        vcs: dict[str, Any] = origin.get("vcs_info") or {}
        suffix = f"#subdirectory={origin['subdirectory']}" if origin.get("subdirectory") else ""
    except (msgspec.MsgspecError, KeyError) as error:
        msg = f"{path} is damaged: {error}"
        raise SpecError(msg, hint="reinstall that package") from error
    if vcs:
        return f"{name} @ {vcs.get('vcs', 'git')}+{url}@{vcs.get('commit_id', '')}{suffix}"
    if url.startswith("file:"):
        draft.notes.append(f"{name} was installed from {url}, which is on this machine only")
    return f"{name} @ {url}{suffix}"
