"""The command rollback: an earlier installation becomes the current one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.cli.shared.command import argument, command
from envferry.cli.shared.completions import complete_installed
from envferry.cli.shared.hooks import run_hooks
from envferry.cli.shared.host_report import report_host
from envferry.cli.shared.shared_options import DryRunOptions, EnvsDirOptions
from envferry.install.records.actor import current_actor

if TYPE_CHECKING:
    from envferry.cli.shared.console import Console


class RollbackOptions(DryRunOptions, EnvsDirOptions):
    """Which environment to switch, and to what."""

    name: str = argument(shell_complete=complete_installed)
    wish: str | None = argument(metavar="[ID|BACK]", required=False)


@command(RollbackOptions)
def rollback(console: Console, options: RollbackOptions) -> None:
    """Switch NAME to the previous installation, or to another; run again to undo.

    ID may be the beginning of an id, four digits at least. BACK is a number that `envferry history
    NAME` shows: 1 is the previous installation.
    """
    from envferry.install.activation import roll_back
    from envferry.install.records.env_home import EnvHome

    home = EnvHome.of(options.envs_dir, options.name)
    actor = current_actor()
    installation = roll_back(home, options.wish, dry_run=options.dry_run, actor=actor)
    shown = f"{options.name}@{installation.id}"
    if options.dry_run:
        now = home.current_id() or "nothing"
        line = f"{options.name} would switch from {now} to {installation.id}"
        console.preview(installation, lambda: [line])
        return
    console.result(installation, lambda: [f"{shown} is current: {options.envs_dir / options.name}"])
    report_host(options.envs_dir)
    run_hooks("rollback", installation, options.envs_dir)
