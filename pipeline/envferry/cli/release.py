"""The command `envferry release`: what CI calls."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click
import msgspec

from envferry.cli.changed import releasable
from envferry.cli.pack import PackSettings, pack_built
from envferry.cli.push import push_one
from envferry.cli.release_gate import ReleaseGate
from envferry.cli.release_outcome import FAILURES, Outcome, raise_first
from envferry.cli.release_plan import plan_releases
from envferry.cli.release_workers import BuiltReleaseOptions, outcomes_of, release_on_workers
from envferry.cli.shared.building import build_spec, preview_line, preview_spec
from envferry.cli.shared.command import argument, command, option
from envferry.cli.shared.completions import complete_specs
from envferry.cli.shared.job_matrix import MAX_JOBS, Service, job_matrix
from envferry.cli.shared.shared_options import DryRunOptions
from envferry.errors import UsageError
from envferry.names import SPECS_DIR, current_platform
from envferry.trust.host_keys import load_trust

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envferry.cli.shared.console import Console
    from envferry.registry import Registry


class ReleaseOptions(DryRunOptions, BuiltReleaseOptions):
    """What to release, and how."""

    specs: tuple[str, ...] = argument(nargs=-1, metavar="[SPEC]...", shell_complete=complete_specs)
    since: str | None = option(
        "--since",
        metavar="REV",
        help="Also release the specs in specs/ that changed since this git revision.",
    )
    matrix: Service | None = option(
        "--matrix",
        type=click.Choice(list(MAX_JOBS)),
        help="Only print the jobs, one a spec and platform, as this CI service takes them; "
        "where these are too many, a job has several specs.",
    )
    max_jobs: int | None = option(
        "--max-jobs",
        type=click.IntRange(min=1),
        metavar="N",
        help="With --matrix: at most this many jobs. Default: as many as the service takes, 256 on"
        " GitHub, 200 on GitLab.",
    )
    plan: bool = option(
        "--plan",
        is_flag=True,
        help="Only print what would be fetched, built, packed and sent, in bytes and seconds.",
    )
    have: str | None = option(
        "--have",
        metavar="REF",
        help="With --plan: also what a host that has REF would read of the release.",
    )
    audit: str | None = option(
        "--audit",
        metavar="POLICY",
        help="Release nothing with vulnerabilities that this policy does not allow: any,"
        " low, medium, high, critical, or a file.",
    )

    def require_complete(self) -> None:
        """Raise UsageError for an option that says nothing without another."""
        if self.have and not self.plan:
            message = "`--have` says which version a plan is for"
            raise UsageError(message, hint="add `--plan`")
        if self.max_jobs and not self.matrix:
            message = "`--max-jobs` says how many jobs a matrix has"
            raise UsageError(message, hint="add `--matrix`, or build side by side with `--workers`")
        if not self.specs and self.since is None:
            message = "nothing to release: neither a SPEC nor `--since` is given"
            raise UsageError(message, hint="name specs, such as `demo`")

    def gate(self, console: Console) -> ReleaseGate:
        """Return what audits, with the keys that must have signed its database."""
        return ReleaseGate.open(console, self.audit, load_trust(self.trusted_keys, takes_in=False))


@command(ReleaseOptions)
def release(console: Console, options: ReleaseOptions) -> None:
    """Release each SPEC: check its lock, build, pack and push it.

    All locks and the registry are checked first: if one is wrong, nothing is built. After that, the
    failure of one SPEC does not hold back the others. An artifact of the same lock that is in the
    registry is only tagged; what was built with --no-check counts only for a release with it.

    With --since, a changed spec that never had a lock is left out; one whose lock was deleted is an
    error.

    With --workers or --scheduler, workers build and push (extra `envferry[dask]`); this process
    checks what they pushed, signs it and moves the tags.
    """
    options.require_combinable()
    options.require_complete()
    changed: tuple[str, ...] = ()
    if options.since is not None:
        changed = releasable(console, SPECS_DIR, options.since)
    # Each once, in the order that was given.
    specs = dict.fromkeys((*options.specs, *changed))
    if options.matrix:
        click.echo(json.dumps(job_matrix(specs, options.matrix, options.max_jobs)))
        return
    target, gate = options.open_registry(), options.gate(console)
    outcomes = outcomes_of(specs, options)
    if options.plan:
        plan_only(Release(console, target, options, gate), outcomes)
        return
    if options.dry_run:
        preview_release(Release(console, target, options, gate), outcomes)
        return
    try:
        check_all(outcomes, options.tags, gate)
        require_all_writable(outcomes, target)
        if not any(outcome.error for outcome in outcomes):
            if options.on_workers:
                release_on_workers(console, outcomes, target, options, gate)
            else:
                release_all(Release(console, target, options, gate), outcomes)
    finally:
        # Also after an interrupt: what was published is.
        console.result(
            [outcome.facts() for outcome in outcomes], lambda: [one.line() for one in outcomes]
        )
    raise_first(outcomes)


def plan_only(release: Release, outcomes: Sequence[Outcome]) -> None:
    """Print what a release will take; raise what is wrong with a lock."""
    options = release.options
    check_all(outcomes, options.tags, release.gate)
    facts, lines = plan_releases(
        outcomes, release.target, options, have=options.have, rebuild=options.rebuild
    )
    release.console.preview(facts, lambda: lines)
    raise_first(outcomes)


def preview_release(release: Release, outcomes: Sequence[Outcome]) -> None:
    """Print what a release would build, and what it would only tag; raise what it would."""
    from envferry.registry.push import check_tags
    from envferry.registry.release_lookup import find_released

    console, target, options = release.console, release.target, release.options
    check_all(outcomes, options.tags, release.gate)
    tags = check_tags(options.tags)
    facts: list[dict[str, object]] = []
    lines: list[str] = []
    for outcome in (one for one in outcomes if one.lock):
        found = None
        if not options.rebuild and outcome.lock:
            found = find_released(target, outcome.lock, outcome.platform)
        fact = {
            "spec": outcome.spec,
            "platform": outcome.platform,
            "build": found is None,
            "id": found.id if found else None,
        }
        facts.append({**fact, "tags": tags})
        if found:
            shown = f"{found.name}@{found.id} is in {target.url}: would be tagged"
            lines.append(f"{shown} {', '.join(tags)}")
        elif outcome.platform != current_platform():
            lines.append(f"{outcome.spec}: would be built for {outcome.platform}, by a worker")
        else:
            lines.append(preview_line(preview_spec(outcome.spec, options)))
    console.preview(facts, lambda: lines)
    raise_first(outcomes)


def check_all(outcomes: Sequence[Outcome], tags: tuple[str, ...], gate: ReleaseGate) -> None:
    """Read every lock, and audit it where a policy says so; note what is wrong with each."""
    from envferry import api
    from envferry.registry.layout import check_tag

    for tag in tags:
        check_tag(tag)
    for outcome in outcomes:
        try:
            lock = api.read_lock(outcome.spec)
            lock.for_platform(outcome.platform)
            gate.require_lock(lock, outcome.platform)
            outcome.lock = lock
        except FAILURES as error:
            outcome.error = error


def require_all_writable(outcomes: Sequence[Outcome], target: Registry) -> None:
    """Find out whether the registry takes what will be made."""
    from envferry.registry.release_lookup import require_writable

    for outcome in outcomes:
        if outcome.lock:
            require_writable(target, outcome.lock.name, outcome.platform)


class Release(msgspec.Struct, frozen=True):
    """Where a release goes to, and what it has to pass."""

    console: Console
    target: Registry
    options: ReleaseOptions
    gate: ReleaseGate


def release_all(release: Release, outcomes: Sequence[Outcome]) -> None:
    """Release one spec after the other; an error of one is noted and said."""
    for outcome in outcomes:
        try:
            release_one(release, outcome)
        except FAILURES as error:
            outcome.error = error
            if release.options.fail_fast:
                return


def release_one(release: Release, outcome: Outcome) -> None:
    """Build, pack and push a spec, unless the registry has what its lock makes."""
    from envferry.registry.published_archive import latest_archive
    from envferry.registry.push import tag_published
    from envferry.registry.release_lookup import find_released

    console, target, options = release.console, release.target, release.options
    if not options.rebuild and outcome.lock:
        checked = not options.no_check
        found = find_released(target, outcome.lock, outcome.platform, checked=checked)
        if found:
            release.gate.require_published(target, found)
            outcome.pushed = tag_published(found, registry=target, tags=options.tags)
            return
    built = build_spec(console, outcome.spec, options)
    ways = PackSettings(
        registry=options.registry,
        published=lambda: latest_archive(target, built.name, built.platform),
    )
    artifact, outcome.reused = pack_built(console, built, options, ways)
    # Before the push: what a policy refuses does not get into the registry.
    release.gate.require_artifact(artifact)
    outcome.pushed = push_one(console, artifact, target, options)
    outcome.built = True
