"""Which files of other installations hold what a new one needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from envferry.archive.contents import Content, FileState, expected_content, lost_directories

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set

    from envferry.archive.index import FileEntry, Index
    from envferry.archive.prefixes import Relocation


class OfferedTree(msgspec.Struct, frozen=True, kw_only=True):
    """What an installed tree has for a new installation."""

    root: str
    index: Index
    edited: Mapping[str, Content]
    """What the files hold whose prefix was edited."""
    same_prefixes: bool
    """Whether both prefixes, of the build and of the place, are those of the new installation."""
    known: Iterable[tuple[FileState, str]]
    """What its files looked like when they held what the index says."""


class WaitingTree(NamedTuple):
    """An installed tree whose index was not read."""

    checksums: Callable[[], Set[str]]
    """Looks into it for all XXH3-128 that it names, which takes a fifth of reading it."""
    read: Callable[[], OfferedTree | None]
    """Reads it; None where that cannot be."""


class ReusableTrees:
    """What installed trees have to offer, by content; each is read when it is needed.

    A host may keep many versions, and it takes 0.35 s to read the index of one with 69,000 files.
    """

    def __init__(self, waiting: Iterable[WaitingTree] = ()) -> None:
        """Offer what these trees have, the likeliest to be like the new one first."""
        self.waiting = list(waiting)
        self.nowhere: set[str] = set()
        """What no waiting tree has."""
        self.places: dict[tuple[str, bool], tuple[str, Content]] = {}
        self.known: set[tuple[FileState, str]] = set()
        """What files looked like when they held what their installation says."""

    def read_another(self, sought: Iterable[FileEntry]) -> bool:
        """Take in the next tree that has one of these contents; return False where none has."""
        wanted = {entry.xxh128 for entry in sought} - self.nowhere
        for waiting in self.waiting if wanted else ():
            if not wanted.isdisjoint(waiting.checksums()):
                self.waiting.remove(waiting)
                if tree := waiting.read():
                    self.offer(tree)
                return True
        self.nowhere |= wanted
        return False

    def learn_more(self, sought: Sequence[FileEntry]) -> bool:
        """Take in what another tree knows of files with these contents; False where none does.

        Of several trees that share a file, the note of the one that linked it last is right.
        """
        before = len(self.known)
        while len(self.known) == before:
            if not self.read_another(sought):
                return False
        return True

    def offer(self, tree: OfferedTree) -> None:
        """Offer the files of an installed tree; the first tree that has a content gives it."""
        self.known.update(tree.known)
        lost = lost_directories(tree.root, tree.index)
        for entry in tree.index.files:
            is_edited = entry.path in tree.edited
            if entry.path.rpartition("/")[0] in lost:
                continue
            # Edited files only where both prefixes are the same.
            if entry.size and (tree.same_prefixes or not is_edited):
                # By the checksum in the archive: a new index has that one, also for files that
                # will be edited.
                place = (f"{tree.root}/{entry.path}", expected_content(entry, tree.edited))
                self.places.setdefault((entry.xxh128, is_edited), place)

    def candidates(
        self, index: Index, relocation: Relocation, present: Collection[int] = ()
    ) -> dict[int, tuple[str, Content]]:
        """Return, by file number, who offers what is not present."""
        # Empty files are made from the index alone.
        wanted = {
            number: (entry.xxh128, relocation.changes(entry))
            for number, entry in enumerate(index.files)
            if entry.size and number not in present
        }
        while True:
            found = {
                number: place
                for number, key in wanted.items()
                if (place := self.places.get(key)) is not None
            }
            missing = (index.files[number] for number in wanted if number not in found)
            if not self.read_another(missing):
                return found
