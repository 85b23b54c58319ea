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
from envferry.lock.existing_lock import kept_build_requirements
from envferry.lock.pip.build_requirements import resolve_build_requirements
from envferry.lock.pip.pip_request import PipRequest
from envferry.lock.pypi_names import pypi_names
from envferry.specs.syntax.pip_lines import plain_requirement, without_ignored_options
from envferry.specs.syntax.requirement_lines import INCLUDE, read_requirements
from envferry.specs.syntax.yaml_text import read_text

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
    return tuple(filter(None, (plain_requirement(without_ignored_options(line)) for line in lines)))


def python_distributions(chosen: list[LockedPackage]) -> tuple[dict[str, str], set[str]]:
    """Return the python distributions among conda packages: versions by name, and bare names.

    A package is one when it needs python: conda's own `xz` or `ninja` are programs, and the
    distribution of that name on an index is something else. Versions that python's rules (PEP 440)
    cannot read leave just the name.
    """
    by_table: dict[str, str] = {}
    certain: dict[str, str] = {}
    for package in chosen:
        needs = package.dependencies.keys() & {"python", "python_abi"}
        if package.name in INTERPRETERS or not needs:
            continue
        said = distributions_by_index(package)
        certain |= said
        # What the channel's index says is certain; the table is for packages that it says nothing
        # of.
        for name in () if said else pypi_names(package.name):
            is_own = canonicalize_name(name) == canonicalize_name(package.name)
            found = certain if is_own else by_table
            found[canonicalize_name(name)] = package.version
    # dask-core and dask are both dask to the table: the package of that very name knows better.
    versions = by_table | certain
    provided = {name: str(Version(text)) for name, text in versions.items() if _is_version(text)}
    return provided, versions.keys() - provided.keys()


def distributions_by_index(package: LockedPackage) -> dict[str, str]:
    """Return the distributions in a conda package, with versions, as far as its index has them.

    Package URLs (https://github.com/package-url/purl-spec) in its record say it.
    """
    found = {}
    for url in package.record.get("purls") or ():
        kind, _, rest = str(url).partition("/")
        name, _, version = rest.partition("?")[0].partition("@")
        if kind == "pkg:pypi" and name:
            found[str(canonicalize_name(unquote(name)))] = version or package.version
    return found


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True


def pin_build_requirements(
    spec: Spec, request: PipRequest, resolved: tuple[LockedPackage, ...], progress: Progress
) -> list[BuildRequirements]:
    """Pin what the wheels of the source packages are to be made with."""
    # Wheels are installed as they are: they need nothing to be built with.
    sources = [package for package in resolved if package.kind != "wheel"]
    if not sources:
        return []
    cache = DownloadCache(settings().cache_dir / "downloads")
    logins = git_logins(request.requirements)
    source_cache = SourceCache(
        cache=cache, progress=progress, logins=logins, offline=request.offline
    )
    kept = kept_build_requirements(spec, request)
    # Shared with other readers: meanwhile, a prune of the cache is refused.
    with cache_lock(cache.root, shared=True):
        lines = {package.name: source_cache.build_requires(package) for package in sources}
    return [
        resolve_build_requirements(name, lines[name], replace(request, kept=kept.get(name, ())))
        for name in lines
    ]
