"""The command `envferry stats`: how often artifacts are fetched, by access logs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from envferry.base.text import human_bytes, plural
from envferry.cli.shared.command import CommandOptions, argument, command, option
from envferry.cli.shared.terminal import table
from envferry.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from envferry.cli.shared.console import Console
    from envferry.stats.download_counts import Downloads


class StatsOptions(CommandOptions):
    """Which logs to count."""

    logs: tuple[Path, ...] = argument(
        metavar="LOG...", nargs=-1, required=True, type=click.Path(path_type=Path)
    )
    by_name: bool = option(
        "--by-name", is_flag=True, help="Total the artifacts of each environment."
    )


@command(StatsOptions)
def stats(console: Console, options: StatsOptions) -> None:
    """Count how often artifacts were fetched, by the access LOGs of what serves the registry.

    Logs of Apache and nginx (common or combined format) and of S3; `.gz` is unpacked. What one
    client gets of one archive on one day is one download. Clients are counted and not named, and
    nothing is sent anywhere.
    """
    from envferry.stats.access_log import read_log
    from envferry.stats.download_counts import DownloadCounter

    tally = DownloadCounter()
    for path in options.logs:
        tally.count(read_log(path))
    # Single lines may be odd; where all are, it is another kind of file.
    if tally.lines and tally.not_understood == tally.lines:
        message = f"none of the {plural(tally.lines, 'line')} is that of an access log"
        raise UsageError(message, hint="name logs in the common, combined or S3 format")
    if tally.not_understood:
        console.note(f"{plural(tally.not_understood, 'line')} not understood, of {tally.lines}")
    found = tally.result(by_name=options.by_name)
    console.result(found, lambda: stats_lines(found))


def stats_lines(found: Sequence[Downloads]) -> Iterable[str]:
    """Return the table of downloads."""
    if not found:
        return ["no archive was fetched"]
    rows = [
        (
            f"{one.name}@{one.id}" if one.id else one.name,
            *(one.platform, one.downloads, one.clients, human_bytes(one.sent)),
            *(one.first, one.last),
        )
        for one in found
    ]
    headers = ("ARTIFACT", "PLATFORM", "DOWNLOADS", "CLIENTS", "SENT", "FIRST", "LAST")
    return table(headers, rows, right=(2, 3, 4))
