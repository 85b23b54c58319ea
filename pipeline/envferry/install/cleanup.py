"""Lock an environment that is to be changed, and clean up after killed commands."""

from __future__ import annotations

import logging
import re
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from envferry.base.files import exclusive_lock, let_enter, let_read, make_folders, remove_tree
from envferry.errors import PipelineError
from envferry.install.programs.in_use import look_for_users
from envferry.install.programs.integrations import settle_integrations
from envferry.install.records.env_home import (
    EVENTS,
    HISTORY,
    HOME,
    IMAGE_SUFFIX,
    INTEGRATIONS,
    LINK,
    PARTIAL,
    REPAIR,
    SEEN,
    STATE,
    TRASH,
    UNFINISHED_IMAGE,
)
from envferry.install.records.unchecked import put_unchecked_back
from envferry.install.tree.mounting import unmount
from envferry.names import ID_PATTERN, SEEN_DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envferry.install.records.env_home import EnvHome

log = logging.getLogger(__name__)

LEFTOVERS = (LINK, TRASH, REPAIR, UNFINISHED_IMAGE)
LOCK_MODE = 0o644
JOURNAL = ".journal"
TAG_SECONDS = 3600
"""Writing the record of a tag never takes that long."""
ATOMIC = "|".join([*map(re.escape, (HISTORY, EVENTS, INTEGRATIONS)), r"\.follow-.+"])
UNFINISHED_FILE = re.compile(
    rf"\.(({ID_PATTERN.pattern})\.(json|index|state|seen)|{ATOMIC})\.[a-z0-9_]{{8}}"
)
"""What `atomic_write` had not given its name yet."""


@contextmanager
def changing(home: EnvHome, *, installing: str = "") -> Iterator[None]:
    """Hold the lock of an environment in which nothing is left of commands that were killed.

    `installing` is the id of which an unfinished installation is of use. Raises TargetOccupied when
    another envferry is at work there. Of a change that fails no folder is left with nothing in it.
    """
    folders = (home.directory, *home.directory.parents)
    made = [folder for folder in folders if not folder.exists()]
    make_folders(home.directory)
    with (
        exclusive_lock(home.lock_path, f"the environment {home.name}"),
        _removing_empty(home, made),
    ):
        open_to_all(home)
        # First: until then the current installation may be one whose checks never passed.
        put_unchecked_back(home)
        clear_up(home, installing)
        clear_tags(home)
        settle_integrations(home)
        yield


@contextmanager
def _removing_empty(home: EnvHome, made: list[Path]) -> Iterator[None]:
    """Remove folders that were made for a change which fails and leaves nothing in them."""
    try:
        yield
    except BaseException:
        # What is not removed, as another command has just put something there, does no harm.
        with suppress(OSError):
            left = [path.name for path in home.directory.iterdir()]
            if home.directory in made and left == [home.lock_path.name]:
                # With the lock file, whose next holder sees that it is gone.
                remove_tree(home.directory)
                for folder in made[1:]:
                    folder.rmdir()
        raise


def open_to_all(home: EnvHome) -> None:
    """Let every user reach the environment, and none change it, whatever the umask once was."""
    with suppress(PermissionError):  # made by another user, who has to open it
        let_enter(home.envs_dir / HOME)
        let_enter(home.directory)
        let_read(home.lock_path, LOCK_MODE)


def clear_up(home: EnvHome, installing: str = "") -> None:
    """Remove what killed commands left: no lock is held by them any more.

    An unfinished installation stays, as the next install goes on with it.
    """
    for path in home.directory.iterdir():
        name = path.name
        if name.startswith(PARTIAL):
            if is_obsolete_partial(home, name.removeprefix(PARTIAL), installing):
                remove(path)
        elif (
            name.startswith(LEFTOVERS)
            or UNFINISHED_FILE.fullmatch(name)
            or (is_beside_a_record(path) and not home.record(path.stem).is_file())
        ):
            remove(path)
        # The tree of `installing` may have its name and no record yet: the install goes on with
        # it.
        elif ID_PATTERN.fullmatch(name) and name != installing:
            clear_tree(home, name)


def is_obsolete_partial(home: EnvHome, name: str, installing: str) -> bool:
    """Whether `.partial-NAME` is of no use, but for the install of the id `installing`."""
    if name.endswith(IMAGE_SUFFIX):
        # The command that holds the lock may have written the image of `installing` just before.
        return name != f"{installing}{IMAGE_SUFFIX}"
    if name.endswith(JOURNAL):
        id_ = name.removesuffix(JOURNAL)
        # A journal is of use with its tree. That of `installing` is so by itself, too: the tree
        # may have got its name already.
        return id_ != installing and not home.partial(id_).is_dir()
    return name != installing and home.record(name).is_file()


def is_beside_a_record(path: Path) -> bool:
    """Whether a file belongs to the installation whose id it has as its stem."""
    return path.suffix in (".index", STATE, SEEN, IMAGE_SUFFIX)


def clear_tags(home: EnvHome) -> None:
    """Remove what killed commands left of the records of tags; these have no lock, so by age."""
    before = time.time() - TAG_SECONDS
    # Eight characters are what `tempfile` makes up for a name.
    for path in (home.envs_dir / SEEN_DIRECTORY).glob(f".*-{home.name}@*.json.????????"):
        with suppress(FileNotFoundError):  # another command was faster
            if path.lstat().st_mtime < before:
                remove(path)


def clear_tree(home: EnvHome, id_: str) -> None:
    """Remove a tree without a record, unless it is current or in use."""
    if home.record(id_).exists() or home.linked_id() == id_:
        return
    users = look_for_users(home.tree(id_)).users
    if users:
        log.info("%s@%s has no record but is in use: not removed yet", home.name, id_)
        return
    remove(home.tree(id_))


def remove(path: Path) -> None:
    """Remove a leftover; what another user left is theirs to remove."""
    log.info("removing %s, left behind by an interrupted command", path)
    try:
        # A mounted squashfs is read-only: nothing in it can be removed.
        unmount(path)
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)
    except PermissionError as error:
        log.warning("cannot remove the leftover %s: %s", path, error.strerror)


def clean_up_if_idle(home: EnvHome) -> None:
    """Clear up for a command that only reads, where this user may and no other command runs."""
    # Without a lock file there was no change yet, and a command that only reads makes none.
    if home.lock_path.exists():
        # Another command at work, or a folder that this user cannot write to, must not keep a
        # command that only reads from its answer.
        with suppress(PipelineError, OSError), changing(home):
            pass
