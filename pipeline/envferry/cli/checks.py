"""The command checks: run the checks of an installed environment again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.base.text import plural
from envferry.cli.shared.command import argument, command
from envferry.cli.shared.completions import complete_installed
from envferry.cli.shared.installations import home_of
from envferry.cli.shared.shared_options import EnvsDirOptions
from envferry.install.records.actor import utc_now

if TYPE_CHECKING:
    from envferry.cli.shared.console import Console


class ChecksOptions(EnvsDirOptions):
    """Which installation to check."""

    name: str = argument(metavar="NAME[@ID]", shell_complete=complete_installed)


@command(ChecksOptions)
def checks(console: Console, options: ChecksOptions) -> None:
    """Run the checks of an installation again, the current one of NAME or NAME@ID.

    An install from outside of a container, for the path inside it, cannot run them: run this
    command inside, where the environment has its path.
    """
    from envferry.install.later_checks import check_installed

    home, id_ = home_of(options.name, options.envs_dir)
    record = check_installed(home, id_, time=utc_now(), progress=console.progress)
    count = len(record.checks.argvs(record.prefix))
    shown = f"{home.name}@{record.id}"
    facts = {"name": home.name, "id": record.id, "passed": count}
    line = f"{shown}: {plural(count, 'check')} passed" if count else f"{shown} has no checks"
    console.result(facts, lambda: [line])
