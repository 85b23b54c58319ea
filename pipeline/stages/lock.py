"""Stage 1, lock: Spec -> Lock."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from pipeline.errors import NotFound, SpecError, StaleLock
from pipeline.process import run
from pipeline.solving.conda_half import CondaRequest, pypi_name, solve_conda_half
from pipeline.solving.pip_half import PipRequest, resolve_pip
from pipeline.solving.relax_pins import RelaxLevel, RelaxRequest, relax_pins
from pipeline.specs.locks import LockContents, read_lock, write_lock
from pipeline.specs.reading import read_spec

if TYPE_CHECKING:
    from pipeline.models import Lock, LockedPackage, Replacement, Spec
    from pipeline.progress import Progress
    from pipeline.solving.conda_half import CondaAnswer

log = logging.getLogger(__name__)

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


def lock_spec(spec: Spec, *, options: LockOptions, progress: Progress) -> Lock:
    """Solve a spec for its platforms and write the lock beside it.

    Raises SpecError when a half has no solution, StoreError when a channel or index cannot be
    reached; then the lock that was there stays.
    """
    platforms = options.platforms or spec.platforms
    halves = {platform: read_spec(spec.path, platform=platform) for platform in platforms}
    channels = _channels(spec, options)
    with progress.task(f"locking {spec.name}: conda packages"):
        conda, replacements = _relax(halves, channels, options)
        answer = _solve_conda(spec, conda, channels, options)
    packages = list(answer.packages)
    for platform, half in halves.items():
        with progress.task(f"locking {spec.name}: pip packages for {platform}"):
            packages += resolve_pip(_pip_request(half, platform, answer.packages))
    contents = LockContents(
        name=spec.name,
        source=spec.path.name,
        channels=options.channels or spec.channels,
        packages=tuple(packages),
        content_hashes=answer.content_hashes,
        spec_digest=spec.digest,
        options=spec.options,
        tools=_tools(options.solver),
        replacements=replacements,
    )
    return write_lock(spec.lock_path, _with_other_platforms(contents, spec))


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
    return replace(lock, name=spec.name, options=spec.options)


def _channels(spec: Spec, options: LockOptions) -> tuple[str, ...]:
    """Return the channels to solve with; relative paths in a spec start from its folder."""
    if not (options.channels or spec.channels):
        message = f"{spec.path} names no channels"
        raise SpecError(message, hint="add `channels: [conda-forge]`, or give `--channel`")
    if options.channels:
        return tuple(_absolute(channel, Path()) for channel in options.channels)
    return tuple(_absolute(channel, spec.path.parent) for channel in spec.channels)


def _absolute(channel: str, base: Path) -> str:
    """Make a path to a channel absolute; names and URLs stay as they are."""
    path = base / Path(channel).expanduser() if "://" not in channel else None
    is_path = channel.startswith((".", "~", "/"))
    return str(path.resolve()) if path and (is_path or (path / "noarch").is_dir()) else channel


def _relax(
    halves: dict[str, Spec], channels: tuple[str, ...], options: LockOptions
) -> tuple[dict[str, tuple[str, ...]], tuple[Replacement, ...]]:
    """Return the match specs to solve by platform, and which of them are not as asked."""
    conda = {platform: half.conda for platform, half in halves.items()}
    replacements: list[Replacement] = []
    for platform in conda if options.relax else ():
        request = RelaxRequest(
            specs=conda[platform],
            channels=channels,
            platform=platform,
            level=options.relax or "build",
        )
        answer = relax_pins(request)
        conda[platform] = answer.specs
        replacements += answer.replacements
    for item in replacements:
        used = f"using {item.used}" if item.used else "left out"
        log.warning("%s is not in %s: %s", item.asked, ", ".join(channels), used)
    return conda, tuple(replacements)


def _solve_conda(
    spec: Spec,
    conda: dict[str, tuple[str, ...]],
    channels: tuple[str, ...],
    options: LockOptions,
) -> CondaAnswer:
    request = CondaRequest(
        spec_path=str(spec.path.absolute()),
        platforms=tuple(conda),
        channels=channels,
        channels_as_written=options.channels or spec.channels,
        conda=conda,
        has_pip=bool(spec.pip),
        system=spec.options.system,
        solver=str(options.solver.absolute()) if options.solver else None,
    )
    return solve_conda_half(request)


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
    )


def _tools(solver: Path | None) -> dict[str, str]:
    """Return the versions of the programs that decide what a lock says."""
    tools = {name: version(name) for name in ("conda-lock", "envferry", "uv")}
    if solver is None:
        return {**tools, "solver": f"py-rattler {version('py-rattler')}"}
    words = run([solver, "--version"]).stdout.split()
    return {**tools, "solver": f"{solver.name} {words[-1] if words else 'of unknown version'}"}
