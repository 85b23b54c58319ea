"""The checks of what is installed already: later, or where its path is right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from envferry.errors import CheckFailed, HostError
from envferry.install.activation import namespace_command
from envferry.install.programs.check_runner import CheckedTree, run_checks
from envferry.install.records.installed import chosen_id, is_at_its_prefix, require_mounted
from envferry.install.records.last_results import LastChecked, note_checked

if TYPE_CHECKING:
    from envferry.install.records.env_home import EnvHome
    from envferry.install.records.installation import Installation
    from envferry.progress import Progress


def check_installed(
    home: EnvHome, id_: str | None, *, time: str, progress: Progress
) -> Installation:
    """Run the checks of an installation where it is; note how they ended.

    Raises CheckFailed at the first that fails, HostError where its path leads to something else.
    """
    installation = home.installation(chosen_id(home, id_))
    require_mounted(home, installation)
    checked = CheckedTree(
        prefix=installation.prefix,
        tree=home.tree(installation.id),
        # Nothing follows from a failure here: what is current stays current.
        outcome="",
        hint=f"`envferry verify {home.name}` compares its files with what was installed",
    )
    # Where the path leads to this tree, no mount namespace is needed, which most containers
    # forbid.
    if not is_at_its_prefix(home, installation):
        checked = replace(checked, view=required_view(home, installation))
    try:
        run_checks(installation.checks, checked, progress)
    except CheckFailed as error:
        failed = LastChecked(time=time, passed=False, failed=error.check)
        note_checked(home, installation.id, failed)
        raise
    note_checked(home, installation.id, LastChecked(time=time, passed=True))
    return installation


def required_view(home: EnvHome, installation: Installation) -> tuple[str, ...]:
    """Return what shows an earlier installation at its place; raise HostError if nothing does."""
    shown = f"{home.name}@{installation.id}"
    if installation.prefix != str(home.link):
        message = (
            f"{shown} is installed for {installation.prefix}, which is not this installation here"
        )
        raise HostError(message, hint="run it where it has that path, such as in the container")
    view = namespace_command(home, installation.id)
    if not view:
        message = f"{shown} is not current, so it is not visible at {home.link}"
        raise HostError(
            message, hint=f"run `envferry rollback {home.name} {installation.id}` first"
        )
    return view
