"""What the conda half is asked for, and its solution for several platforms at once."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from envferry.base.workers import Workers
from envferry.errors import SpecError
from envferry.lock.conda.channel_logins import warn_of_lost_logins
from envferry.lock.conda.channels import (
    channel_names,
    channels_of,
    placed_lines,
    relaxed_pins,
    warn_of,
)
from envferry.lock.conda.conda_failures import explain
from envferry.lock.conda.conda_half import ask_conda_lock, gather, solve_platform
from envferry.lock.conda.conda_messages import (
    CondaAnswer,
    CondaLockRequest,
    CondaRequest,
    SpecAsWritten,
)
from envferry.lock.conda.repodata import cached_indexes
from envferry.specs.syntax.conda_lines import parse_conda_line

if TYPE_CHECKING:
    from concurrent.futures import Future

    from envferry.lock.lock_options import LockOptions
    from envferry.models import LockedPackage, Replacement, Spec
    from envferry.progress import Progress

SOLVERS = 2
"""How many platforms are solved at once."""


def spec_as_written(spec: Spec, options: LockOptions) -> SpecAsWritten:
    """Return what conda-lock's content hash is made of; channels of the options replace others."""
    return SpecAsWritten(
        path=str(spec.path.absolute()),
        channels=options.channels or spec.channels,
        system=spec.options.system,
    )


def conda_request(
    spec: Spec,
    halves: dict[str, Spec],
    kept: tuple[LockedPackage, ...],
    options: LockOptions,
    progress: Progress,
) -> tuple[CondaRequest, tuple[Replacement, ...]]:
    """Ask for the conda half of a spec, read for each platform; tell which pins were relaxed."""
    if options.solver:
        _check_foreign(spec, options.solver)
    names = channel_names(spec, options)
    channels = channels_of(spec, options, names)
    warn_of_lost_logins(spec, options)
    conda = placed_lines(halves, names)
    replacements: tuple[Replacement, ...] = ()
    if options.relax:
        label = f"locking {spec.name}: which pins the channels have"
        with (
            cached_indexes(offline=options.offline) as indexes,
            progress.task(label, indexes.server.expected) as indexes.server.advance,
        ):
            conda, replacements = relaxed_pins(conda, channels, options, indexes)
    warn_of(replacements, channels)
    request = CondaRequest(
        written=spec_as_written(spec, options),
        platforms=tuple(conda),
        channels=channels,
        conda=conda,
        has_pip=bool(spec.pip),
        solver=str(options.solver.absolute()) if options.solver else None,
        kept=tuple(item for item in kept if item.manager == "conda"),
        updated=options.updated,
        exclude_newer=options.exclude_newer,
        # The spec decides before a `.condarc`.
        priority=spec.options.channel_priority or names.priority or "strict",
        offline=options.offline,
    )
    return request, replacements


def _check_foreign(spec: Spec, solver: Path) -> None:
    """Refuse lines that conda-lock does not hand on to a conda."""
    for line in spec.conda:
        parsed = parse_conda_line(line)
        if parsed and (parsed.keys or parsed.subdir or parsed.url):
            message = f"{spec.path}: `{line}` cannot be passed to {solver.name}"
            raise SpecError(message, hint="leave out `--solver`: envferry's own solver supports it")


def solve_platforms(request: CondaRequest, name: str, progress: Progress) -> CondaAnswer:
    """Solve the conda half for each platform, several at once; the first that fails raises.

    The answer has content hashes only where conda-lock solves.
    Raises SpecError when it has no solution, StoreError when a channel cannot be reached.
    """
    if request.solver:
        return _solve_by_conda(request, name, progress)
    with (
        tempfile.TemporaryDirectory(prefix="envferry-index-") as directory,
        Workers(SOLVERS, "solve") as threads,
    ):
        reading = f"locking {name}: what the channels have"
        with (
            cached_indexes(offline=request.offline) as indexes,
            # Before the first thread begins: what it fetches is counted.
            progress.task(reading, indexes.server.expected) as indexes.server.advance,
        ):
            gathered = [
                threads.submit(gather, request, platform, indexes, Path(directory, platform))
                for platform in request.platforms
            ]
            wanted = [future.result() for future in gathered]
        # Only when all is fetched: the progress of fetching is a rate, which solving would
        # distort.
        futures = {
            platform: threads.submit(solve_platform, part, platform)
            for platform, part in zip(request.platforms, wanted, strict=True)
        }
        return _join_answers(request, futures, name, progress)


def _solve_by_conda(request: CondaRequest, name: str, progress: Progress) -> CondaAnswer:
    with Workers(SOLVERS, "solve") as threads:
        futures = {
            platform: threads.submit(
                ask_conda_lock,
                CondaLockRequest(written=request.written, platforms=(platform,), solve=request),
            )
            for platform in request.platforms
        }
        return _join_answers(request, futures, name, progress)


def _join_answers(
    request: CondaRequest, futures: dict[str, Future[CondaAnswer]], name: str, progress: Progress
) -> CondaAnswer:
    """Wait for the solution for each platform; raise when one has none."""
    packages: list[LockedPackage] = []
    content_hashes: dict[str, str] = {}
    for platform, future in futures.items():
        with progress.task(f"locking {name}: conda packages for {platform}"):
            answer = future.result()
            if answer.error:
                raise explain(answer, request)
        packages += answer.packages
        content_hashes |= answer.content_hashes
    return CondaAnswer(packages=tuple(packages), content_hashes=content_hashes)
