"""Remove installations, never the current one and never one in use."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import msgspec

from envferry.base.files import remove_tree, sync_directory
from envferry.errors import HostError, TargetOccupied
from envferry.install.cleanup import changing
from envferry.install.programs.in_use import TreeUsers, describe, look_for_users
from envferry.install.programs.integrations import forget_integrations
from envferry.install.records.env_home import TRASH
from envferry.install.records.events import UNKNOWN_ACTOR, Actor, note_event
from envferry.install.records.installed import not_installed
from envferry.install.records.removed_links import links_removed
from envferry.install.tree.mounting import refuse_mounts, unmount
from envferry.install.tree.moves import discard_directory

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from envferry.install.records.env_home import EnvHome


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    """What was removed and what had to stay."""

    name: str
    removed: tuple[str, ...]
    kept: dict[str, str]
    """Why each of the others is still there, by id."""


def remove_old(
    home: EnvHome,
    keep: int,
    *,
    assume_unused: bool = False,
    dry_run: bool = False,
    actor: Actor = UNKNOWN_ACTOR,
) -> Removal:
    """Remove all but the `keep` installations that were current last.

    Never the current one, and none that a process uses. With `assume_unused` also those of which
    only that is known that no process which can be looked into uses them. With `dry_run` nothing is
    removed, here as in the functions below: the answer says what would be.
    """
    require_installed(home)
    with _changing(home, dry_run=dry_run):
        current = home.current_id()
        past = home.history()
        ids = [item.id for item in home.installations()]
        # Those that never became current are removed first.
        ids.sort(key=lambda id_: (id_ == current, past.index(id_) if id_ in past else -1))
        kept = dict.fromkeys(
            ids[max(len(ids) - keep, 0) :], f"one of the {keep} that were current last"
        )
        if current:
            kept[current] = "current"
        removed = []
        old = [id_ for id_ in ids if id_ not in kept]
        with nullcontext() if dry_run or not old else links_removed(home, old):
            for id_ in old:
                usage = look_for_users(home.tree(id_))
                if usage.users or (usage.unseen and not assume_unused):
                    kept[id_] = why_kept(usage)
                    continue
                if not dry_run:
                    remove_one(home, id_)
                    note_event(home, actor, "removed", id_)
                removed.append(id_)
    return Removal(name=home.name, removed=tuple(removed), kept=kept)


def remove_named(
    home: EnvHome,
    id_: str,
    *,
    assume_unused: bool = False,
    dry_run: bool = False,
    actor: Actor = UNKNOWN_ACTOR,
) -> Removal:
    """Remove one installation; raise TargetOccupied for the current one and one in use."""
    require_installed(home)
    with _changing(home, dry_run=dry_run):
        # For its NotFound: an id that is not installed must not look like one that was removed.
        home.installation(id_)
        if id_ == home.current_id():
            message = f"{home.name}@{id_} is the current installation"
            raise TargetOccupied(message, hint=f"run `envferry rollback {home.name}` first")
        refuse_used(home, id_, assume_unused=assume_unused)
        if not dry_run:
            with links_removed(home, (id_,)):
                remove_one(home, id_)
            note_event(home, actor, "removed", id_)
    return Removal(name=home.name, removed=(id_,), kept={})


def remove_whole(home: EnvHome, *, assume_unused: bool = False, dry_run: bool = False) -> Removal:
    """Remove an environment, current installation and all; raise TargetOccupied if one is in use.

    The link goes first, then the records: from then on nothing is installed.
    """
    require_installed(home)
    with _changing(home, dry_run=dry_run):
        # From the names, as a damaged record must not keep an environment from being removed. All
        # are looked at before the first one goes: a refusal leaves the environment whole.
        ids = sorted(path.stem for path in home.directory.glob("*.json"))
        for id_ in ids:
            refuse_used(home, id_, assume_unused=assume_unused)
        if dry_run:
            return Removal(name=home.name, removed=tuple(ids), kept={})
        # Before the folder goes, which holds the note of where they are.
        forget_integrations(home)
        if home.has_link:
            home.point_at(None)
        with links_removed(home, ids):
            for id_ in ids:
                remove_one(home, id_)
        # With the lock file, whose next holder sees that it is gone.
        remove_tree(home.directory)
    return Removal(name=home.name, removed=tuple(ids), kept={})


def _changing(home: EnvHome, *, dry_run: bool) -> AbstractContextManager[None]:
    """Hold the lock of an environment that is going to be changed."""
    return nullcontext() if dry_run else changing(home)


def require_installed(home: EnvHome) -> None:
    """Raise NotFound for an environment of which there is nothing."""
    if not home.directory.is_dir():
        raise not_installed(home)


def refuse_used(home: EnvHome, id_: str, *, assume_unused: bool) -> None:
    """Raise TargetOccupied for an installation that a process uses, or may use."""
    refuse_mounts(home.tree(id_), home.image(id_))
    usage = look_for_users(home.tree(id_))
    if usage.users:
        message = f"{home.name}@{id_} is {why_kept(usage)}"
        raise TargetOccupied(message, hint="end these processes first")
    if usage.unseen and not assume_unused:
        message = f"{home.name}@{id_} is {why_kept(usage)}"
        hint = "run it as root on the host itself, or with --assume-unused if it is not in use"
        raise TargetOccupied(message, hint=hint)


def why_kept(usage: TreeUsers) -> str:
    """Return why an installation is not removed."""
    if usage.users:
        return f"in use by {describe(usage.users)}"
    return f"perhaps in use: {usage.unseen}"


def remove_one(home: EnvHome, id_: str) -> None:
    """Remove an installation: its record first, which is what makes it count as installed."""
    home.record(id_).unlink()
    home.index(id_).unlink(missing_ok=True)
    home.state(id_).unlink(missing_ok=True)
    home.seen(id_).unlink(missing_ok=True)
    # Before its image and its tree go: removing a mounted tree is refused.
    unmount(home.tree(id_))
    home.image(id_).unlink(missing_ok=True)
    try:
        discard_directory(home.tree(id_), home.directory / f"{TRASH}{id_}")
    except PermissionError as error:
        message = f"cannot remove {error.filename or home.tree(id_)}: {error.strerror}"
        raise HostError(message, hint="run it as the user who owns it") from error
    sync_directory(home.directory)
