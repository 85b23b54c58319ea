"""Which installations share a file as hard links: a change in one is a change in all."""

from __future__ import annotations

import logging
import os
import stat
from typing import TYPE_CHECKING

from envferry.errors import PipelineError
from envferry.install.records.installed import all_installations, read_index

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envferry.install.records.env_home import EnvHome

log = logging.getLogger(__name__)


def find_sharers(home: EnvHome, id_: str, paths: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return, by path, the other installations (`NAME@ID`) of which a file is a part as well."""
    wanted = _with_other_names(str(home.tree(id_)), paths)
    if not wanted:
        return {}
    contents = {entry.path: entry.xxh128 for entry in read_index(home, id_).files}
    sought = {contents[path] for path in wanted.values() if path in contents}
    found: dict[str, list[str]] = {}
    for other, record in all_installations(home):
        if (other.name, record.id) == (home.name, id_):
            continue
        tree = str(other.tree(record.id))
        try:
            index = read_index(other, record.id)
        except PipelineError as error:
            log.info("%s@%s is skipped: %s", other.name, record.id, error)
            continue
        for entry in index.files:
            # The index narrows it down: few files have to be looked at on the disk.
            if entry.size and entry.xxh128 in sought:
                path = wanted.get(_identity(f"{tree}/{entry.path}"), "")
                if path:
                    found.setdefault(path, []).append(f"{other.name}@{record.id}")
    return {path: tuple(dict.fromkeys(names)) for path, names in found.items()}


def _with_other_names(root: str, paths: Iterable[str]) -> dict[tuple[int, int], str]:
    """Return those of these files that have several names, by device and inode."""
    found = {}
    for path in paths:
        try:
            status = os.lstat(f"{root}/{path}")
        except OSError:
            continue  # gone meanwhile
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            found[status.st_dev, status.st_ino] = path
    return found


def _identity(path: str) -> tuple[int, int]:
    try:
        status = os.lstat(path)
    except OSError:
        # Not the identity of any file, as inodes are not negative.
        return (-1, -1)
    return (status.st_dev, status.st_ino)
