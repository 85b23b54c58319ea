"""What is installed on a host: its records and indexes, and what it offers to a new one."""

from __future__ import annotations

import contextlib
import logging
import re
from functools import partial
from typing import TYPE_CHECKING

from envferry.archive.contents import Content
from envferry.archive.index import decode_index, index_text
from envferry.archive.prefixes import Relocation
from envferry.errors import HostError, IntegrityError, NotFound, PipelineError
from envferry.install.records.env_home import HOME, EnvHome
from envferry.install.records.seen_files import SeenTree, known_contents, read_seen
from envferry.install.tree.reusable_trees import OfferedTree, ReusableTrees, WaitingTree
from envferry.install.tree.tree_check import InstalledTree
from envferry.names import NAME_PATTERN
from envferry.suggestions import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Set
    from pathlib import Path

    from envferry.archive.index import Index
    from envferry.install.records.installation import Installation

log = logging.getLogger(__name__)

CHECKSUM = re.compile(rb'"xxh128":\s*"([0-9a-f]{32})"')


def chosen_id(home: EnvHome, id_: str | None) -> str:
    """Return the id that is meant: the current one unless one is named; raise NotFound."""
    found = id_ or home.current_id()
    if found is None:
        raise not_installed(home)
    return home.installation(found).id


def not_installed(home: EnvHome) -> NotFound:
    """Return the error for an environment of which nothing is current, with what there is."""
    ids = [path.stem for path in sorted(home.directory.glob("*.json"))]
    if ids:
        message = f"no installation of {home.name} is current in {home.envs_dir}"
        message += f"; installed: {', '.join(ids)}"
        return NotFound(message, hint=f"`envferry rollback {home.name} {ids[0]}` makes it current")
    names = [name for name in environment_names(home.envs_dir) if name != home.name]
    message = f"{home.name} is not installed in {home.envs_dir}"
    if names:
        message += f", only {', '.join(names)}"
    otherwise = f"run `envferry install {home.name}`, or name another --envs-dir"
    return NotFound(message, hint=did_you_mean(home.name, names, otherwise))


def open_installed(home: EnvHome, id_: str) -> InstalledTree:
    """Read what an installation must be.

    Raises IntegrityError when that is damaged, HostError when it is an image that is not mounted.
    """
    record = home.installation(id_)
    require_mounted(home, record)
    index = read_index(home, id_)
    return InstalledTree(
        root=home.tree(id_),
        index=index,
        relocation=Relocation(record.built_prefix, record.prefix, index),
        edited=edited_contents(record),
    )


def read_index(home: EnvHome, id_: str) -> Index:
    """Read the index that an installation keeps of its archive."""
    path = home.index(id_)
    try:
        frame = path.read_bytes()
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise IntegrityError(message, hint="remove this installation and install again") from error
    return decode_index(frame, str(path))


def edited_contents(record: Installation) -> dict[str, Content]:
    """Return what the files hold whose prefix was edited."""
    return {path: Content(size, xxh128) for path, (size, xxh128) in record.edited.items()}


def environment_names(envs_dir: Path) -> list[str]:
    """Return the names of all environments of an envs directory, in order."""
    names = {path.name for path in (envs_dir / HOME).glob("*") if path.is_dir()}
    # Beside the environments are the records of tags, whose folder begins with a dot.
    return sorted(filter(NAME_PATTERN.fullmatch, names))


def all_installations(home: EnvHome) -> Iterator[tuple[EnvHome, Installation]]:
    """Yield what is installed in an envs directory: the current one, its siblings, the others.

    A damaged record is skipped; `envferry verify` says so.
    """
    current = home.current_id()
    # The environment's own come first: of several that have a content, the first gives it.
    for name in sorted(environment_names(home.envs_dir), key=lambda name: name != home.name):
        other = EnvHome.of(home.envs_dir, name)
        paths = sorted(other.directory.glob("*.json"), key=lambda path: path.stem != current)
        for path in paths:
            # Another process may be removing it.
            with contextlib.suppress(PipelineError, FileNotFoundError):
                yield other, other.installation(path.stem)


def find_reusable(home: EnvHome, wanted: Installation, *, read_all: bool) -> ReusableTrees:
    """Return what the installations on this host offer to a new one.

    Unless all is to be read before it is shared, what files looked like last is offered, too.
    """
    waiting = []
    for other, record in all_installations(home):
        if not record.mounted:  # nothing can be linked out of an image
            read = partial(read_offer, other, record, wanted, read_all=read_all)
            waiting.append(WaitingTree(partial(checksums_in, other, record.id), read))
    return ReusableTrees(waiting)


def checksums_in(home: EnvHome, id_: str) -> Set[str]:
    """Return all XXH3-128 that the index of an installation names, those of frames among them."""
    try:
        text = index_text(home.index(id_).read_bytes(), str(home.index(id_)))
    except (OSError, PipelineError) as error:
        log.info("%s@%s is skipped: %s", home.name, id_, error)
        return set()
    return {checksum.decode() for checksum in CHECKSUM.findall(text)}


def read_offer(
    home: EnvHome, record: Installation, wanted: Installation, *, read_all: bool
) -> OfferedTree | None:
    """Read what an installed tree offers to a new one; None where that cannot be."""
    try:
        tree = read_tree(home, record)
    except PipelineError as error:
        log.info("%s@%s is skipped: %s", home.name, record.id, error)
        return None
    seen = None if read_all else read_seen(home, record.id)
    return OfferedTree(
        root=tree.root,
        index=tree.index,
        edited=tree.edited,
        same_prefixes=(record.built_prefix, record.prefix) == (wanted.built_prefix, wanted.prefix),
        known=known_contents(seen, tree) if seen else (),
    )


def read_tree(home: EnvHome, record: Installation) -> SeenTree:
    """Read what an installed tree holds; raise IntegrityError when that cannot be."""
    index = read_index(home, record.id)
    return SeenTree(str(home.tree(record.id)), index, edited_contents(record))


def is_at_its_prefix(home: EnvHome, installation: Installation) -> bool:
    """Whether the path that it is installed for leads to this very tree, on this machine, now."""
    try:
        return home.tree(installation.id).samefile(installation.prefix)
    # The path does not exist on this machine, or this user cannot enter it.
    except OSError:
        return False


def require_mounted(home: EnvHome, installation: Installation) -> None:
    """Raise HostError where an image should be mounted and is not, as after a restart."""
    tree = home.tree(installation.id)
    if installation.mounted and not tree.is_mount():
        message = f"the image of {home.name}@{installation.id} is not mounted at {tree}"
        hint = f"`envferry rollback {home.name} {installation.id}` mounts it, as root"
        raise HostError(message, hint=hint)
