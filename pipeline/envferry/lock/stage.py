"""Stage 1, lock: Spec -> Lock."""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import TYPE_CHECKING

from envferry.lock.both_halves import solve_halves
from envferry.lock.conda.channel_logins import channel_logins
from envferry.lock.conda.foreign_solver import solver_version
from envferry.lock.conda.match_specs import check_match_specs
from envferry.lock.content_hashes import hashing
from envferry.lock.existing_lock import (
    kept_packages,
    previous_lock,
    with_other_platforms,
    without_channels,
)
from envferry.lock.index_settings import named_indexes
from envferry.lock.lock_options import LockOptions, check_options
from envferry.lock.pip.package_provenance import record_provenance
from envferry.lock.pip.pip_inputs import pin_build_requirements
from envferry.lock.unknown_hashes import with_hash
from envferry.redaction import secret_parameters
from envferry.specs.locks import LockContents, parse_lock, render_lock, write_lock
from envferry.specs.reading import read_spec

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from envferry.models import BuildRequirements, FileProvenance, Lock, LockedPackage, Spec
    from envferry.progress import Progress

log = logging.getLogger(__name__)


def lock_spec(spec: Spec, *, options: LockOptions, progress: Progress) -> Lock:
    """Solve a spec for its platforms and write the lock beside it.

    Raises SpecError when a half has no solution, StoreError when a channel or index cannot be
    reached; then the lock that was there stays, as it does with `options.dry_run`.
    """
    # All that can be refused without network comes first: a solve may take minutes.
    check_options(options)
    check_match_specs(spec)
    tools = _tools(options.solver)
    kept = kept_packages(spec, options)
    platforms = options.platforms or spec.platforms
    # Read for each platform: selectors drop lines.
    halves = {platform: read_spec(spec.path, platform=platform) for platform in platforms}
    indexes = named_indexes(spec) if any(half.pip for half in halves.values()) else ()
    with hashing(spec, tuple(halves), options, progress) as wait_for_hashes:
        both = solve_halves(spec, halves, kept, options, progress)
        # A line that is a package's URL is in no repodata, which has the hashes.
        notes: list[str] = []
        solved = both.conda.packages
        logins = channel_logins(spec)
        packages = [
            with_hash(package, notes, offline=options.offline, channels=logins)
            for package in solved
        ]
        for note in notes:
            log.info("%s", note)
        build_requirements: list[BuildRequirements] = []
        provenance: dict[str, dict[str, FileProvenance]] = {}
        # Read before this lock is written: its publishers are what today's are compared with.
        before = previous_lock(spec)
        for platform, (asked, resolved) in both.pip.items():
            packages += resolved.packages
            build_requirements += pin_build_requirements(spec, asked, resolved.packages, progress)
            provenance[platform] = record_provenance(asked, resolved, before, progress)
        warn_of_secrets(packages)
        contents = LockContents(
            name=spec.name,
            source=spec.path.name,
            channels=options.channels or spec.channels,
            packages=tuple(packages),
            # One of them is empty: a conda-lock that solves also hashes.
            content_hashes=both.conda.content_hashes | wait_for_hashes(),
            spec_digest=spec.digest,
            options=without_channels(spec.options),
            tools=tools,
            replacements=both.replacements,
            build_requirements=tuple(build_requirements),
            indexes=indexes,
            provenance=provenance,
        )
    # After the warnings: what was locked for other platforms was warned of then.
    contents = with_other_platforms(contents, spec)
    if options.dry_run:
        # By way of the text, as for a real lock: what cannot be read back fails here, too.
        return parse_lock(render_lock(contents).decode(), spec.lock_path)
    return write_lock(spec.lock_path, contents)


def warn_of_secrets(packages: Iterable[LockedPackage]) -> None:
    """Say which URLs of a lock give access by themselves: without that they could not be read."""
    for package in packages:
        if names := secret_parameters(package.url):
            log.warning(
                "the URL of %s holds a secret (%s), which is now in the lock and in every artifact "
                "built from it",
                package.name,
                ", ".join(names),
            )


def _tools(solver: Path | None) -> dict[str, str]:
    """Return the versions of the programs that decide what a lock says.

    Raises UsageError for a solver that is too old.
    """
    # conda-lock is among them whatever solves: it computes the content hashes.
    tools = {name: version(name) for name in ("conda-lock", "envferry", "uv")}
    if solver is None:
        return {**tools, "solver": f"py-rattler {version('py-rattler')}"}
    return {**tools, "solver": f"{solver.name} {solver_version(solver)}"}
