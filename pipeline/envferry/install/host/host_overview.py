"""What is installed on a host, with all that is known of each installation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from envferry.errors import PipelineError
from envferry.install.host.disk_usage import measure_installation
from envferry.install.programs.in_use import look_for_users
from envferry.install.records.env_home import EnvHome
from envferry.install.records.events import Event, read_events
from envferry.install.records.installed import environment_names, not_installed
from envferry.install.records.last_results import InstallationState, read_state

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.install.records.installation import Installation, Origin


class InstalledFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One installation, as `list` shows it."""

    name: str
    id: str
    is_current: bool
    steps_back: int | None
    """0 for the current one; None for one that never was current."""
    version: str | None = None
    platform: str = ""
    prefix: str = ""
    files: int = 0
    size: int = 0
    """Bytes of its files, as the archive has them."""
    own_bytes: int = 0
    """On the disk, of files that no other installation has: of a mounted one, its image."""
    shared_bytes: int = 0
    """On the disk, of files that have names elsewhere, too."""
    origin: Origin | None = None
    """None for what envferry 0.2 and older installed."""
    state: InstallationState = msgspec.field(default_factory=InstallationState)
    users: dict[int, str] = msgspec.field(default_factory=dict)
    """The programs of the processes that use it, by process id."""
    perhaps_used: str = ""
    """Why there may be others."""
    problem: str = ""
    """What is wrong with its record."""


class History(msgspec.Struct, frozen=True, kw_only=True):
    """What was current when, and what else happened."""

    name: str
    current: str | None
    installations: tuple[InstalledFacts, ...]
    """Those that are here, the current one first."""
    events: tuple[Event, ...]
    """The newest last; envferry 0.2 and older wrote none."""


def list_installed(envs_dir: Path, name: str | None = None) -> list[InstalledFacts]:
    """Return all installations of an envs directory, or of one environment of it.

    Sizes are measured, and the processes of this machine looked at. Raises NotFound for a name that
    is not installed.
    """
    names = [name] if name else environment_names(envs_dir)
    found = []
    for one in names:
        home = EnvHome.of(envs_dir, one)
        rows = [measured(home, facts) for facts in facts_of(home)]
        if name and not rows:
            raise not_installed(home)
        found += rows
    return found


def read_history(home: EnvHome) -> History:
    """Return what happened to one environment; raise NotFound when it is not installed."""
    rows = facts_of(home)
    events = tuple(read_events(home))
    if not rows and not events:
        raise not_installed(home)
    return History(
        name=home.name, current=home.current_id(), installations=tuple(rows), events=events
    )


def facts_of(home: EnvHome) -> list[InstalledFacts]:
    """Return what the records say: the current one, those before it, those that never were."""
    positions = home.positions()
    others = sorted(path.stem for path in home.directory.glob("*.json"))
    ids = [*positions, *(id_ for id_ in others if id_ not in positions)]
    # As `rollback` counts: 0 is the current one, and stays free where there is none.
    first = 0 if home.current_id() else 1
    steps = {id_: number for number, id_ in enumerate(positions, first)}
    return [record_facts(home, id_, steps.get(id_)) for id_ in ids]


def record_facts(home: EnvHome, id_: str, steps_back: int | None) -> InstalledFacts:
    """Return what one record says, be it damaged."""
    is_current = steps_back == 0
    try:
        record: Installation = home.installation(id_)
    except PipelineError as error:
        return InstalledFacts(
            name=home.name,
            id=id_,
            is_current=is_current,
            steps_back=steps_back,
            problem=error.message,
        )
    return InstalledFacts(
        name=home.name,
        id=id_,
        is_current=is_current,
        steps_back=steps_back,
        version=record.version,
        platform=record.platform,
        prefix=record.prefix,
        files=record.files,
        size=record.size,
        origin=record.origin,
        state=read_state(home, id_),
    )


def measured(home: EnvHome, facts: InstalledFacts) -> InstalledFacts:
    """Add what only the disk and the processes tell."""
    tree = home.tree(facts.id)
    usage, users = measure_installation(home, facts.id), look_for_users(tree)
    return replace(
        facts,
        own_bytes=usage.own,
        shared_bytes=usage.shared,
        users=users.users,
        perhaps_used=users.unseen,
    )
