"""What became of each spec of a release, for people and for `--json`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from envferry.cli.push import describe_push
from envferry.cli.shared.failures import explain
from envferry.errors import PipelineError
from envferry.names import current_platform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envferry.archive.frame_reuse import FrameReuse
    from envferry.models import Lock
    from envferry.registry.push import PushedArtifact

log = logging.getLogger(__name__)

FAILURES = (PipelineError, OSError)
"""What ends the release of one spec, and not of the others."""


class Outcome(msgspec.Struct):
    """What became of one spec, on one platform."""

    spec: str
    platform: str = msgspec.field(default_factory=current_platform)
    lock: Lock | None = None
    pushed: PushedArtifact | None = None
    built: bool = False
    """False when the registry had it already."""
    reused: FrameReuse | None = None
    """What did not have to be compressed again; None where it was not packed here."""
    error: Exception | None = None
    worker: str | None = None
    """Which worker built it; None where there are none."""
    seconds: float = 0.0
    is_held_back: bool = False
    """It is in the registry, without tags: others of an atomic release failed."""

    @property
    def is_over(self) -> bool:
        """Whether it is known how it ended, but for the tags of an atomic release."""
        return bool(self.error or self.pushed or self.is_held_back)

    @property
    def state(self) -> Literal["released", "failed", "held back", "not begun"]:
        """Return how it ended."""
        if self.error:
            return "failed"
        if self.is_held_back and not self.pushed:
            return "held back"
        return "released" if self.pushed else "not begun"

    def facts(self) -> dict[str, Any]:
        """Return what `--json` says of it: of what was released, what `push` says, too."""
        facts: dict[str, Any] = {
            "spec": self.spec,
            "platform": self.platform,
            "outcome": self.state,
        }
        if self.pushed:
            facts |= {**msgspec.to_builtins(self.pushed), "built": self.built}
        if self.reused:
            facts["reused"] = self.reused
        if self.worker is not None:
            facts |= {"worker": self.worker, "seconds": round(self.seconds, 1)}
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
        return f"{self.spec} ({self.platform}): {self.state}"


def raise_first(outcomes: Sequence[Outcome]) -> None:
    """Say all errors but the first, then raise that one: its exit code is the command's."""
    errors = [(outcome.spec, outcome.error) for outcome in outcomes if outcome.error]
    for spec, error in errors[1:]:
        failure = explain(error)
        log.error("%s: %s%s", spec, failure.message, f" ({failure.hint})" if failure.hint else "")
    if errors:
        raise errors[0][1]
