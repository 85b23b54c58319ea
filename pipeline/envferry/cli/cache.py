"""The commands `envferry cache`: ls, verify, prune."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from envferry.base.files import human_bytes
from envferry.cli.command import NoOptions, command, option
from envferry.cli.terminal import table
from envferry.config import settings
from envferry.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envferry.build.cache import CachedIndex, CacheEntry
    from envferry.cli.console import Console

KEEP_DAYS = 30


@click.group()
def cache() -> None:
    """Look after the download cache, which all builds on this machine share."""


@command(NoOptions, group=cache)
def ls(console: Console, _: NoOptions) -> None:
    """List the downloads and the indexes of channels, those used last first."""
    from envferry.build.cache import list_entries, list_indexes

    entries, indexes = list_entries(downloads_dir()), list_indexes(indexes_dir())
    console.result([*entries, *indexes], lambda: [*entry_lines(entries), *index_lines(indexes)])


@command(NoOptions, group=cache)
def verify(console: Console, _: NoOptions) -> None:
    """Hash every download; remove those that are damaged: the next build fetches them again."""
    from envferry.build.cache import list_entries, verify_entries

    root = downloads_dir()
    entries = list_entries(root)
    total = sum(entry.size for entry in entries)
    with console.progress.task(f"verify {len(entries)} downloads", total) as advance:
        damaged = verify_entries(root, advance)
    if damaged:
        names = "\n  ".join(entry.path.name for entry in damaged)
        raise IntegrityError(
            f"{len(damaged)} of {len(entries)} downloads were damaged and are removed:\n  {names}",
            hint="build again with the network on; look at this disk",
        )
    console.result(entries, lambda: [f"{len(entries)} downloads, {human_bytes(total)}: all good"])


@dataclass(frozen=True, kw_only=True)
class CachePruneOptions:
    """What to keep."""

    keep_days: int = option(
        "--keep-days",
        type=click.IntRange(0),
        default=KEEP_DAYS,
        show_default=True,
        help="Keep what was used in the last days; 0 removes everything.",
    )


@command(CachePruneOptions, group=cache)
def prune(console: Console, options: CachePruneOptions) -> None:
    """Remove downloads and indexes that nothing used for long, and what killed builds left."""
    from envferry.build.cache import DAY_SECONDS, prune_entries, prune_indexes, remove_leftovers

    oldest = time.time() - options.keep_days * DAY_SECONDS
    pruned = prune_entries(downloads_dir(), older_than=oldest)
    indexes = prune_indexes(indexes_dir(), older_than=oldest)
    leftovers = list(remove_leftovers(settings().cache_dir / "builds"))
    lines = [f"removed {pruned.files} downloads, {human_bytes(pruned.size)}"]
    if indexes.files:
        lines.append(f"removed {indexes.files} files of indexes, {human_bytes(indexes.size)}")
    lines += [f"removed {path}" for path in leftovers]
    found = {"downloads": pruned, "indexes": indexes, "leftovers": leftovers}
    console.result(found, lambda: lines)


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
    yield f"{len(entries)} downloads, {total}, in {downloads_dir()}"
