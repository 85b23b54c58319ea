"""Stage 1, lock: Spec -> Lock."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from pipeline.cache import DownloadCache, cache_lock
from pipeline.config import condarc_paths, settings
from pipeline.errors import NotFound, SpecError, StaleLock, UsageError
from pipeline.solving.build_requirements import resolve_build_requirements
from pipeline.solving.conda_half import CondaAnswer, CondaRequest, pypi_name, solve_conda_half
from pipeline.solving.foreign_solver import solver_version
from pipeline.solving.git_logins import git_logins
from pipeline.solving.pip_half import PipRequest, resolve_pip
from pipeline.solving.relax_pins import RelaxLevel, RelaxRequest, relax_pins
from pipeline.sources import SourceShelf
from pipeline.specs.channel_names import read_channel_names
from pipeline.specs.locks import LockContents, read_lock, write_lock
from pipeline.specs.reading import read_spec

if TYPE_CHECKING:
    from pipeline.models import (
        BuildRequirements,
        Lock,
        LockedPackage,
        Replacement,
        Spec,
        SpecOptions,
    )
    from pipeline.progress import Progress
    from pipeline.specs.channel_names import ChannelNames

log = logging.getLogger(__name__)

SOLVERS = 2
"""How many platforms are solved at once."""
# Conda packages that are the interpreter, not distributions that pip knows.
INTERPRETERS = ("python", "python_abi", "cpython", "pypy")


@dataclass(frozen=True, slots=True, kw_only=True)
class LockOptions:
    """How to lock, beyond what the spec says."""

    platforms: tuple[str, ...] = ()
    """Platforms to lock for; those that the lock has already stay in it."""
    channels: tuple[str, ...] = ()
    """Channels to use instead of the spec's."""
    solver: Path | None = None
    """A conda, mamba or micromamba to use instead of our own solver."""
    relax: RelaxLevel | None = None
    """How far a conda pin that the channels cannot satisfy may be relaxed."""
    updated: tuple[str, ...] = ()
    """Packages that alone may move; nothing else of the lock does."""
    upgrade: bool = False
    """Whether the lock that is there counts for nothing; else it is kept where it can be."""
    exclude_newer: str | None = None
    """A date (ISO 8601): what channels and indexes got later does not exist."""


def lock_spec(spec: Spec, *, options: LockOptions, progress: Progress) -> Lock:
    """Solve a spec for its platforms and write the lock beside it.

    Raises SpecError when a half has no solution, StoreError when a channel or index cannot be
    reached; then the lock that was there stays.
    """
    _check_date(options)
    tools = _tools(options.solver)
    platforms = options.platforms or spec.platforms
    kept = _kept_packages(spec, options)
    halves = {platform: read_spec(spec.path, platform=platform) for platform in platforms}
    names = _channel_names(spec, options)
    channels = _channels(spec, options, names)
    looking = progress.task(f"locking {spec.name}: which pins the channels have")
    with looking if options.relax else nullcontext():
        conda, replacements = _relaxed(_placed(halves, names), channels, options)
    _warn_of(replacements, channels)
    request = _conda_request(spec, conda, channels, options)
    conda_kept = tuple(item for item in kept if item.manager == "conda")
    answer = _solve_platforms(msgspec.structs.replace(request, kept=conda_kept), spec, progress)
    packages = list(answer.packages)
    build_requirements: list[BuildRequirements] = []
    for platform, half in halves.items():
        with progress.task(f"locking {spec.name}: pip packages for {platform}"):
            request_pip = replace(
                _pip_request(half, platform, answer.packages),
                kept=tuple(i for i in kept if (i.manager, i.platform) == ("pip", platform)),
                updated=options.updated,
                exclude_newer=options.exclude_newer,
            )
            resolved = resolve_pip(request_pip)
            packages += resolved
            build_requirements += _build_requirements(spec, request_pip, resolved, progress)
    contents = LockContents(
        name=spec.name,
        source=spec.path.name,
        channels=options.channels or spec.channels,
        packages=tuple(packages),
        content_hashes=answer.content_hashes,
        spec_digest=spec.digest,
        options=_without_channels(spec.options),
        tools=tools,
        replacements=replacements,
        build_requirements=tuple(build_requirements),
    )
    return write_lock(spec.lock_path, _with_other_platforms(contents, spec))


