"""The command remove: old installations, or all of an environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from envferry.base.text import plural
from envferry.cli.shared.command import argument, command, option
from envferry.cli.shared.completions import complete_installed
from envferry.cli.shared.hooks import run_hooks
from envferry.cli.shared.host_report import report_host
from envferry.cli.shared.installations import home_of
from envferry.cli.shared.shared_options import DryRunOptions, EnvsDirOptions
from envferry.errors import EXIT_INTERRUPTED, UsageError
from envferry.install.records.actor import current_actor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.cli.shared.console import Console
    from envferry.install.records.env_home import EnvHome
    from envferry.install.records.installation import Installation
    from envferry.install.remove import Removal


KEPT = 2


"""Installations that `remove` keeps: the current one, and one to go back to."""


class RemoveOptions(DryRunOptions, EnvsDirOptions):
    """What to remove."""

    name: str = argument(metavar="NAME[@ID]", shell_complete=complete_installed)
    keep: int | None = option(
        "--keep",
        type=click.IntRange(min=1),
        metavar="N",
        help=f"Keep the N installations that were current last; default: {KEPT}.",
    )
    whole: bool = option(
        "--all", is_flag=True, help="Remove the environment with its current installation."
    )
    assume_unused: bool = option(
        "--assume-unused",
        is_flag=True,
        help="Also remove what processes that this user cannot inspect may be using.",
    )
    yes: bool = option(
        "-y", "--yes", is_flag=True, help="Do not ask; without a terminal it never asks."
    )


@command(RemoveOptions)
def remove(console: Console, options: RemoveOptions) -> int:
    """Remove old installations of NAME, or the one with that ID, or all of NAME.

    Keeps what a process is using, and the current installation unless --all is given. Where
    neither /proc nor the file system can tell whether an installation is in use, as in a container
    on a shared volume, it is kept, too.
    """
    home, id_ = home_of(options.name, options.envs_dir)
    if [bool(id_), options.keep is not None, options.whole].count(True) > 1:
        message = "an ID, --keep and --all cannot be combined"
        raise UsageError(message, hint="give only one of them")
    if options.whole and not (options.yes or options.dry_run) and not is_sure(console, home):
        console.note("nothing was removed")
        return EXIT_INTERRUPTED
    # Read first, as hooks are told of records that are gone by then.
    before = records_of(home)
    removal = remove_from(home, id_, options)
    if options.dry_run:
        console.preview(removal, lambda: describe_removal(removal, verb="would remove"))
    else:
        console.result(removal, lambda: describe_removal(removal))
        report_host(options.envs_dir)
        for one in removal.removed:
            if one in before:
                run_hooks("remove", before[one], options.envs_dir)
    return 0


def records_of(home: EnvHome) -> dict[str, Installation]:
    """Return the records that can be read, by id."""
    from envferry.install.records.installed import all_installations

    return {record.id: record for one, record in all_installations(home) if one.name == home.name}


def remove_from(home: EnvHome, id_: str | None, options: RemoveOptions) -> Removal:
    """Remove what the options name, or find out what that is."""
    from envferry.install.remove import remove_named, remove_old, remove_whole

    assume_unused, dry_run = options.assume_unused, options.dry_run
    if options.whole:
        return remove_whole(home, assume_unused=assume_unused, dry_run=dry_run)
    if id_:
        return remove_named(
            home, id_, assume_unused=assume_unused, dry_run=dry_run, actor=current_actor()
        )
    keep = options.keep or KEPT
    return remove_old(
        home, keep, assume_unused=assume_unused, dry_run=dry_run, actor=current_actor()
    )


def is_sure(console: Console, home: EnvHome) -> bool:
    """Ask before a whole environment is removed, if there is a terminal."""
    count = len(list(home.installations()))
    return console.confirm(f"Remove {home.name} and its {plural(count, 'installation')}?")


def describe_removal(removal: Removal, verb: str = "removed") -> Iterator[str]:
    """Yield what was removed and what was not."""
    for id_ in removal.removed:
        yield f"{verb} {removal.name}@{id_}"
    for id_, reason in removal.kept.items():
        yield f"kept    {removal.name}@{id_}: {reason}"
