"""The command `envferry release`: what CI calls."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec

from envferry.cli.build import (
    describe_push,
    level_option,
    open_signing,
    output_option,
    pack_built,
    push_one,
    tag_option,
)
from envferry.cli.build_options import SPECS_DIR, BuildChoice, build_options, build_spec
from envferry.cli.failures import explain
from envferry.cli.options import common_options, registry_option
from envferry.cli.trust import sign_key_option, trusted_key_option
from envferry.errors import PipelineError
from envferry.models import PushedArtifact, current_platform

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

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
            return describe_push(self.pushed) + ("" if self.built else ", not built again")
        return f"{self.spec}: {self.state}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseOptions:
    """How to release."""

    choice: BuildChoice
    tags: tuple[str, ...]
    output: Path
    level: int
    rebuild: bool


@click.command()
@click.argument("specs", nargs=-1, required=True, metavar="SPEC...")
@tag_option
@click.option("--rebuild", is_flag=True, help="Build also what the registry has already.")
@sign_key_option
@trusted_key_option
@registry_option
@output_option
@level_option
@build_options
@common_options
def release(
    console: Console,
    specs: tuple[str, ...],
    registry: str,
    **choices: Any,  # noqa: ANN401  (click's)
) -> None:
    """Release each SPEC: check its lock, build, pack and push it.

    All locks and the registry are checked first: if one is wrong, nothing is built. Then one
    failure does not keep the other specs back. What the registry has of the same lock is tagged,
    not built again; what was built with --no-check counts only for a release with --no-check.
    """
    target = open_signing(registry, choices)
    options = ReleaseOptions(
        choice=BuildChoice.of(choices),
        tags=choices["tags"],
        output=choices["output"],
        level=choices["level"],
        rebuild=choices["rebuild"],
    )
    outcomes = [Outcome(spec) for spec in dict.fromkeys(specs)]
    try:
        check_all(outcomes, target, options.tags)
        if not any(outcome.error for outcome in outcomes):
            release_all(console, outcomes, target, options)
    finally:
        # Also after an interrupt: what was published is.
        console.result(
            [outcome.facts() for outcome in outcomes], lambda: [one.line() for one in outcomes]
        )
    raise_first(outcomes)


def check_all(outcomes: Sequence[Outcome], target: Registry, tags: tuple[str, ...]) -> None:
    """Read every lock, and find out whether the registry takes what will be made."""
    from envferry.lock.existing_lock import check_lock
    from envferry.registry.layout import check_tag
    from envferry.registry.released import require_writable
    from envferry.specs.reading import find_spec, read_spec

    platform = current_platform()
    for tag in tags:
        check_tag(tag)
    for outcome in outcomes:
        try:
            lock = check_lock(read_spec(find_spec(outcome.spec, SPECS_DIR)))
            lock.for_platform(platform)
            outcome.lock = lock
        except FAILURES as error:
            outcome.error = error
    for outcome in outcomes:
        if outcome.lock:
            require_writable(target, outcome.lock.name, platform)


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
        checked = options.choice.check
        found = find_released(target, outcome.lock, platform, checked=checked)
        if found:
            outcome.pushed = tag_published(found, registry=target, tags=options.tags)
            return
    built = build_spec(console, outcome.spec, options.choice)
    artifact = pack_built(console, built, options.output, options.level)
    outcome.pushed = push_one(console, artifact, target, options.tags)
    outcome.built = True


def raise_first(outcomes: Sequence[Outcome]) -> None:
    """Say all errors but the first, then raise that one: its exit code is the command's."""
    errors = [(outcome.spec, outcome.error) for outcome in outcomes if outcome.error]
    for spec, error in errors[1:]:
        failure = explain(error)
        log.error("%s: %s%s", spec, failure.message, f" ({failure.hint})" if failure.hint else "")
    if errors:
        raise errors[0][1]
