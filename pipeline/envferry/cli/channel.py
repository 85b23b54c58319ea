"""The command group `envferry channel`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from envferry.base.text import plural
from envferry.cli.shared.command import CommandOptions, argument, command, option
from envferry.config import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.channel.creation import ChannelSummary
    from envferry.cli.shared.console import Console


@click.group()
def channel() -> None:
    """Create a conda channel from interpreters and wheels."""


class CreateOptions(CommandOptions):
    """What goes into a channel."""

    directory: Path = argument(type=click.Path(path_type=Path))
    items: tuple[str, ...] = argument(nargs=-1, metavar="[WHEEL|REQUIREMENT]...")
    pythons: tuple[str, ...] = option(
        "--python",
        multiple=True,
        metavar="EXE",
        help="An interpreter to package; repeatable; default: the one that runs envferry.",
    )


@command(CreateOptions, group=channel)
def create(console: Console, options: CreateOptions) -> None:
    """Create the conda channel DIRECTORY from interpreters, wheel files and requirements.

    A requirement brings its dependencies. Packages that are already in the channel stay.
    """
    from envferry.build.downloads import DownloadCache
    from envferry.channel.creation import ChannelRequest, create_channel

    summary = create_channel(
        ChannelRequest(
            directory=options.directory,
            pythons=options.pythons,
            arguments=options.items,
            source_date_epoch=settings().source_date_epoch,
        ),
        cache=DownloadCache(settings().cache_dir / "downloads"),
        progress=console.progress,
    )
    console.result(summary, lambda: summary_lines(summary))


def summary_lines(summary: ChannelSummary) -> Iterator[str]:
    """Yield what became of a request, and how to use the channel."""
    for package in summary.added:
        yield f"  {package}"
    there = f", {len(summary.unchanged)} already present" if summary.unchanged else ""
    yield f"{summary.directory}: {plural(len(summary.added), 'package')} added{there}"
    if summary.missing:
        yield f"missing dependencies, to be had from other channels: {', '.join(summary.missing)}"
    yield f"next: envferry lock SPEC --channel {summary.directory}"
