"""What of a registry may go, by what people want to keep."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from envferry.base.workers import Workers
from envferry.registry.host_reports import hosts_of_artifacts, read_fleet
from envferry.registry.inventory import Folder, Inventory, list_inventory, require_known
from envferry.registry.layout import ENVS, TAGS, tag_key
from envferry.registry.removal import remove_artifact
from envferry.registry.tags import find_tag

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.progress import Progress
    from envferry.registry.registry import Registry

log = logging.getLogger(__name__)

REMOVERS = 4


class RetentionPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What stays; an artifact goes when there is a rule and none keeps it.

    Tagged artifacts stay always, and so do those published less than `under_way` ago, or that a
    host has.
    """

    keep_last: int | None = None
    """The newest so many of each environment and platform."""
    keep_within: timedelta | None = None
    """Those that were published less than this ago."""
    keep_tagged: bool = False
    """Only the tagged ones, where no other rule is given."""
    under_way: timedelta = timedelta(hours=24)
    """What is younger may belong to a push that runs."""
    reported_within: timedelta = timedelta(days=30)
    """What hosts have stays, if they said so that lately."""

    @property
    def has_rule(self) -> bool:
        """Whether published artifacts may go at all."""
        return self.keep_tagged or self.keep_last is not None or self.keep_within is not None


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of a registry is looked at."""

    names: tuple[str, ...] = ()
    """Environments; none means all."""
    platform: str | None = None

    def has(self, name: str, platform: str) -> bool:
        """Whether an environment is in it."""
        return (not self.names or name in self.names) and self.platform in (None, platform)


class PruneDecision(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of one artifact, and why."""

    name: str
    platform: str
    id: str
    size: int
    """The bytes of all its files."""
    published: datetime | None
    """None for what a broken push left."""
    goes: bool
    reason: str


class Unfinished(msgspec.Struct, frozen=True, kw_only=True):
    """An unfinished upload."""

    key: str
    size: int
    """The bytes that have arrived."""
    began: datetime


class PrunePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a prune removes and what it keeps."""

    decisions: tuple[PruneDecision, ...]
    """By name, platform and time, the newest first."""
    unfinished: tuple[Unfinished, ...]
    """What goes of these."""
    under_way: timedelta

    @property
    def size(self) -> int:
        """The bytes that become free."""
        gone = sum(decision.size for decision in self.decisions if decision.goes)
        return gone + sum(one.size for one in self.unfinished)


class ArtifactReferences(msgspec.Struct, frozen=True, kw_only=True):
    """What points to artifacts, each by name, platform and id."""

    tagged: dict[tuple[str, str, str], list[str]]
    installed: dict[tuple[str, str, str], list[str]]
    """The hosts that have it."""


def plan_prune(
    registry: Registry, scope: Scope, policy: RetentionPolicy, now: datetime
) -> PrunePlan:
    """Decide what goes; nothing is removed, and no manifest is read.

    Raises IntegrityError when a tag cannot be read: then it is unknown what it keeps; NotFound
    for an environment that is not there.
    """
    found = list_inventory(registry)
    unfinished = tuple(_unfinished(registry, scope, now - policy.under_way))
    # Of an environment whose first push broke off, nothing but uploads may be there.
    if not unfinished:
        require_known(found, registry, scope.names)
    tagged = _tagged(registry, found, scope)
    fleet = read_fleet(registry)
    for key, why in fleet.damaged.items():
        log.warning("%s is not used, what that host has is unknown: %s", key, why)
    installed = hosts_of_artifacts(fleet.reports, now, policy.reported_within)
    groups: dict[tuple[str, str], list[Folder]] = {}
    for folder in found.folders:
        if scope.has(folder.name, folder.platform):
            groups.setdefault((folder.name, folder.platform), []).append(folder)
    users = ArtifactReferences(tagged=tagged, installed=installed)
    decisions = [
        decision for group in groups.values() for decision in _decide(group, users, policy, now)
    ]
    return PrunePlan(
        decisions=tuple(decisions),
        unfinished=unfinished,
        under_way=policy.under_way,
    )


def carry_out(registry: Registry, plan: PrunePlan, *, progress: Progress) -> PrunePlan:
    """Remove what a plan says, and return what became of it: what was tagged since then stays."""
    # This is also the age from which the mark of an interrupted removal is taken over.
    seconds = plan.under_way.total_seconds()

    def remove(decision: PruneDecision) -> PruneDecision:
        if not decision.goes:
            return decision
        # By name only: which files there are, and which tags, is looked at again under the mark.
        folder = Folder(decision.name, decision.platform, decision.id)
        obstacle = remove_artifact(registry, folder, seconds)
        if obstacle is None:
            return decision
        return replace(decision, goes=False, reason=obstacle)

    with progress.task(f"prune {registry.url}"), Workers(REMOVERS, "prune") as pool:
        decisions = tuple(pool.map(remove, plan.decisions))
        # By folder: a store removes all uploads below a prefix that are old enough.
        for folder in sorted({one.key.rpartition("/")[0] + "/" for one in plan.unfinished}):
            registry.store.delete_unfinished(folder, seconds)
    return PrunePlan(decisions=decisions, unfinished=plan.unfinished, under_way=plan.under_way)


def _tagged(
    registry: Registry, found: Inventory, scope: Scope
) -> dict[tuple[str, str, str], list[str]]:
    """Return the tags of each artifact that has any."""
    names = [tag for tag in found.tags if scope.has(tag.name, tag.platform)]
    keys = [tag_key(tag.name, tag.platform, tag.tag) for tag in names]
    with Workers(8, "prune") as pool:
        records = list(pool.map(lambda key: find_tag(registry, key), keys))
    tagged: dict[tuple[str, str, str], list[str]] = {}
    for name, record in zip(names, records, strict=True):
        if record:
            tagged.setdefault((name.name, name.platform, record.id), []).append(name.tag)
    return tagged


def _decide(
    group: list[Folder],
    users: ArtifactReferences,
    policy: RetentionPolicy,
    now: datetime,
) -> Iterator[PruneDecision]:
    """Yield what becomes of all artifacts of one environment on one platform, the newest first."""
    rank = 0
    for folder in sorted(group, key=lambda one: one.published or one.touched, reverse=True):
        reason = _why_kept(folder, users, policy, now)
        # What cannot be installed must not take one of the places that --keep-last gives.
        counts = folder.published is not None and not folder.is_being_pruned
        if not reason and counts and rank < (policy.keep_last or 0):
            reason = f"among the last {policy.keep_last}"
        # Also those that other rules keep: --keep-last 3 means the newest three.
        rank += counts
        goes = not reason and (policy.has_rule or not folder.published or folder.is_being_pruned)
        yield PruneDecision(
            name=folder.name,
            platform=folder.platform,
            id=folder.id,
            size=folder.size,
            published=folder.published,
            goes=goes,
            reason=reason or (_why_gone(folder) if goes else "no rule removes it"),
        )


def _why_kept(
    folder: Folder, users: ArtifactReferences, policy: RetentionPolicy, now: datetime
) -> str:
    """Return the rule that keeps an artifact whatever its rank is, or nothing."""
    # What has begun is completed; `remove_artifact` still looks for tags.
    if folder.is_being_pruned:
        return ""
    artifact = (folder.name, folder.platform, folder.id)
    if tags := users.tagged.get(artifact):
        return f"tagged {', '.join(tags)}"
    if hosts := users.installed.get(artifact):
        more = f" and {len(hosts) - 1} more" if len(hosts) > 1 else ""
        return f"installed on {hosts[0]}{more}"
    age = now - (folder.published or folder.touched)
    if age < policy.under_way:
        hours = f"{policy.under_way / timedelta(hours=1):g} h"
        return f"{'published' if folder.published else 'written to'} less than {hours} ago"
    if folder.published and policy.keep_within is not None and age < policy.keep_within:
        return "within the age to keep"
    return ""


def _why_gone(folder: Folder) -> str:
    if folder.is_being_pruned:
        return "an interrupted removal"
    return "no rule keeps it" if folder.published else "an interrupted push"


def _unfinished(registry: Registry, scope: Scope, before: datetime) -> Iterator[Unfinished]:
    found = (registry.store.list_unfinished(top) for top in (ENVS, TAGS))
    for listed in chain.from_iterable(found):
        names = listed.key.split("/")
        # `v1/envs/NAME/PLATFORM/…`: only such keys say to which environment an upload belongs.
        if listed.modified <= before and len(names) > 4 and scope.has(names[2], names[3]):
            yield Unfinished(key=listed.key, size=listed.size, began=listed.modified)