def _solve_platforms(request: CondaRequest, spec: Spec, progress: Progress) -> CondaAnswer:
    """Solve the conda half for each platform, several at once; the first that fails raises."""
    alone = {
        platform: msgspec.structs.replace(request, platforms=(platform,))
        for platform in request.platforms
    }
    with ThreadPoolExecutor(SOLVERS, thread_name_prefix="solve") as threads:
        futures = {
            platform: threads.submit(solve_conda_half, part) for platform, part in alone.items()
        }
        answers = []
        try:
            for platform, future in futures.items():
                with progress.task(f"locking {spec.name}: conda packages for {platform}"):
                    answers.append(future.result())
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
    return CondaAnswer(
        packages=tuple(package for answer in answers for package in answer.packages),
        content_hashes={k: v for answer in answers for k, v in answer.content_hashes.items()},
    )


def _check_date(options: LockOptions) -> None:
    """Refuse a date that is none, or that the solver cannot obey."""
    if options.exclude_newer is None:
        return
    try:
        datetime.fromisoformat(options.exclude_newer.replace("Z", "+00:00"))
    except ValueError as error:
        message = f"`{options.exclude_newer}` is no date"
        raise UsageError(message, hint="write it as 2026-11-21, or with a time after it") from error
    if options.solver:
        message = f"{options.solver} cannot exclude what is newer than a date"
        raise UsageError(message, hint="leave out `--solver` or `--exclude-newer`")


def check_lock(spec: Spec) -> Lock:
    """Return the lock of a spec when it is still what the spec asks for.

    Raises StaleLock when it is not, NotFound when there is none. Asks nobody else.
    """
    lock = read_lock(spec.lock_path)
    hint = f"run `envferry lock {spec.path.stem}`"
    if not lock.spec_digest:
        message = f"{lock.path} was not made by envferry: nobody knows for which {spec.path.name}"
        raise StaleLock(message, hint=hint)
    if lock.spec_digest != spec.digest:
        message = (
            f"{lock.path} is not the lock of {spec.path} as it is now: made for "
            f"{lock.spec_digest[:12]}, expected {spec.digest[:12]}"
        )
        raise StaleLock(message, hint=hint)
    # Checks and the version decide nothing that is locked: the spec's own count.
    return replace(lock, name=spec.name, options=_without_channels(spec.options))


def _without_channels(options: SpecOptions) -> SpecOptions:
    """Drop where channels are: the packages' own URLs say it, and logins may be in these."""
    return msgspec.structs.replace(options, channels={})


def missing_pins(spec: Spec) -> dict[str, str]:
    """Return the conda lines that no channel satisfies, each with what it would be relaxed to.

    Raises StoreError when a channel cannot be reached.
    """
    halves = {platform: read_spec(spec.path, platform=platform) for platform in spec.platforms}
    options = LockOptions(relax="all")
    names = _channel_names(spec, options)
    channels = _channels(spec, options, names)
    _, replacements = _relaxed(_placed(halves, names), channels, options)
    return {item.asked: item.used for item in replacements}


def _channel_names(spec: Spec, options: LockOptions) -> ChannelNames:
    """Return what channel names stand for; of several mirrors, the first that answers."""
    names = read_channel_names(condarc_paths(), spec.options.channels)
    servers = DownloadCache(settings().cache_dir / "downloads")
    prefixes = (line.partition("::")[0] for line in spec.conda if "::" in line)
    return names.with_mirrors_that(
        lambda place: servers.answers(f"{place.rstrip('/')}/noarch/repodata.json"),
        (*spec.channels, *options.channels, *prefixes),
    )


