"""Whether what is current is what an install would make, as records alone say it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from msgspec.structs import replace

from envferry.errors import PipelineError
from envferry.install.host.host_check import installed_findings
from envferry.install.host.status import checks_state, signature_state
from envferry.install.plan import recorded, wanted_prefix
from envferry.install.programs.integrations import read_integrations, wanted_integrations
from envferry.install.records.env_home import EnvHome
from envferry.install.records.events import read_events

if TYPE_CHECKING:
    from collections.abc import Collection

    from envferry.install.plan import InstallOptions
    from envferry.install.records.installation import Installation

log = logging.getLogger(__name__)


def settled_installation(name: str, options: InstallOptions) -> Installation | None:
    """Return what is current under a name, if an install of the same id would leave it so.

    By records: its checks have passed when they ran last, or never ran and are not asked for; no
    command that changed it was cut off, and path, kernel and modulefile are those that are wanted.
    The machine is looked at, the files are not. None in every doubt: a whole install says what is
    wrong, or repairs it.
    """
    home = EnvHome.of(options.envs_dir, options.name or name)
    current = home.current_id()
    there = recorded(home, current) if current else None
    # A mounted image may not be mounted since the last start of the machine.
    if there is None or there.unchecked or there.mounted or not home.tree(there.id).is_dir():
        return None
    checks, _ = checks_state(home, there)
    wanted = wanted_integrations(home, options.kernel_dir, options.modulefile_dir)
    noted = read_integrations(home)
    is_as_wanted = (
        there.prefix == wanted_prefix(home, options.prefix)
        and (checks in ("none", "passed") or (checks == "not run" and not options.check))
        and (noted.kernel_dir, noted.modulefile_dir) == (wanted.kernel_dir, wanted.modulefile_dir)
        and noted.written_for in (None, there.id)
    )
    return there if is_as_wanted and not _lacks(home, there.id, options.force) else None


def without_known_failures(name: str, id_: str, options: InstallOptions) -> InstallOptions:
    """Return options that leave out no check of what failed its checks on this host.

    Who leaves them out relies on those that passed elsewhere: where they ran here, and failed, they
    decide again whether it becomes current.
    """
    home = EnvHome.of(options.envs_dir, options.name or name)
    failed = None if options.check else _failed_check(home, id_)
    if failed is None:
        return options
    log.warning(
        "the checks of %s@%s run, although they are to be left out: `%s` failed on this host",
        home.name,
        id_,
        failed,
    )
    return replace(options, check=True)


def _failed_check(home: EnvHome, id_: str) -> str | None:
    """Return the check that failed when they ran last on this host; None where none is known to."""
    there = recorded(home, id_)
    checks, failed = checks_state(home, there) if there else ("not run", "")
    if checks != "not run":
        return failed if checks == "failed" else None
    # How they ended is removed with an installation, and one that failed is the first to go.
    outcomes = [
        event
        for event in read_events(home)
        if event.id == id_ and event.kind in ("current", "checks failed")
    ]
    return outcomes[-1].detail if outcomes and outcomes[-1].kind == "checks failed" else None


def _lacks(home: EnvHome, id_: str, forced: Collection[str]) -> bool:
    """Whether the machine lacks something that no option forces, or does not tell."""
    try:
        findings = installed_findings(home, id_)
    except (PipelineError, OSError) as error:
        log.info("%s@%s is looked at more closely: %s", home.name, id_, error)
        return True
    return any(name not in forced for name, _ in findings)


def is_signed_by(installation: Installation, trusted: Collection[str], least: int) -> bool:
    """Whether as many of those who are trusted now signed it as have to, by its record."""
    if signature_state(installation, trusted) != "trusted" or installation.origin is None:
        return False
    return len(set(installation.origin.signed_by) & set(trusted)) >= least
