"""What the pip half is asked for, given what conda chose."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

from msgspec.structs import replace
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from envferry.build.cache_locks import cache_lock
from envferry.build.downloads import DownloadCache
from envferry.build.git_credentials import git_logins
from envferry.build.sources import SourceCache
from envferry.config import settings, site_indexes
from envferry.errors import SpecError
from envferry.lock.build_requirements import resolve_build_requirements
from envferry.lock.existing_lock import kept_build_requirements
from envferry.lock.pip_request import PipRequest
from envferry.lock.pypi_names import pypi_name
from envferry.specs.pip_lines import heeded, plain_requirement
from envferry.specs.requirement_lines import INCLUDE, read_requirements
from envferry.specs.yaml_text import read_text

if TYPE_CHECKING:
    from envferry.lock.lock_options import LockOptions
    from envferry.models import BuildRequirements, LockedPackage, Spec
    from envferry.progress import Progress

# Conda packages that are the interpreter, not distributions that pip knows.
INTERPRETERS = ("python", "python_abi", "cpython", "pypy")


def pip_request(
    half: Spec,
    platform: str,
    conda: tuple[LockedPackage, ...],
    kept: tuple[LockedPackage, ...],
    options: LockOptions,
) -> PipRequest:
    """Ask for the pip half of one platform, given what conda chose and what is to stay."""
    chosen = [package for package in conda if package.platform == platform]
    python = next((package for package in chosen if package.name == "python"), None)
    if half.pip and python is None:
        message = f"{half.path} has a pip half, but its conda half has no python"
        raise SpecError(message, hint="add a line such as `- python=3.11` to `dependencies:`")
    provided, unversioned = python_distributions(chosen)
    return PipRequest(
        requirements=written_out(half),
        python_version=python.version if python else "",
        platform=platform,
        excluded=tuple(sorted(unversioned)),
        provided=tuple(sorted(provided.items())),
        glibc=half.options.system.glibc,
        working_dir=half.path.parent.absolute(),
        kept=tuple(item for item in kept if (item.manager, item.platform) == ("pip", platform)),
        updated=options.updated,
        exclude_newer=options.exclude_newer,
        offline=options.offline,
        indexes=site_indexes(),
    )


def written_out(half: Spec) -> tuple[str, ...]:
    """Return the lines of the pip half in the form that all tools read.

    Files that `-r` names are written out, and options that decide nothing are dropped.
    """
    base = half.path.parent
    lines: list[str] = []
    for line in half.pip:
        include = INCLUDE.fullmatch(line)
        if include and "://" not in include["path"]:
            path = base / include["path"]
            lines += read_requirements(path, read_text(path), base)
        else:
            lines.append(str(line))
    return tuple(filter(None, (plain_requirement(heeded(line)) for line in lines)))


def python_distributions(chosen: list[LockedPackage]) -> tuple[dict[str, str], set[str]]:
    """Return the python distributions among conda packages: versions by name, and bare names.

    A package is one when it needs python: conda's own `xz` or `ninja` are programs, and the
    distribution of that name on an index is something else. Versions that python's rules (PEP 440)
    cannot read leave just the name.
    """
    provided: dict[str, str] = {}
    unversioned: set[str] = set()
    for package in chosen:
        needs = package.dependencies.keys() & {"python", "python_abi"}
        if package.name in INTERPRETERS or not needs:
            continue
        for name, version in distributions_of(package):
            try:
                provided[name] = str(Version(version))
            except InvalidVersion:
                unversioned.add(name)
    return provided, unversioned


def distributions_of(package: LockedPackage) -> list[tuple[str, str]]:
    """Return names and versions of the distributions in a conda package: as its index has them.

    Package URLs (https://github.com/package-url/purl-spec) in its record say it; else a table of
    names does, and the version is the package's own.
    """
    found = []
    for url in package.record.get("purls") or ():
        kind, _, rest = str(url).partition("/")
        name, _, version = rest.partition("?")[0].partition("@")
        if kind == "pkg:pypi" and name:
            found.append((str(canonicalize_name(unquote(name))), version or package.version))
    return found or [(str(canonicalize_name(pypi_name(package.name))), package.version)]


def pin_build_requirements(
    spec: Spec, request: PipRequest, resolved: tuple[LockedPackage, ...], progress: Progress
) -> list[BuildRequirements]:
    """Pin what the wheels of the source packages are to be made with."""
    sources = [package for package in resolved if package.kind != "wheel"]
    if not sources:
        return []
    cache = DownloadCache(settings().cache_dir / "downloads")
    logins = git_logins(request.requirements)
    source_cache = SourceCache(
        cache=cache, progress=progress, logins=logins, offline=request.offline
    )
    kept = kept_build_requirements(spec, request)
    with cache_lock(cache.root, shared=True):
        lines = {package.name: source_cache.build_requires(package) for package in sources}
    return [
        resolve_build_requirements(name, lines[name], replace(request, kept=kept.get(name, ())))
        for name in lines
    ]
