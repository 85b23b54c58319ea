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
    from envferry.build.wheel_store_upkeep import StoredPart
    from envferry.cli.shared.console import Console

KEEP_DAYS = 30


@click.group()
def cache() -> None:
    """Manage the download cache, which all builds on this machine share."""


@command(NoOptions, group=cache)
def ls(console: Console, _: NoOptions) -> None:
    """List downloads, channel indexes and extracted wheels, the most recently used first."""
    from envferry.build.cache_upkeep import list_entries, list_indexes
    from envferry.build.wheel_store_upkeep import list_parts

    entries, indexes = list_entries(downloads_dir()), list_indexes(indexes_dir())
    parts = list_parts(downloads_dir())
    console.result(
        [*entries, *indexes, *parts],
        lambda: [*entry_lines(entries), *index_lines(indexes), *part_lines(parts)],
    )


@command(NoOptions, group=cache)
def verify(console: Console, _: NoOptions) -> None:
    """Verify all downloads and extracted wheels; the next build makes again what it removes."""
    from envferry.build.cache_upkeep import list_entries, verify_entries
    from envferry.build.wheel_store_upkeep import list_parts, verify_parts

    root = downloads_dir()
    entries, parts = list_entries(root), list_parts(root)
    total, size = sum(entry.size for entry in entries), sum(part.size for part in parts)
    with console.progress.task(f"verify {len(entries)} downloads", total) as advance:
        damaged = [entry.path.name for entry in verify_entries(root, advance)]
    files = plural(len(entries), "download")
    lines = [f"{files}, {human_bytes(total)}: all intact"]
    if parts:
        with console.progress.task("verify extracted wheels", size) as advance:
            damaged += [f"{part.name} ({part.kind})" for part in verify_parts(root, advance)]
        lines.append(f"extracted wheels, {human_bytes(size)}: all intact")
        files += " and extracted wheels"
    if damaged:
        names = "\n  ".join(damaged)
        msg = f"{len(damaged)} of {files} were damaged and removed:\n  {names}"
        raise IntegrityError(
            msg,
            hint="build again to download them, and check this disk",
        )
    console.result([*entries, *parts], lambda: lines)


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
    """Remove what was not used recently, and what interrupted builds left behind."""
    from envferry.build.cache_upkeep import (
        DAY_SECONDS,
        prune_entries,
        prune_indexes,
        remove_leftovers,
    )
    from envferry.build.wheel_store_upkeep import prune_wheels

    oldest = time.time() - options.keep_days * DAY_SECONDS
    builds, dry_run = settings().cache_dir / "builds", options.dry_run
    pruned = prune_entries(downloads_dir(), older_than=oldest, dry_run=dry_run)
    indexes = prune_indexes(indexes_dir(), older_than=oldest, dry_run=dry_run)
    leftovers = list(remove_leftovers(builds, dry_run=dry_run))
    # Last: a killed build may have had links to them.
    wheels = prune_wheels(downloads_dir(), older_than=oldest, dry_run=dry_run)
    verb = "would remove" if dry_run else "removed"
    lines = [f"{verb} {plural(pruned.files, 'download')}, {human_bytes(pruned.size)}"]
    if indexes.files:
        files = plural(indexes.files, "file")
        lines.append(f"{verb} {files} of channel indexes, {human_bytes(indexes.size)}")
    if wheels.files:
        count = plural(wheels.files, "part")
        lines.append(f"{verb} {count} of extracted wheels, {human_bytes(wheels.size)}")
    lines += [f"{verb} {path}" for path in leftovers]
    show = console.preview if dry_run else console.result
    found = {"downloads": pruned, "indexes": indexes, "leftovers": leftovers, "wheels": wheels}
    show(found, lambda: lines)


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


def part_lines(parts: list[StoredPart]) -> Iterator[str]:
    """Yield a line about extracted wheels; nothing where there are none."""
    if parts:
        wheels = [part for part in parts if part.kind == "wheel"]
        unused = human_bytes(sum(part.size for part in parts if not part.is_linked))
        size = human_bytes(sum(part.size for part in parts))
        count = plural(len(wheels), "extracted wheel")
        yield f"{count}, {size} with byte code; no build uses {unused} of that"


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
