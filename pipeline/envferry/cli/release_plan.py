"""What `envferry release --plan` says: what a release will fetch, build, pack, send, and more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from envferry.base.text import human_bytes, plural
from envferry.cli.shared.building import preview_spec
from envferry.cli.shared.terminal import table
from envferry.cli.shared.timed_stages import known_durations
from envferry.errors import NotFound
from envferry.names import DEFAULT_TAG, Ref, current_platform

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from envferry.archive.reader import Archive
    from envferry.cli.release_outcome import Outcome
    from envferry.cli.shared.building import BuildingOptions
    from envferry.models import Lock, Manifest
    from envferry.registry import Registry

UNKNOWN = "unknown"


class PlannedStage(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of a release that has not begun."""

    stage: str
    """`fetch`, `build`, `pack`, `send`, or `read`: what a host does afterwards."""
    what: str
    """For people."""
    bytes: int | None = None
    """What it will fetch, compress, send or read; None where that is unknown."""
    of_bytes: int | None = None
    """The whole, of which `bytes` is a part."""
    seconds: float | None = None
    """By earlier runs on this machine; None where there were none."""
    is_exact: bool = False

    @property
    def row(self) -> tuple[str, str, str, str]:
        """Return it as a line of a table."""
        size = UNKNOWN if self.bytes is None else human_bytes(self.bytes)
        if self.bytes is not None and not self.is_exact:
            size = f"~{size}"
        if self.bytes is not None and self.of_bytes is not None:
            about = "" if self.is_exact else "~"
            size += f" of {about}{human_bytes(self.of_bytes)}"
        seconds = UNKNOWN if self.seconds is None else f"~{self.seconds:.1f} s"
        return (self.stage, self.what, size, seconds)


class ReleasePlanner:
    """Plans the release of one spec, from its lock, the caches and the registry's indexes."""

    def __init__(self, outcome: Outcome, target: Registry, options: BuildingOptions) -> None:
        self.spec, self.platform, self.target = outcome.spec, outcome.platform, target
        self.options = options
        self.durations = known_durations()
        self.before = self.published(DEFAULT_TAG)

    def published(self, version: str) -> Archive | None:
        """Open a version of the environment in the registry; None where there is none."""
        from envferry import api

        name = api.read_lock(self.spec).name
        try:
            id_ = self.target.resolve(Ref(name=name, version=version), self.platform)
            return self.opened(self.target.manifest(name, self.platform, id_))
        except NotFound:
            return None

    def opened(self, manifest: Manifest) -> Archive:
        """Read the index of a published archive."""
        from envferry.archive.identity import check_manifest
        from envferry.archive.reader import Archive
        from envferry.registry import PublishedArchive

        archive = Archive(PublishedArchive(self.target, manifest))
        check_manifest(archive, manifest)
        return archive

    def stages(self, lock: Lock) -> Iterator[PlannedStage]:
        """Yield the stages up to the push, in their order."""
        from envferry.registry.expected_release import expect_archive

        build = preview_spec(self.spec, self.options)
        some = "" if not build.unsized else f", {build.unsized} of unknown size"
        yield PlannedStage(
            stage="fetch",
            what=plural(len(build.downloads), "file") + some,
            bytes=build.download_bytes,
            seconds=self.durations.estimate("fetch", lock.name, build.download_bytes)
            if not build.unsized
            else None,
            is_exact=not build.unsized,
        )
        seconds = self.durations.estimate("build", lock.name)
        expected = expect_archive(lock, self.platform, self.before) if self.before else None
        count = plural(build.conda + build.pip, "package")
        if not expected or not self.before:
            yield PlannedStage(stage="build", what=count, seconds=seconds)
            yield PlannedStage(stage="pack", what="all of it")
            yield PlannedStage(stage="send", what="all of it")
            return
        yield PlannedStage(stage="build", what=count, bytes=expected.tree, seconds=seconds)
        known = f"{expected.changed} of {count} changed since {self.before.index.id}"
        if expected.unknown:
            known += f", {expected.unknown} of unknown size"
        yield PlannedStage(
            stage="pack",
            what=known,
            bytes=expected.fresh,
            of_bytes=expected.archive,
            seconds=self.durations.estimate("pack", lock.name, expected.tree),
        )
        yield PlannedStage(
            stage="send",
            what="what is new",
            bytes=expected.fresh,
            of_bytes=expected.archive,
            seconds=self.durations.estimate("send", lock.name, expected.archive),
        )

    def read_by(self, have: Ref, lock: Lock, released: Manifest | None) -> PlannedStage:
        """Say what a host that has a version will read; raise NotFound for an unknown one."""
        from envferry.registry.diff import plan_update
        from envferry.registry.expected_release import expect_archive

        id_ = self.target.resolve(have, self.platform)
        there = self.opened(self.target.manifest(have.name, self.platform, id_))
        what = f"a host that has {have.name}@{id_}"
        if released:
            update = plan_update(there, self.opened(released))
            return PlannedStage(
                stage="read", what=what, bytes=update.bytes, of_bytes=update.of_bytes, is_exact=True
            )
        found = expect_archive(lock, self.platform, there)
        return PlannedStage(stage="read", what=what, bytes=found.fresh, of_bytes=found.archive)


def plan_releases(
    outcomes: Sequence[Outcome],
    target: Registry,
    options: BuildingOptions,
    *,
    have: str | None,
    rebuild: bool,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the plans of all specs whose locks are right: for JSON, and as lines."""
    facts: list[dict[str, Any]] = []
    lines: list[str] = []
    for outcome in outcomes:
        if outcome.lock:
            stages, found = plan_one(outcome, outcome.lock, target, options, (have, rebuild))
            fact = {"spec": outcome.spec, "platform": outcome.platform}
            facts.append({**fact, "released": found.id if found else None, "stages": stages})
            lines += describe_stages(outcome, stages, found)
    return facts, lines


def plan_one(
    outcome: Outcome,
    lock: Lock,
    target: Registry,
    options: BuildingOptions,
    asked: tuple[str | None, bool],
) -> tuple[list[PlannedStage], Manifest | None]:
    """Return the stages of one release, and what the registry has of its lock."""
    from envferry.registry.release_lookup import find_released

    have, rebuild = asked
    checked = not options.no_check
    found = None
    if not rebuild:
        found = find_released(target, lock, outcome.platform, checked=checked)
    planner = ReleasePlanner(outcome, target, options)
    is_built_here = found is None and outcome.platform == current_platform()
    stages = list(planner.stages(lock)) if is_built_here else []
    if have:
        stages.append(planner.read_by(Ref.parse(have), lock, found))
    return stages, found


def describe_stages(
    outcome: Outcome, stages: Sequence[PlannedStage], found: Manifest | None
) -> Iterator[str]:
    """Yield what people read of a plan."""
    if found:
        yield f"{outcome.spec}: {found.name}@{found.id} is released already: only tags will move"
    elif outcome.platform != current_platform():
        yield f"{outcome.spec}: a worker will build it for {outcome.platform}"
    else:
        yield f"{outcome.spec} for {outcome.platform}:"
    if stages:
        yield from table(
            ("STAGE", "WHAT", "BYTES", "TIME"), [one.row for one in stages], right=(2, 3)
        )
