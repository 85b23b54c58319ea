"""The command group `envferry channel`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.options import common_options
from pipeline.config import settings

if TYPE_CHECKING:
    from pipeline.cli.console import Console


@click.group()
def channel() -> None:
    """Make a conda channel out of interpreters and wheels."""


@channel.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("items", nargs=-1, metavar="[WHEEL|REQUIREMENT]...")
@click.option(
    "--python", "pythons", multiple=True, type=click.Path(path_type=Path), metavar="EXE",
    help="An interpreter to package; repeatable; the one that runs envferry by default.",
)  # fmt: skip
@common_options
def create(
    console: Console, directory: Path, items: tuple[str, ...], pythons: tuple[Path, ...]
) -> None:
    """Make the conda channel DIRECTORY out of interpreters, wheel files and requirements.

    A requirement brings its dependencies with it. What is in the channel already stays.
    """
    from pipeline.cache import DownloadCache
    from pipeline.channel.creation import ChannelRequest, create_channel

    summary = create_channel(
        ChannelRequest(directory=directory, pythons=pythons, items=items),
        cache=DownloadCache(settings().cache_dir / "downloads"),
        progress=console.progress,
    )
    console.result(summary, lambda: [str(summary)])
