"""Keep notes of files right while installations that have the same files are removed.

To remove a name changes the ctime of a file that other installations have, too, by which their
notes tell that it is unchanged (`seen_files`). To make a name did so before: of the notes that know
a file, the newest is right. One of each file is enough, for an update goes by all notes.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING

import msgspec

from envferry.archive.contents import expected_content
from envferry.errors import PipelineError
from envferry.install.records.installed import all_installations, read_tree
from envferry.install.records.seen_files import (
    SeenFiles,
    SeenTree,
    known_contents,
    look_at,
    read_seen,
    states_of,
    suppressed,
    write_seen,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from envferry.archive.contents import FileState
    from envferry.install.records.env_home import EnvHome
    from envferry.install.records.installation import Installation

log = logging.getLogger(__name__)


class NotedTree(msgspec.Struct, frozen=True, kw_only=True):
    """An installed tree and the note of its files."""

    home: EnvHome
    record: Installation
    seen: SeenFiles


class RightFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Files of a tree of which it was known, just before a removal, that they are right."""

    noted: NotedTree
    tree: SeenTree
    states: dict[int, FileState]
    """How they looked, by file number."""


@contextmanager
def links_removed(home: EnvHome, gone: Collection[str]) -> Iterator[None]:
    """Keep notes right while the block removes installations of an environment, by their ids.

    What was known of a file before stays known if it is the same file, of the same size and time,
    after it.
    """
    going: list[NotedTree] = []
    staying: list[NotedTree] = []
    for noted in noted_trees(home):
        is_going = noted.home.name == home.name and noted.record.id in gone
        (going if is_going else staying).append(noted)
    # Of a tree without a note, it is not known which files it shares.
    is_noted = len(going) == len(gone)
    right = list(right_files(staying, going if is_noted else [*going, *staying]))
    yield
    for files in right:
        with suppressed(files.noted.home, files.noted.record.id):
            renew(files)


def noted_trees(home: EnvHome) -> Iterator[NotedTree]:
    """Yield all installed trees of a host that a note is of, those of an environment first."""
    for other, record in all_installations(home):
        seen = None if record.mounted else read_seen(other, record.id)
        if seen:
            yield NotedTree(home=other, record=record, seen=seen)


def right_files(staying: Sequence[NotedTree], going: Sequence[NotedTree]) -> Iterator[RightFiles]:
    """Yield what is known of the files that trees which stay share with those that go."""
    newest = newest_ctimes([*staying, *going])
    for noted, inodes in holders(staying, going, newest):
        own = dict(noted.seen.files)
        others = {inode for inode in inodes if own[inode] != newest[inode]}
        try:
            tree = read_tree(noted.home, noted.record)
            if len(tree.index.files) != len(noted.seen.files):
                continue  # written by something else
            known = set(known_contents(noted.seen, tree))
            for one in going:
                if others & {inode for inode, ctime in one.seen.files if ctime == newest[inode]}:
                    known.update(known_contents(one.seen, read_tree(one.home, one.record)))
        except PipelineError as error:
            log.info("%s@%s is skipped: %s", noted.home.name, noted.record.id, error)
            continue
        files = tree.index.files
        states = {
            number: state
            for number, state in states_of(tree).items()
            if state.inode in inodes
            and (state, expected_content(files[number], tree.edited).xxh128) in known
        }
        yield RightFiles(noted=noted, tree=tree, states=states)


def newest_ctimes(trees: Sequence[NotedTree]) -> dict[int, int]:
    """Return the newest ctime that any note has of each file, by its inode."""
    newest: dict[int, int] = {}
    for inode, ctime_ns in chain.from_iterable(noted.seen.files for noted in trees):
        newest[inode] = max(ctime_ns, newest.get(inode, 0))
    return newest


def holders(
    staying: Sequence[NotedTree], going: Sequence[NotedTree], newest: dict[int, int]
) -> Iterator[tuple[NotedTree, set[int]]]:
    """Yield trees that stay, with the inodes of shared files that each is to have a note of.

    That is the one whose note is right, or else the first that has the file.
    """
    rest = {inode for one in going for inode, _ in one.seen.files if inode}
    found: list[set[int]] = [set() for _ in staying]
    for is_right in (True, False):
        for inodes, noted in zip(found, staying, strict=True):
            if noted.seen.device in {one.seen.device for one in going}:
                inodes |= {
                    inode
                    for inode, ctime_ns in noted.seen.files
                    if inode in rest and (ctime_ns == newest[inode] or not is_right)
                }
                rest -= inodes
    yield from ((noted, inodes) for noted, inodes in zip(staying, found, strict=True) if inodes)


def renew(files: RightFiles) -> None:
    """Note how files look whose ctime is another one now, where they are still the same."""
    noted, states = files.noted, files.states
    now = look_at(files.tree, noted.home.directory)
    if now is None:
        return
    notes = tuple(
        new if number in states and new[0] == states[number].inode else old
        for number, (old, new) in enumerate(zip(noted.seen.files, now.files, strict=True))
    )
    if notes != noted.seen.files:
        seen = msgspec.structs.replace(noted.seen, files=notes)
        write_seen(noted.home, noted.record.id, seen)
