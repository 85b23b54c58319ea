"""The commands `envferry cache`: ls, verify, prune."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from envferry.base.text import human_bytes, plural
from envferry.cli.shared.command import NoOptions, command, option
from envferry.cli.shared.shared_options import DryRunOptions
from envferry.cli.shared.terminal import table
from envferry.config import settings
from envferry.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envferry.build.cache_upkeep import CachedIndex, CacheEntry
    from envferry.cli.shared.console import Console

KEEP_DAYS = 30


@click.group()
def cache() -> None:
    """Manage the download cache, which all builds on this machine share."""


@command(NoOptions, group=cache)
def ls(console: Console, _: NoOptions) -> None:
    """List the downloads and the channel indexes, the most recently used first."""
    from envferry.build.cache_upkeep import list_entries, list_indexes

    entries, indexes = list_entries(downloads_dir()), list_indexes(indexes_dir())
    console.result([*entries, *indexes], lambda: [*entry_lines(entries), *index_lines(indexes)])


@command(NoOptions, group=cache)
def verify(console: Console, _: NoOptions) -> None:
    """Verify every download and remove damaged ones; the next build downloads them again."""
    from envferry.build.cache_upkeep import list_entries, verify_entries

    root = downloads_dir()
    entries = list_entries(root)
    total = sum(entry.size for entry in entries)
    with console.progress.task(f"verify {len(entries)} downloads", total) as advance:
        damaged = verify_entries(root, advance)
    if damaged:
        names = "\n  ".join(entry.path.name for entry in damaged)
        count = f"{len(damaged)} of {plural(len(entries), 'download')}"
        msg = f"{count} were damaged and removed:\n  {names}"
        raise IntegrityError(
            msg,
            hint="build again to download them, and check this disk",
        )
    console.result(
        entries, lambda: [f"{plural(len(entries), 'download')}, {human_bytes(total)}: all intact"]
    )


class CachePruneOptions(DryRunOptions):
    """What to keep."""

    keep_days: int = option(
        "--keep-days",
        type=click.IntRange(0),
        default=KEEP_DAYS,
        show_default=True,
        metavar="N",
        help="Keep downloads used in the last N days; 0 removes all.",
    )


@command(CachePruneOptions, group=cache)
def prune(console: Console, options: CachePruneOptions) -> None:
    """Remove downloads and indexes not used recently, and what interrupted builds left behind."""
    from envferry.build.cache_upkeep import (
        DAY_SECONDS,
        prune_entries,
        prune_indexes,
        remove_leftovers,
    )

    oldest = time.time() - options.keep_days * DAY_SECONDS
    builds, dry_run = settings().cache_dir / "builds", options.dry_run
    pruned = prune_entries(downloads_dir(), older_than=oldest, dry_run=dry_run)
    indexes = prune_indexes(indexes_dir(), older_than=oldest, dry_run=dry_run)
    leftovers = list(remove_leftovers(builds, dry_run=dry_run))
    verb = "would remove" if dry_run else "removed"
    lines = [f"{verb} {plural(pruned.files, 'download')}, {human_bytes(pruned.size)}"]
    if indexes.files:
        files = plural(indexes.files, "file")
        lines.append(f"{verb} {files} of channel indexes, {human_bytes(indexes.size)}")
    lines += [f"{verb} {path}" for path in leftovers]
    show = console.preview if dry_run else console.result
    show({"downloads": pruned, "indexes": indexes, "leftovers": leftovers}, lambda: lines)


def downloads_dir() -> Path:
    """Return where the cache is."""
    return settings().cache_dir / "downloads"


def indexes_dir() -> Path:
    """Return where the indexes of channels are."""
    return settings().cache_dir / "repodata"


def index_lines(indexes: list[CachedIndex]) -> Iterator[str]:
    """Yield a table of indexes and their sum; nothing where there are none."""
    if not indexes:
        return
    rows = [
        (item.url, human_bytes(item.size), time.strftime("%Y-%m-%d", time.localtime(item.used)))
        for item in indexes
    ]
    yield from table(("INDEX", "SIZE", "USED"), rows, right=(1,))
    total = human_bytes(sum(item.size for item in indexes))
    yield f"{len(indexes)} indexes of channels, {total}, in {indexes_dir()}"


def entry_lines(entries: list[CacheEntry]) -> Iterator[str]:
    """Yield a table of downloads and their sum."""
    rows = [
        (
            entry.path.name,
            human_bytes(entry.size),
            time.strftime("%Y-%m-%d", time.localtime(entry.used)),
            f"{entry.algorithm}:{entry.digest[:12]}",
        )
        for entry in entries
    ]
    yield from table(("FILE", "SIZE", "USED", "HASH"), rows, right=(1,))
    total = human_bytes(sum(entry.size for entry in entries))
    yield f"{plural(len(entries), 'download')}, {total}, in {downloads_dir()}"
