"""From one entry of uv's answer to the package that a lock names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from envferry.base.toml import TomlFault, decode_toml
from envferry.build.source_tree import digest_source_tree
from envferry.errors import SpecError
from envferry.lock.pip.wheel_choice import choose_wheel
from envferry.models import LockedPackage
from envferry.redaction import without_login

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from packaging.tags import Tag

    from envferry.lock.pip.pip_request import PipRequest

SOURCE_ENDINGS = (".tar.gz", ".zip", ".tar.bz2", ".tar.xz", ".tgz")
# For sources that tell their version only when they are built.
NO_VERSION = "0"


def locked_package(
    entry: Mapping[str, Any], request: PipRequest, ranks: dict[Tag, int], hashes: frozenset[str]
) -> LockedPackage:
    """Turn one pylock entry into the package that it locks; `hashes` limits it when not empty.

    Raises SpecError when it offers no file that can be locked, or none of a known hash.
    """
    package = chosen_package(entry, request, ranks, hashes)
    if package.sha256 is None:
        file_name = unquote(urlsplit(package.url).path.rsplit("/", 1)[-1])
        raise _no_sha256(file_name)
    return package


def chosen_package(
    entry: Mapping[str, Any], request: PipRequest, ranks: dict[Tag, int], hashes: frozenset[str]
) -> LockedPackage:
    """Choose the package as `locked_package` does; without a hash where the entry has none at all.

    Raises SpecError when it offers no file that can be locked.
    """
    if "vcs" in entry:
        return _locked_commit(entry, request)
    if "directory" in entry:
        return _locked_directory(entry, request)
    files = {_file_name(file): file for file in _files(entry)}
    if hashes:
        files = {name: file for name, file in files.items() if _sha256(file) in hashes}
    wheel = choose_wheel(files, ranks)
    file_name = wheel or next((name for name in files if name.endswith(SOURCE_ENDINGS)), None)
    if file_name is None:
        raise _nothing_fits(entry, request, sorted(files), hashes)
    file = files[file_name]
    sha256 = _sha256(file)
    if sha256 is None and file.get("hashes"):
        raise _no_sha256(file_name)  # one that was computed would not be held against the others
    return LockedPackage(
        manager="pip",
        name=entry["name"],
        # uv gives no version for an archive that a requirement names; a wheel's name has it.
        version=entry.get("version") or (file_name.split("-")[1] if wheel else NO_VERSION),
        platform=request.platform,
        url=_url(file, request),
        sha256=sha256,
    )


def _no_sha256(file_name: str) -> SpecError:
    message = f"no SHA-256 is known for {file_name}, so it could not be verified later"
    return SpecError(message, hint="use an index that serves hashes")


def _nothing_fits(
    entry: Mapping[str, Any], request: PipRequest, names: list[str], hashes: frozenset[str]
) -> SpecError:
    name, version = entry["name"], entry.get("version", "")
    if hashes:
        message = f"no file of {name} {version} has one of the hashes that the spec requires"
        return SpecError(message, hint=f"correct the --hash options of {name}")
    offered = ", ".join(names) or "no wheel at all"
    message = (
        f"{name} {version} has no wheel for python {request.python_version} "
        f"on {request.platform} with glibc {request.target.glibc} (offered: {offered})"
    )
    # Names before PEP 600, such as manylinux2014, are of glibcs that are older than any default.
    minors = [int(found) for found in re.findall(r"manylinux_2_(\d+)_", offered)]
    newer = min((item for item in minors if item > request.target.glibc_minor), default=None)
    hint = newer_glibc_hint(newer) or f"pin a version of {name} that has one"
    return SpecError(message, hint=hint)


def newer_glibc_hint(minor: int | None) -> str:
    """Say how to allow wheels for glibc 2.MINOR; empty for None."""
    if minor is None:
        return ""
    offer = f"`envferry: {{system: {{glibc: '2.{minor}'}}}}`"
    return f"if the hosts' glibc is newer, declare it: {offer}"


def _locked_commit(entry: Mapping[str, Any], request: PipRequest) -> LockedPackage:
    """Lock a git dependency: `git+URL@COMMIT`, with the commit where conda-lock has it too."""
    vcs = entry["vcs"]
    commit, folder = str(vcs["commit-id"]), vcs.get("subdirectory")
    place = without_login(str(vcs["url"])) if "url" in vcs else _directory(vcs, request)
    suffix = f"#subdirectory={folder}" if folder else ""
    return LockedPackage(
        manager="pip",
        name=entry["name"],
        version=entry.get("version", NO_VERSION),
        platform=request.platform,
        url=f"git+{place}@{commit}{suffix}",
        sha256=commit,
    )


def _locked_directory(entry: Mapping[str, Any], request: PipRequest) -> LockedPackage:
    """Lock a folder by the digest of its files."""
    url = _directory(entry["directory"], request)
    folder = Path(unquote(urlsplit(url).path))
    return LockedPackage(
        manager="pip",
        name=entry["name"],
        version=entry.get("version") or _static_version(folder),
        platform=request.platform,
        url=url,
        sha256=digest_source_tree(folder),
    )


def _directory(value: Mapping[str, Any], request: PipRequest) -> str:
    """Return the URL of a folder, which ends with a slash."""
    base = (request.working_dir or Path.cwd()).absolute()
    # The slash tells a folder from a source distribution: `LockedPackage.kind` goes by it.
    return (base / str(value["path"])).resolve().as_uri() + "/"


def _static_version(folder: Path) -> str:
    """Return the version that a project's pyproject.toml states, if it does."""
    path = folder / "pyproject.toml"
    try:
        project = decode_toml(path.read_text(encoding="utf-8")).get("project", {})
    except (OSError, UnicodeDecodeError, TomlFault):
        return NO_VERSION
    return str(project.get("version", NO_VERSION))


def _files(entry: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Return the files of a pylock entry: from an index, or named directly."""
    single = [entry[key] for key in ("sdist", "archive") if key in entry]
    return [*entry.get("wheels", []), *single]


def _sha256(file: Mapping[str, Any]) -> str | None:
    found = file.get("hashes", {}).get("sha256")
    return str(found) if found else None


def _file_name(file: Mapping[str, Any]) -> str:
    place = file.get("name") or file.get("path") or urlsplit(file["url"]).path
    return unquote(str(place).rsplit("/", 1)[-1])


def _url(file: Mapping[str, Any], request: PipRequest) -> str:
    """Return where a file is, without credentials: locks must not hold any."""
    if "url" in file:
        return without_login(str(file["url"]))
    base = (request.working_dir or Path.cwd()).absolute()
    return (base / str(file["path"])).as_uri()
