"""The command history: what was installed, and current, when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.cli.shared.command import argument, command
from envferry.cli.shared.completions import complete_installed
from envferry.cli.shared.installations import home_of, minute
from envferry.cli.shared.shared_options import EnvsDirOptions
from envferry.cli.shared.terminal import table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.cli.shared.console import Console
    from envferry.install.host.host_overview import History


class HistoryOptions(EnvsDirOptions):
    """Whose history to show."""

    name: str = argument(shell_complete=complete_installed)


@command(HistoryOptions)
def history(console: Console, options: HistoryOptions) -> None:
    """Show the installations of NAME and what happened to them, for `envferry rollback NAME BACK`.

    BACK: how many installations back it is; 0 is the current one.
    """
    from envferry.install.host.host_overview import read_history

    found = read_history(home_of(options.name, options.envs_dir)[0])
    console.result(found, lambda: history_lines(found))


def history_lines(found: History) -> Iterator[str]:
    """Yield the installations, then what happened."""
    rows = [
        (
            "" if one.steps_back is None else one.steps_back,
            one.id,
            one.version or "",
            minute(one.origin.time) if one.origin else "",
            one.origin.user if one.origin else "",
            one.origin.ref if one.origin else "",
        )
        for one in found.installations
    ]
    yield from table(("BACK", "ID", "VERSION", "INSTALLED", "BY", "AS"), rows, right=(0,))
    if found.events:
        yield ""
        events = [
            (minute(one.time), one.id, one.kind, one.user, one.detail) for one in found.events
        ]
        yield from table(("TIME", "ID", "WHAT", "BY", ""), events, right=())
