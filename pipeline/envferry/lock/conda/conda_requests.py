"""What the conda half is asked for, and its solution for several platforms at once."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

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
from envferry.lock.conda.conda_half import ask_conda_lock, content_hashes, gather, solve_platform
from envferry.lock.conda.conda_messages import CondaAnswer, CondaRequest
from envferry.lock.conda.repodata import cached_indexes
from envferry.lock.existing_lock import known_hashes
from envferry.specs.syntax.conda_lines import parse_conda_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from envferry.lock.lock_options import LockOptions
    from envferry.models import LockedPackage, Replacement, Spec
    from envferry.progress import Progress

SOLVERS = 2
"""How many platforms are solved at once."""


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
        spec_path=str(spec.path.absolute()),
        platforms=tuple(conda),
        channels=channels,
        channels_as_written=options.channels or spec.channels,
        conda=conda,
        has_pip=bool(spec.pip),
        system=spec.options.system,
        solver=str(options.solver.absolute()) if options.solver else None,
        kept=tuple(item for item in kept if item.manager == "conda"),
        updated=options.updated,
        exclude_newer=options.exclude_newer,
        known_hashes=known_hashes(spec, options.channels or spec.channels),
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

    Raises SpecError when it has no solution, StoreError when a channel cannot be reached.
    """
    if request.solver:
        return _solve_by_conda(request, name, progress)
    with (
        tempfile.TemporaryDirectory(prefix="envferry-index-") as directory,
        Workers(1, "hash") as hasher,
        Workers(SOLVERS, "solve") as threads,
    ):
        # It takes conda-lock seconds, in which the platforms are solved.
        hashes = hasher.submit(content_hashes, request)
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
        answers = list(_answers(request, futures, name, progress, hashes))
        return _join_answers(answers, hashes.result())


def _solve_by_conda(request: CondaRequest, name: str, progress: Progress) -> CondaAnswer:
    with Workers(SOLVERS, "solve") as threads:
        futures = {
            platform: threads.submit(ask_conda_lock, replace(request, platforms=(platform,)))
            for platform in request.platforms
        }
        answers = list(_answers(request, futures, name, progress))
    hashes = {k: v for answer in answers for k, v in answer.content_hashes.items()}
    return _join_answers(answers, hashes)


def _answers(
    request: CondaRequest,
    futures: dict[str, Future[CondaAnswer]],
    name: str,
    progress: Progress,
    hashes: Future[dict[str, str]] | None = None,
) -> Iterator[CondaAnswer]:
    """Yield the solution for each platform, with `hashes` done, too; raise when one has none."""
    for platform, future in futures.items():
        with progress.task(f"locking {name}: conda packages for {platform}"):
            answer = future.result()
            if answer.error:
                raise explain(answer, request)
            # Inside of the task, so that a wait for conda-lock is shown as part of it.
            if hashes:
                hashes.result()
        yield answer


def _join_answers(answers: list[CondaAnswer], content_hashes: dict[str, str]) -> CondaAnswer:
    packages = tuple(package for answer in answers for package in answer.packages)
    return CondaAnswer(packages=packages, content_hashes=content_hashes)
