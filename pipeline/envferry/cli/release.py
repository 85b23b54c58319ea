"""The command `envferry release`: what CI calls."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec

from envferry.cli.build import SigningOptions, describe_push, pack_built, push_one
from envferry.cli.building import (
    BuildingOptions,
    PackedOptions,
    build_spec,
    locked,
    preview_line,
    preview_spec,
)
from envferry.cli.changed import MAX_JOBS, Service, job_matrix, releasable
from envferry.cli.command import argument, command, option
from envferry.cli.failures import explain
from envferry.cli.shared_options import SPECS_DIR, DryRunOptions, NewTagOptions
from envferry.errors import PipelineError, UsageError
from envferry.models import PushedArtifact, current_platform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envferry.cli.console import Console
    from envferry.models import Lock
    from envferry.registry import Registry

log = logging.getLogger(__name__)

FAILURES = (PipelineError, OSError)
"""What ends the release of one spec, and not of the others."""


@dataclass(slots=True)
class Outcome:
    """What became of one spec."""

    spec: str
    lock: Lock | None = None
    pushed: PushedArtifact | None = None
    built: bool = False
    """False when the registry had it already."""
    error: Exception | None = None

    @property
    def state(self) -> Literal["released", "failed", "not begun"]:
        """Return how it ended."""
        if self.error:
            return "failed"
        return "released" if self.pushed else "not begun"

    def facts(self) -> dict[str, Any]:
        """Return what `--json` says of it: of what was released, what `push` says, too."""
        facts: dict[str, Any] = {"spec": self.spec, "outcome": self.state}
        if self.pushed:
            facts |= {**msgspec.to_builtins(self.pushed), "built": self.built}
        if self.error:
            failure = explain(self.error)
            facts["error"] = {
                "message": failure.message,
                "hint": failure.hint,
                "exit_code": failure.exit_code,
            }
        return facts

    def line(self) -> str:
        """Return one line for people."""
        if self.pushed:
            return describe_push(self.pushed) + ("" if self.built else ", not rebuilt")
        return f"{self.spec}: {self.state}"


@dataclass(frozen=True, kw_only=True)
class ReleaseOptions(DryRunOptions, BuildingOptions, PackedOptions, SigningOptions, NewTagOptions):
    """What to release, and how."""

    specs: tuple[str, ...] = argument(nargs=-1, metavar="[SPEC]...")
    since: str | None = option(
        "--since",
        metavar="REV",
        help="Also release the specs in specs/ that changed since this git revision.",
    )
    matrix: Service | None = option(
        "--matrix",
        type=click.Choice(list(MAX_JOBS)),
        help="Only print the jobs, one a spec and platform, as this CI service takes them.",
    )
    rebuild: bool = option(
        "--rebuild", is_flag=True, help="Also build what the registry already has."
    )


@command(ReleaseOptions)
def release(console: Console, options: ReleaseOptions) -> None:
    """Release each SPEC: check its lock, build, pack and push it.

    All locks and the registry are checked first: if one is wrong, nothing is built. After that, the
    failure of one SPEC does not hold back the others. An artifact of the same lock that is in the
    registry is only tagged; what was built with --no-check counts only for a release with it.

    With --since, a changed spec that never had a lock is left out; one whose lock was deleted is an
    error.
    """
    if not options.specs and options.since is None:
        message = "release what? Neither a SPEC nor `--since` is given"
        raise UsageError(message, hint="name specs, such as `demo`")
    changed = releasable(SPECS_DIR, options.since) if options.since is not None else ()
    specs = dict.fromkeys((*options.specs, *changed))
    if options.matrix:
        click.echo(json.dumps(job_matrix(specs, options.matrix)))
        return
    target = options.open_registry()
    outcomes = [Outcome(spec) for spec in specs]
    if options.dry_run:
        preview_release(console, outcomes, target, options)
        return
    try:
        check_all(outcomes, options.tags)
        require_all_writable(outcomes, target)
        if not any(outcome.error for outcome in outcomes):
            release_all(console, outcomes, target, options)
    finally:
        # Also after an interrupt: what was published is.
        console.result(
            [outcome.facts() for outcome in outcomes], lambda: [one.line() for one in outcomes]
        )
    raise_first(outcomes)


def preview_release(
    console: Console, outcomes: Sequence[Outcome], target: Registry, options: ReleaseOptions
) -> None:
    """Print what a release would build, and what it would only tag; raise what it would."""
    from envferry.registry.push import check_tags
    from envferry.registry.released import find_released

    check_all(outcomes, options.tags)
    tags = check_tags(options.tags)
    facts: list[dict[str, object]] = []
    lines: list[str] = []
    for outcome in (one for one in outcomes if one.lock):
        found = None
        if not options.rebuild and outcome.lock:
            found = find_released(target, outcome.lock, current_platform())
        fact = {"spec": outcome.spec, "build": found is None, "id": found.id if found else None}
        facts.append({**fact, "tags": tags})
        if found:
            shown = f"{found.name}@{found.id} is in {target.url}: would be tagged"
            lines.append(f"{shown} {', '.join(tags)}")
        else:
            lines.append(preview_line(preview_spec(outcome.spec, options)))
    console.preview(facts, lambda: lines)
    raise_first(outcomes)


def check_all(outcomes: Sequence[Outcome], tags: tuple[str, ...]) -> None:
    """Read every lock; note what is wrong with each."""
    from envferry.registry.layout import check_tag

    for tag in tags:
        check_tag(tag)
    for outcome in outcomes:
        try:
            lock = locked(outcome.spec)
            lock.for_platform(current_platform())
            outcome.lock = lock
        except FAILURES as error:
            outcome.error = error


def require_all_writable(outcomes: Sequence[Outcome], target: Registry) -> None:
    """Find out whether the registry takes what will be made."""
    from envferry.registry.released import require_writable

    for outcome in outcomes:
        if outcome.lock:
            require_writable(target, outcome.lock.name, current_platform())


def release_all(
    console: Console, outcomes: Sequence[Outcome], target: Registry, options: ReleaseOptions
) -> None:
    """Release one spec after the other; an error of one is noted and said."""
    for outcome in outcomes:
        try:
            release_one(console, outcome, target, options)
        except FAILURES as error:
            outcome.error = error


def release_one(
    console: Console, outcome: Outcome, target: Registry, options: ReleaseOptions
) -> None:
    """Build, pack and push a spec, unless the registry has what its lock makes."""
    from envferry.registry.push import tag_published
    from envferry.registry.released import find_released

    platform = current_platform()
    if not options.rebuild and outcome.lock:
        checked = not options.no_check
        found = find_released(target, outcome.lock, platform, checked=checked)
        if found:
            outcome.pushed = tag_published(found, registry=target, tags=options.tags)
            return
    built = build_spec(console, outcome.spec, options)
    artifact = pack_built(console, built, options)
    outcome.pushed = push_one(console, artifact, target, options)
    outcome.built = True


def raise_first(outcomes: Sequence[Outcome]) -> None:
    """Say all errors but the first, then raise that one: its exit code is the command's."""
    errors = [(outcome.spec, outcome.error) for outcome in outcomes if outcome.error]
    for spec, error in errors[1:]:
        failure = explain(error)
        log.error("%s: %s%s", spec, failure.message, f" ({failure.hint})" if failure.hint else "")
    if errors:
        raise errors[0][1]
