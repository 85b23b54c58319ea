"""The command du: the disk space that installations take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.base.text import human_bytes
from envferry.cli.shared.command import command
from envferry.cli.shared.shared_options import EnvsDirOptions
from envferry.cli.shared.terminal import table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.cli.shared.console import Console
    from envferry.install.host.disk_usage import DirectoryUsage


@command(EnvsDirOptions)
def du(console: Console, options: EnvsDirOptions) -> None:
    """Show the disk space that all installations take; shared files are counted once.

    Hard links are recognised, reflinks are not: on file systems that have them the sum is what the
    installations would take without them.
    """
    from envferry.install.host.disk_usage import measure_directory

    usage = measure_directory(options.envs_dir.absolute())
    console.result(usage, lambda: usage_lines(usage))


def usage_lines(usage: DirectoryUsage) -> Iterator[str]:
    """Yield the table of installations and the sums."""
    rows = [
        (one.name, one.id, human_bytes(one.own), human_bytes(one.shared))
        for one in usage.installations
    ]
    if rows:
        yield from table(("NAME", "ID", "OWN", "SHARED"), rows, right=(2, 3))
    if usage.unfinished:
        yield f"{human_bytes(usage.unfinished)} of interrupted or running commands"
    yield (
        f"{human_bytes(usage.total)} in {usage.envs_dir}, shared files counted once; "
        f"{human_bytes(usage.free)} free"
    )
