"""Where the symbolic links of a tree lead, in time linear in the length of their targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from envferry.archive.index import FileEntry

MAX_LINKS = 40
"""What Linux follows on the way to one file (path_resolution(7)); then it says ELOOP."""
TOO_MANY = "which is circular, or passes through too many links"
ROOT = 0


class LinkFault(Exception):
    """A link that is not allowed; the message says why."""


class LinkCheck:
    """Follows every link once: of what a link leads to only the place is remembered.

    Places are numbers, those of paths that are not in the tree too. All entries lie in directories
    of the tree, so links are met only in the targets of links.
    """

    def __init__(self, files: Sequence[FileEntry], prefix: str) -> None:
        self.prefix = prefix
        self.parents = [ROOT]
        self.children: dict[tuple[int, str], int] = {}
        self.links: dict[int, FileEntry] = {}
        self.ends: dict[int, tuple[int, int]] = {}
        """Where a link leads, and how many links are followed on the way."""
        self.failed: dict[int, str] = {}
        """Why a link must not be."""
        for entry in files:
            if entry.type == "symlink":
                self.links[self.place_of(entry.path)] = entry

    def faults(self) -> Iterator[str]:
        """Yield, in words, which links lead out of the tree or in circles."""
        for place, entry in self.links.items():
            try:
                self.follow(place, 0)
            except LinkFault as fault:
                yield f"{entry.path!r} is a link to {entry.link!r}, {fault}"

    def place_of(self, path: str) -> int:
        """Return the number of a path that holds no links before its last part."""
        place = ROOT
        for part in path.split("/"):
            place = self.child(place, part)
        return place

    def child(self, place: int, name: str) -> int:
        """Return the number of what has this name in a folder."""
        # The number that a new place would get tells whether this one is new.
        found = self.children.setdefault((place, name), len(self.parents))
        if found == len(self.parents):
            self.parents.append(place)
        return found

    def follow(self, place: int, depth: int) -> tuple[int, int]:
        """Return where the link at `place` ends; `depth` links are being followed already."""
        if place in self.ends:
            return self.ends[place]
        if place in self.failed:
            raise LinkFault(self.failed[place])
        try:
            # A circle comes back to a link whose end is not known yet, and is followed until here.
            if depth >= MAX_LINKS:
                raise LinkFault(TOO_MANY)
            self.ends[place] = self.walk(place, depth)
        except LinkFault as fault:
            # Kept, so that the check stays linear. One fault refuses the whole tree, so it does
            # not matter that a shorter way to this link would have been allowed.
            self.failed[place] = str(fault)
            raise
        return self.ends[place]

    def walk(self, place: int, depth: int) -> tuple[int, int]:
        """Go the way that the target of the link at `place` says, from the link's own folder."""
        target = self.links[place].link
        here, followed = self.parents[place], 1
        if target.startswith("/"):
            # With the slash: /opt/env-2 is not below /opt/env.
            if not (target + "/").startswith(self.prefix + "/"):
                msg = "outside the environment"
                raise LinkFault(msg)
            here, target = ROOT, target[len(self.prefix) :]
        for part in target.split("/"):
            if part in ("", "."):
                continue
            if part == "..":
                if here == ROOT:
                    msg = "outside the environment"
                    raise LinkFault(msg)
                here = self.parents[here]
                continue
            here = self.child(here, part)
            if here in self.links:
                here, more = self.follow(here, depth + 1)
                followed += more
                if followed > MAX_LINKS:
                    raise LinkFault(TOO_MANY)
        return here, followed
