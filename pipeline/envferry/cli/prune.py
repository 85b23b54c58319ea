"""The command prune: remove what no rule keeps in a registry."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import click

from envferry.base.text import human_bytes, plural
from envferry.cli.shared.command import argument, command, option
from envferry.cli.shared.shared_options import DryRunOptions, RegistryOptions
from envferry.cli.shared.terminal import table
from envferry.cli.shared.time_spans import parse_age
from envferry.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.cli.shared.console import Console
    from envferry.registry.prune import PrunePlan


class PruneOptions(DryRunOptions, RegistryOptions):
    """What to keep, and where."""

    names: tuple[str, ...] = argument(nargs=-1, metavar="[NAME]...")
    keep_last: int | None = option(
        "--keep-last",
        type=click.IntRange(min=1),
        metavar="N",
        help="Keep the newest N of each environment and platform.",
    )
    keep_within: timedelta | None = option(
        "--keep-within",
        callback=parse_age,
        metavar="AGE",
        help="Keep artifacts published within AGE: 12h, 90d, 8w.",
    )
    keep_tagged: bool = option(
        "--keep-tagged",
        is_flag=True,
        help="Remove everything untagged (tagged artifacts always stay).",
    )
    platform: str | None = option(
        "--platform", metavar="PLATFORM", help="Only artifacts for this platform."
    )
    hours: float = option(
        "--hours",
        type=click.FloatRange(min=0),
        default=24.0,
        show_default=True,
        help="Leave uploads younger than this: a push may still be running.",
    )
    reported_within: timedelta = option(
        "--reported-within",
        callback=parse_age,
        metavar="AGE",
        default="30d",
        show_default=True,
        help="Keep what a host has, if it reported so within AGE (`envferry fleet`).",
    )
    delete: bool = option(
        "--delete",
        "-y",
        "--yes",
        is_flag=True,
        help="Remove; default: only list what would be removed.",
    )


@command(PruneOptions)
def prune(console: Console, options: PruneOptions) -> None:
    """List what can be removed from the registry, or from environments NAME; --delete removes it.

    Removes what interrupted pushes left and the artifacts that no rule keeps. Without a rule no
    artifact is removed; tagged ones never are, nor what a host has that reports to the registry.
    Pushes may run at the same time.
    """
    from envferry.registry import Registry
    from envferry.registry.prune import RetentionPolicy, Scope, carry_out, plan_prune

    if options.delete and options.dry_run:
        message = "--delete and --dry-run cannot be combined"
        raise UsageError(message, hint="leave out both to list what would be removed")
    place = Registry.open(options.registry)
    policy = RetentionPolicy(
        keep_last=options.keep_last,
        keep_within=options.keep_within,
        keep_tagged=options.keep_tagged,
        under_way=timedelta(hours=options.hours),
        reported_within=options.reported_within,
    )
    scope = Scope(names=options.names, platform=options.platform)
    plan = plan_prune(place, scope, policy, datetime.now(timezone.utc))
    if options.delete:
        plan = carry_out(place, plan, progress=console.progress)
    result = {
        "registry": place.url,
        "deleted": options.delete,
        "bytes": plan.size,
        "artifacts": plan.decisions,
        "unfinished": plan.unfinished,
    }
    console.result(result, lambda: plan_lines(plan, has_deleted=options.delete))


def plan_lines(plan: PrunePlan, *, has_deleted: bool) -> Iterator[str]:
    """Yield what goes and what stays, and why."""
    gone = "removed" if has_deleted else "goes"
    rows = [
        (
            gone if decision.goes else "stays",
            f"{decision.name}@{decision.id}",
            decision.platform,
            f"{decision.published:%Y-%m-%d %H:%M}" if decision.published else "never published",
            human_bytes(decision.size),
            decision.reason,
        )
        for decision in plan.decisions
    ]
    if rows:
        headers = ("", "ARTIFACT", "PLATFORM", "PUBLISHED", "SIZE", "WHY")
        yield from table(headers, rows, right=(4,))
    for one in plan.unfinished:
        size = human_bytes(one.size)
        yield f"{gone}: unfinished upload of {one.key}, {size}, begun {one.began:%Y-%m-%d %H:%M}"
    count = sum(decision.goes for decision in plan.decisions)
    what = f"{plural(count, 'artifact')} and {plural(len(plan.unfinished), 'unfinished upload')}"
    if has_deleted:
        yield f"removed {what}: {human_bytes(plan.size)}"
    elif plan.size or count or plan.unfinished:
        yield f"{what} would be removed: {human_bytes(plan.size)}; remove with --delete"
    else:
        yield "nothing to remove"
