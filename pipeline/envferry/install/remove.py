"""Remove installations, never the current one and never one in use."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envferry.base.files import exclusive_lock, sync_directory
from envferry.errors import NotFound, TargetOccupied
from envferry.install.env_home import TRASH
from envferry.install.in_use import users_of

if TYPE_CHECKING:
    from envferry.install.env_home import EnvHome


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What was removed and what had to stay."""

    name: str
    removed: tuple[str, ...]
    kept: dict[str, str]
    """Why each of the others is still there, by id."""


def remove_old(home: EnvHome, keep: int) -> Removal:
    """Remove all but the `keep` installations that were current last.

    Never the current one, and none that a process uses.
    """
    require_installed(home)
    with exclusive_lock(home.lock_path, f"the environment {home.name}"):
        clear_trash(home)
        current = home.current_id()
        past = home.history()
        ids = [item.id for item in home.installations()]
        # Those that never became current come first: nobody asked for them.
        ids.sort(key=lambda id_: (id_ == current, past.index(id_) if id_ in past else -1))
        kept = dict.fromkeys(ids[max(len(ids) - keep, 0) :], "kept")
        if current:
            kept[current] = "current"
        removed = []
        for id_ in ids:
            if id_ in kept:
                continue
            users = users_of(home.tree(id_))
            if users:
                kept[id_] = f"in use by {describe_users(users)}"
                continue
            remove_one(home, id_)
            removed.append(id_)
    return Removal(name=home.name, removed=tuple(removed), kept=kept)


def remove_named(home: EnvHome, id_: str) -> Removal:
    """Remove one installation; raise TargetOccupied for the current one and one in use."""
    with exclusive_lock(home.lock_path, f"the environment {home.name}"):
        home.installation(id_)
        if id_ == home.current_id():
            message = f"{home.name}@{id_} is the current installation"
            raise TargetOccupied(message, hint=f"run `envferry rollback {home.name}` first")
        refuse_used(home, id_)
        remove_one(home, id_)
    return Removal(name=home.name, removed=(id_,), kept={})


def remove_whole(home: EnvHome) -> Removal:
    """Remove an environment, current installation and all; raise TargetOccupied if one is in use.

    The link goes first, then the records: from then on nothing is installed.
    """
    require_installed(home)
    with exclusive_lock(home.lock_path, f"the environment {home.name}"):
        ids = sorted(path.stem for path in home.directory.glob("*.json"))
        for id_ in ids:
            refuse_used(home, id_)
        if home.has_link:
            home.point_at(None)
        for id_ in ids:
            remove_one(home, id_)
        # With the lock file, whose next holder sees that it is gone.
        shutil.rmtree(home.directory)
    return Removal(name=home.name, removed=tuple(ids), kept={})


def require_installed(home: EnvHome) -> None:
    """Raise NotFound for an environment of which there is nothing."""
    if not home.directory.is_dir():
        message = f"{home.name} is not installed in {home.envs_dir}"
        raise NotFound(message, hint="environments that envferry did not install are not its own")


def refuse_used(home: EnvHome, id_: str) -> None:
    """Raise TargetOccupied for an installation that a process uses."""
    users = users_of(home.tree(id_))
    if users:
        message = f"{home.name}@{id_} is in use by {describe_users(users)}"
        raise TargetOccupied(message, hint="end these processes first")


def remove_one(home: EnvHome, id_: str) -> None:
    """Remove an installation: its record first, for without it there is none."""
    home.record(id_).unlink()
    home.index(id_).unlink(missing_ok=True)
    home.tree(id_).rename(home.directory / f"{TRASH}{id_}")
    sync_directory(home.directory)
    clear_trash(home)


def clear_trash(home: EnvHome) -> None:
    """Delete what was removed, also by one who was cut off."""
    for path in home.directory.glob(f"{TRASH}*"):
        shutil.rmtree(path)


def describe_users(users: dict[int, str]) -> str:
    """Return the processes that use something, a few of them by name."""
    shown = ", ".join(f"{program} (pid {pid})" for pid, program in sorted(users.items())[:5])
    return shown + (f" and {len(users) - 5} more" if len(users) > 5 else "")
