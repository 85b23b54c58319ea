"""What the conda half is asked for, and its solution for several platforms at once."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import msgspec

from envferry.base.workers import Workers
from envferry.errors import SpecError
from envferry.lock.channels import channel_names, channels_of, placed_lines, relaxed_pins, warn_of
from envferry.lock.conda_half import solve_conda_half
from envferry.lock.conda_messages import CondaAnswer, CondaRequest
from envferry.lock.existing_lock import known_hashes
from envferry.lock.repodata import ChannelIndexes
from envferry.specs.conda_lines import parse_conda_line

if TYPE_CHECKING:
    from pathlib import Path

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
    looking = progress.task(f"locking {spec.name}: which pins the channels have")
    with looking if options.relax else nullcontext():
        conda, replacements = relaxed_pins(placed_lines(halves, names), channels, options)
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
            raise SpecError(message, hint="leave out `--solver`: envferry's own solver obeys it")


def solve_platforms(request: CondaRequest, name: str, progress: Progress) -> CondaAnswer:
    """Solve the conda half for each platform, several at once; the first that fails raises."""
    alone = {
        platform: msgspec.structs.replace(request, platforms=(platform,))
        for platform in request.platforms
    }
    answers, indexes = [], ChannelIndexes.usual(offline=request.offline)
    with Workers(SOLVERS, "solve") as threads:
        futures = {
            platform: threads.submit(solve_conda_half, part, indexes)
            for platform, part in alone.items()
        }
        for platform, future in futures.items():
            label = f"locking {name}: conda packages for {platform}"
            with progress.task(label, indexes.server.expected) as indexes.server.advance:
                answers.append(future.result())
    return CondaAnswer(
        packages=tuple(package for answer in answers for package in answer.packages),
        content_hashes={k: v for answer in answers for k, v in answer.content_hashes.items()},
    )
