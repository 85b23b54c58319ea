"""The command group `envferry channel`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from envferry.cli.options import common_options
from envferry.config import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.channel.creation import ChannelSummary
    from envferry.cli.console import Console


@click.group()
def channel() -> None:
    """Make a conda channel out of interpreters and wheels."""


@channel.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("items", nargs=-1, metavar="[WHEEL|REQUIREMENT]...")
@click.option(
    "--python", "pythons", multiple=True, metavar="EXE",
    help="An interpreter to package; repeatable; the one that runs envferry by default.",
)  # fmt: skip
@common_options
def create(
    console: Console, directory: Path, items: tuple[str, ...], pythons: tuple[str, ...]
) -> None:
    """Make the conda channel DIRECTORY out of interpreters, wheel files and requirements.

    A requirement brings its dependencies with it. What is in the channel already stays.
    """
    from envferry.build.downloads import DownloadCache
    from envferry.channel.creation import ChannelRequest, create_channel

    summary = create_channel(
        ChannelRequest(
            directory=directory,
            pythons=pythons,
            arguments=items,
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
    there = f", {len(summary.unchanged)} were there already" if summary.unchanged else ""
    yield f"{summary.directory}: {len(summary.added)} packages added{there}"
    if summary.missing:
        yield f"not in this channel, though its packages want them: {', '.join(summary.missing)}"
    yield f"use it: envferry lock SPEC --channel {summary.directory}"