def _channels(spec: Spec, options: LockOptions, names: ChannelNames) -> tuple[str, ...]:
    """Return the channels to solve with; relative paths in a spec start from its folder."""
    if not (options.channels or spec.channels):
        message = f"{spec.path} names no channels"
        raise SpecError(message, hint="add `channels: [conda-forge]`, or give `--channel`")
    if options.channels:
        return tuple(_absolute(channel, Path()) for channel in names.resolve(options.channels))
    base = spec.path.parent
    return tuple(_absolute(channel, base) for channel in names.resolve(spec.channels))


def _absolute(channel: str, base: Path) -> str:
    """Make a path to a channel absolute; names and URLs stay as they are."""
    path = base / Path(channel).expanduser() if "://" not in channel else None
    is_path = channel.startswith((".", "~", "/"))
    return str(path.resolve()) if path and (is_path or (path / "noarch").is_dir()) else channel


def _relaxed(
    conda: dict[str, tuple[str, ...]], channels: tuple[str, ...], options: LockOptions
) -> tuple[dict[str, tuple[str, ...]], tuple[Replacement, ...]]:
    """Return the match specs to solve by platform, and which of them are not as asked."""
    replacements: list[Replacement] = []
    relaxed = dict(conda)
    for platform in conda if options.relax else ():
        request = RelaxRequest(
            specs=conda[platform],
            channels=channels,
            platform=platform,
            level=options.relax or "build",
        )
        answer = relax_pins(request)
        relaxed[platform] = answer.specs
        replacements += answer.replacements
    return relaxed, tuple(replacements)


def _placed(halves: dict[str, Spec], names: ChannelNames) -> dict[str, tuple[str, ...]]:
    """Return the match specs of each platform, the channel before `::` said in full."""

    def place(line: str, half: Spec) -> str:
        if "::" not in line:
            return line
        channel, _, rest = names.resolve_spec(line).partition("::")
        return f"{_absolute(channel, half.path.parent)}::{rest}"

    return {
        platform: tuple(place(line, half) for line in half.conda)
        for platform, half in halves.items()
    }


def _warn_of(replacements: tuple[Replacement, ...], channels: tuple[str, ...]) -> None:
    """Say which pins are not as asked."""
    for item in replacements:
        used = f"using {item.used}" if item.used else "left out"
        log.warning("%s is not in %s: %s", item.asked, ", ".join(channels), used)


def _conda_request(
    spec: Spec,
    conda: dict[str, tuple[str, ...]],
    channels: tuple[str, ...],
    options: LockOptions,
) -> CondaRequest:
    return CondaRequest(
        spec_path=str(spec.path.absolute()),
        platforms=tuple(conda),
        channels=channels,
        channels_as_written=options.channels or spec.channels,
        conda=conda,
        has_pip=bool(spec.pip),
        system=spec.options.system,
        solver=str(options.solver.absolute()) if options.solver else None,
        updated=options.updated,
        exclude_newer=options.exclude_newer,
    )


def _kept_packages(spec: Spec, options: LockOptions) -> tuple[LockedPackage, ...]:
    """Return what the lock that is there has, and what of it is to stay.

    Raises StaleLock when single packages are to be updated in a lock of another spec.
    """
    if options.updated:
        lock = check_lock(spec)
        unknown = {*options.updated} - {package.name for package in lock.packages}
        if unknown:
            message = f"{lock.path} has no {', '.join(sorted(unknown))} to update"
            raise NotFound(message, hint=f"run `envferry lock {spec.path.stem}` after a change")
        return lock.packages
    if options.upgrade:
        return ()
    try:
        lock = read_lock(spec.lock_path)
    except (NotFound, SpecError):
        return ()
    if lock.spec_digest == spec.digest:
        return lock.packages
    # In an edited spec a git line may name another branch: what it names is asked again.
    return tuple(package for package in lock.packages if package.kind != "git")


