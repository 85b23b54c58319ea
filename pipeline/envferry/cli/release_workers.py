"""`release --workers` and `release --scheduler`: workers build, this process signs and tags."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from envferry.base.logins import FOR_CHANNELS
from envferry.cli.push import SigningOptions
from envferry.cli.release_outcome import FAILURES, Outcome
from envferry.cli.shared.building import BuildingOptions, PackedOptions
from envferry.cli.shared.command import CommandOptions, option
from envferry.cli.shared.shared_options import NewTagOptions
from envferry.cli.shared.stage_table import stages_shown
from envferry.errors import ToolFailed, UsageError
from envferry.names import SPECS_DIR, current_platform

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from envferry.cli.release_gate import ReleaseGate
    from envferry.cli.shared.console import Console
    from envferry.cli.shared.stage_table import Stages
    from envferry.cluster.messages import BuildChoice, BuildEvent, BuildJob, Cluster
    from envferry.cluster.release import AcceptedArtifact
    from envferry.registry import Registry

log = logging.getLogger(__name__)


class ClusterOptions(CommandOptions):
    """Where a release builds, and what a failure means for the rest."""

    workers: int | None = option(
        "--workers",
        type=click.IntRange(min=1),
        metavar="N",
        default=None,
        help="Build on this machine, N specs at a time.",
    )
    scheduler: str | None = option(
        "--scheduler",
        metavar="URL",
        help="Build on the workers of this Dask scheduler, tls://HOST:PORT, for all platforms.",
    )
    platforms: tuple[str, ...] = option(
        "--platform",
        multiple=True,
        metavar="PLATFORM",
        help="With --scheduler, only this platform of the locks; repeatable.",
    )
    worker_timeout: int = option(
        "--worker-timeout",
        type=click.IntRange(min=1),
        metavar="SECONDS",
        default=300,
        show_default=True,
        help="How long to wait for a worker of a platform.",
    )
    fail_fast: bool = option(
        "--fail-fast/--keep-going",
        help="Stop at the first failure, or (default) release all others.",
    )
    atomic: bool = option(
        "--atomic", is_flag=True, help="With workers: sign and tag all, or nothing if one failed."
    )

    @property
    def on_workers(self) -> bool:
        """Whether workers build."""
        return bool(self.workers or self.scheduler)


class BuiltReleaseOptions(
    BuildingOptions, PackedOptions, SigningOptions, NewTagOptions, ClusterOptions
):
    """What to release, wherever it is built."""

    rebuild: bool = option(
        "--rebuild", is_flag=True, help="Also build what the registry already has."
    )

    def require_combinable(self) -> None:
        """Raise UsageError for options that cannot be combined."""
        from envferry.names import check_platform

        if self.workers and self.scheduler:
            message = "`--workers` starts workers here, `--scheduler` uses existing ones"
            raise UsageError(message, hint="give one of them")
        if self.platforms and not self.scheduler:
            message = f"`--platform` needs `--scheduler`: this machine is {current_platform()}"
            raise UsageError(message, hint="leave it out, or name the scheduler of other machines")
        if self.atomic and not self.on_workers:
            message = "`--atomic` is for releases on workers"
            raise UsageError(message, hint="add `--workers 1`")
        for platform in self.platforms:
            check_platform(platform)
        if self.on_workers:
            from envferry.cluster.address import check_scheduler
            from envferry.cluster.release import require_dask

            require_dask()
            if self.scheduler:
                check_scheduler(self.scheduler)

    def as_cluster(self) -> Cluster:
        """Return where the jobs run."""
        from envferry.cluster.messages import Cluster

        return Cluster(
            scheduler=self.scheduler,
            workers=self.workers or 0,
            worker_timeout=self.worker_timeout,
            fail_fast=self.fail_fast,
        )

    def as_choice(self, *, reuse: bool) -> BuildChoice:
        """Return how workers build; those of this machine share its cores and keep archives."""
        from envferry.cluster.messages import BuildChoice

        cores = os.cpu_count() or 1
        return BuildChoice(
            sandbox=self.sandbox.value,
            level=self.level,
            image=self.image,
            offline=self.offline,
            check=not self.no_check,
            allow_clobber=self.allow_clobber,
            allow_conflict=self.allow_conflict,
            reuse=reuse,
            output=str(self.output.absolute()) if self.workers else None,
            threads=max(1, cores // self.workers) if self.workers else 0,
        )


def outcomes_of(specs: Iterable[str], options: BuiltReleaseOptions) -> list[Outcome]:
    """Return an outcome for each spec: on a cluster, for each platform that its lock has."""
    from envferry import api

    if not options.scheduler:
        return [Outcome(spec) for spec in specs]
    outcomes = []
    for spec in specs:
        try:
            platforms = options.platforms or sorted(api.read_lock(spec).content_hashes)
        except FAILURES as error:
            outcomes.append(Outcome(spec, error=error))
            continue
        outcomes += [Outcome(spec, platform) for platform in platforms]
    return outcomes


def release_on_workers(
    console: Console,
    outcomes: Sequence[Outcome],
    target: Registry,
    options: BuiltReleaseOptions,
    gate: ReleaseGate,
) -> None:
    """Let workers build what the registry lacks; check, sign and tag what they pushed."""
    release = WorkerRelease(target, options, gate)
    for number, outcome in enumerate(outcomes):
        release.plan(f"{number}-{outcome.spec}-{outcome.platform}", outcome)
    rows = {key: (one.spec, one.platform) for key, one in release.outcomes.items()}
    with stages_shown(console, rows) as stages:
        release.run(stages)
    if options.atomic:
        release.publish_all(outcomes)


class WorkerRelease(msgspec.Struct):
    """A release whose builds run elsewhere; only this process signs and tags."""

    target: Registry
    options: BuiltReleaseOptions
    gate: ReleaseGate
    outcomes: dict[str, Outcome] = msgspec.field(default_factory=dict)
    """By the key of the job."""
    jobs: dict[str, BuildJob] = msgspec.field(default_factory=dict)
    ready: list[tuple[Outcome, AcceptedArtifact]] = msgspec.field(default_factory=list)
    """What is checked, and signed and tagged when all are."""

    def plan(self, key: str, outcome: Outcome) -> None:
        """Make a job of what the registry lacks; what it has is accepted."""
        from envferry.cluster.release import AcceptedArtifact, make_job
        from envferry.lock.conda.channel_logins import logins_of_spec
        from envferry.registry.release_lookup import find_released

        # `check_all` has read every lock: an error in one of them ends the release before this.
        assert outcome.lock is not None
        if not self.options.rebuild:
            checked = not self.options.no_check
            found = find_released(self.target, outcome.lock, outcome.platform, checked=checked)
            if found:
                # The bytes as they are stored: a signature is of these.
                data = self.target.proof(found).manifest_data
                try:
                    self.take(outcome, AcceptedArtifact(manifest=found, data=data, uploaded=False))
                except FAILURES as error:
                    outcome.error = error
                return
        # The origin of what is unsigned is unknown: a release with a key trusts what was built for
        # it.
        reuse = not self.options.rebuild and not (self.target.signer or self.target.keyless)
        choice = self.options.as_choice(reuse=reuse)
        for channel in logins_of_spec(outcome.spec, SPECS_DIR):
            words = "workers have no login for %s, which stands in the spec alone: on each, %s"
            log.warning(words, channel.rstrip("/"), FOR_CHANNELS)
        self.jobs[key] = make_job(key, outcome.lock, outcome.platform, self.shared_url(), choice)
        self.outcomes[key] = outcome

    def shared_url(self) -> str:
        """Return the registry as workers open it: in another directory than this process."""
        url = self.options.registry
        return url if "://" in url else str(Path(url).absolute())

    def run(self, stages: Stages) -> None:
        """Run all jobs."""
        from envferry.cluster.release import run_jobs

        if not self.jobs:
            return
        for event in run_jobs(self.options.as_cluster(), tuple(self.jobs.values())):
            if event.kind == "warning":
                log.warning("%s", event.text)
            elif event.key in self.outcomes:  # else a coordinator that lies
                self.handle_event(event, stages)
            if self.options.fail_fast and self.has_failed():
                return
        self.require_answers()

    def has_failed(self) -> bool:
        """Whether a job has failed, here or on its worker."""
        return any(one.error for one in self.outcomes.values())

    def require_answers(self) -> None:
        """Note an error for each job of which nothing was heard."""
        for one in self.outcomes.values():
            if not one.is_over:
                message = f"{one.spec} ({one.platform}): the workers gave no answer"
                one.error = ToolFailed(message, hint="run the command again")

    def handle_event(self, event: BuildEvent, stages: Stages) -> None:
        """Take in what a worker does, or what became of a job."""
        from envferry.cluster.release import accept, error_of

        outcome, answer = self.outcomes[event.key], event.answer
        if outcome.is_over:
            return  # what was said of it before comes later, and its worker may lie
        if event.kind == "stage":
            outcome.worker = event.worker
            stages.show(event.key, event.stage, event.worker)
            return
        if answer is None or outcome.lock is None:
            return
        outcome.seconds = stages.seconds(event.key)
        outcome.worker = outcome.worker or ""
        try:
            if answer.failure:
                raise error_of(answer.failure)
            job = self.jobs[event.key]
            accepted = accept(self.target, outcome.lock, job, answer.id, uploaded=answer.uploaded)
            outcome.built = answer.built
            self.take(outcome, accepted)
        except FAILURES as error:
            outcome.error = error
        done = "pushed" if outcome.is_held_back else "released"
        stages.end(event.key, "failed" if outcome.error else done)

    def take(self, outcome: Outcome, accepted: AcceptedArtifact) -> None:
        """Sign and tag what was accepted and the policies allow, now or with all others."""
        self.gate.require_published(self.target, accepted.manifest)
        if self.options.atomic:
            outcome.is_held_back = True
            self.ready.append((outcome, accepted))
            return
        self.publish(outcome, accepted)

    def publish(self, outcome: Outcome, accepted: AcceptedArtifact) -> None:
        """Sign an artifact and move its tags."""
        from envferry.cluster.release import sign
        from envferry.registry.push import tag_published

        sign(self.target, accepted)
        outcome.pushed = tag_published(
            accepted.manifest,
            registry=self.target,
            tags=self.options.tags,
            uploaded=accepted.uploaded,
        )

    def publish_all(self, outcomes: Sequence[Outcome]) -> None:
        """Sign and tag all, if all are there; else nothing."""
        from envferry.cluster.release import move_all_tags, sign
        from envferry.registry.push import check_tags, pushed_now

        if len(self.ready) < len(outcomes):
            return
        # All signatures before the first tag, which could lead hosts to an artifact that is
        # unsigned yet.
        for _, accepted in self.ready:
            sign(self.target, accepted)
        manifests, tags = [one.manifest for _, one in self.ready], check_tags(self.options.tags)
        move_all_tags(self.target, manifests, tags)
        # Nothing is asked or written from here on, so that no interrupt comes between.
        for outcome, one in self.ready:
            outcome.pushed = pushed_now(one.manifest, self.target, tags, uploaded=one.uploaded)
