"""Make an installation the current one, and write down how its checks ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.errors import CheckFailed
from envferry.install.activation import make_current
from envferry.install.programs.integrations import change_integrations
from envferry.install.records.events import note_event
from envferry.install.records.last_results import LastChecked, note_checked

if TYPE_CHECKING:
    from envferry.install.plan import InstallOptions
    from envferry.install.programs.integrations import Integrations
    from envferry.install.records.env_home import EnvHome
    from envferry.install.records.installation import Installation
    from envferry.progress import Progress


def switch_to(
    home: EnvHome,
    installation: Installation,
    options: InstallOptions,
    integrations: Integrations,
    progress: Progress,
) -> None:
    """Make an installation current after its checks; write down how these ended."""
    actor, id_ = options.actor, installation.id
    # Asked now: afterwards it is current in any case.
    was_current = home.current_id() == id_
    try:
        has_passed = make_current(home, installation, progress, check=options.check)
    except CheckFailed as error:
        note_event(home, actor, "checks failed", id_, error.check)
        note_checked(home, id_, LastChecked(time=actor.time, passed=False, failed=error.check))
        raise
    if has_passed:
        note_checked(home, id_, LastChecked(time=actor.time, passed=True))
    # To install again what is current changes nothing, so the history gets no line for it.
    if not was_current:
        note_event(home, actor, "current", id_)
    # After the checks: kernel and modulefile describe the installation that is current by then.
    change_integrations(home, integrations)