def _pip_request(half: Spec, platform: str, conda: tuple[LockedPackage, ...]) -> PipRequest:
    """Ask for the pip half of one platform, given what conda chose."""
    chosen = [package for package in conda if package.platform == platform]
    python = next((package for package in chosen if package.name == "python"), None)
    if half.pip and python is None:
        message = f"{half.path} has a pip half, but nothing in its conda half brings a python"
        raise SpecError(message, hint="add a line such as `- python=3.11` to `dependencies:`")
    provided, unversioned = _python_distributions(chosen)
    return PipRequest(
        requirements=half.pip,
        python_version=python.version if python else "",
        platform=platform,
        excluded=tuple(sorted(unversioned)),
        provided=tuple(sorted(provided.items())),
        glibc=half.options.system.glibc,
        working_dir=half.path.parent.absolute(),
    )


def _build_requirements(
    spec: Spec, request: PipRequest, resolved: tuple[LockedPackage, ...], progress: Progress
) -> list[BuildRequirements]:
    """Pin what the wheels of the source packages are to be made with."""
    sources = [package for package in resolved if package.kind != "wheel"]
    if not sources:
        return []
    cache = DownloadCache(settings().cache_dir / "downloads")
    shelf = SourceShelf(cache=cache, progress=progress, logins=git_logins(request.requirements))
    kept = _kept_build_requirements(spec, request)
    with cache_lock(cache.root, shared=True):
        lines = {package.name: shelf.build_requires(package) for package in sources}
    return [
        resolve_build_requirements(name, lines[name], replace(request, kept=kept.get(name, ())))
        for name in lines
    ]


def _kept_build_requirements(
    spec: Spec, request: PipRequest
) -> dict[str, tuple[LockedPackage, ...]]:
    """Return what the lock that is there builds sources with, unless nothing of it is to stay."""
    if not request.kept:
        return {}
    old = read_lock(spec.lock_path).build_requirements
    moving = {str(canonicalize_name(name)) for name in request.updated}
    return {
        item.name: item.wheels
        for item in old
        if item.platform == request.platform and item.name not in moving
    }


def _python_distributions(chosen: list[LockedPackage]) -> tuple[dict[str, str], set[str]]:
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
        name = str(canonicalize_name(pypi_name(package.name)))
        try:
            provided[name] = str(Version(package.version))
        except InvalidVersion:
            unversioned.add(name)
    return provided, unversioned


def _with_other_platforms(contents: LockContents, spec: Spec) -> LockContents:
    """Keep what an existing lock of the same spec has for platforms that were not locked now."""
    try:
        old = read_lock(spec.lock_path)
    except (NotFound, SpecError):
        return contents
    if old.spec_digest != spec.digest:
        return contents
    others = old.content_hashes.keys() - contents.content_hashes.keys()
    return replace(
        contents,
        packages=(
            *contents.packages,
            *(package for package in old.packages if package.platform in others),
        ),
        content_hashes={
            **{platform: old.content_hashes[platform] for platform in others},
            **contents.content_hashes,
        },
        replacements=(
            *contents.replacements,
            *(item for item in old.replacements if item.platform in others),
        ),
        build_requirements=(
            *contents.build_requirements,
            *(item for item in old.build_requirements if item.platform in others),
        ),
    )


def _tools(solver: Path | None) -> dict[str, str]:
    """Return the versions of the programs that decide what a lock says.

    Raises UsageError for a solver that is too old.
    """
    tools = {name: version(name) for name in ("conda-lock", "envferry", "uv")}
    if solver is None:
        return {**tools, "solver": f"py-rattler {version('py-rattler')}"}
    return {**tools, "solver": f"{solver.name} {solver_version(solver)}"}
