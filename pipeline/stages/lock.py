"""Stage 1, lock: Spec -> Lock."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec

from pipeline.locking.channels import (
    channel_names,
    channels_of,
    placed_lines,
    relaxed_pins,
    warn_of,
)
from pipeline.locking.keeping import kept_packages, with_other_platforms, without_channels
from pipeline.locking.options import LockOptions, check_options
from pipeline.locking.pip_requests import pin_build_requirements, pip_request
from pipeline.solving.conda_half import CondaAnswer, CondaRequest, solve_conda_half
from pipeline.solving.foreign_solver import solver_version
from pipeline.solving.pip_half import resolve_pip
from pipeline.specs.locks import LockContents, write_lock
from pipeline.specs.reading import read_spec

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.models import BuildRequirements, Lock, Spec
    from pipeline.progress import Progress

SOLVERS = 2
"""How many platforms are solved at once."""


def lock_spec(spec: Spec, *, options: LockOptions, progress: Progress) -> Lock:
    """Solve a spec for its platforms and write the lock beside it.

    Raises SpecError when a half has no solution, StoreError when a channel or index cannot be
    reached; then the lock that was there stays.
    """
    check_options(options)
    tools = _tools(options.solver)
    platforms = options.platforms or spec.platforms
    kept = kept_packages(spec, options)
    halves = {platform: read_spec(spec.path, platform=platform) for platform in platforms}
    names = channel_names(spec, options)
    channels = channels_of(spec, options, names)
    looking = progress.task(f"locking {spec.name}: which pins the channels have")
    with looking if options.relax else nullcontext():
        conda, replacements = relaxed_pins(placed_lines(halves, names), channels, options)
    warn_of(replacements, channels)
    request = _conda_request(spec, conda, channels, options)
    conda_kept = tuple(item for item in kept if item.manager == "conda")
    answer = _solve_platforms(msgspec.structs.replace(request, kept=conda_kept), spec, progress)
    packages = list(answer.packages)
    build_requirements: list[BuildRequirements] = []
    for platform, half in halves.items():
        with progress.task(f"locking {spec.name}: pip packages for {platform}"):
            asked = replace(
                pip_request(half, platform, answer.packages),
                kept=tuple(i for i in kept if (i.manager, i.platform) == ("pip", platform)),
                updated=options.updated,
                exclude_newer=options.exclude_newer,
            )
            resolved = resolve_pip(asked)
            packages += resolved
            build_requirements += pin_build_requirements(spec, asked, resolved, progress)
    contents = LockContents(
        name=spec.name,
        source=spec.path.name,
        channels=options.channels or spec.channels,
        packages=tuple(packages),
        content_hashes=answer.content_hashes,
        spec_digest=spec.digest,
        options=without_channels(spec.options),
        tools=tools,
        replacements=replacements,
        build_requirements=tuple(build_requirements),
    )
    return write_lock(spec.lock_path, with_other_platforms(contents, spec))


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


def _tools(solver: Path | None) -> dict[str, str]:
    """Return the versions of the programs that decide what a lock says.

    Raises UsageError for a solver that is too old.
    """
    tools = {name: version(name) for name in ("conda-lock", "envferry", "uv")}
    if solver is None:
        return {**tools, "solver": f"py-rattler {version('py-rattler')}"}
    return {**tools, "solver": f"{solver.name} {solver_version(solver)}"}
