"""The index of one registry: kept up to date by reading only what is new there."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from envferry.base.text import plural
from envferry.base.workers import Workers
from envferry.index.artifact_state import (
    ArtifactFiles,
    TagState,
    read_artifact_state,
    read_file_lists,
    read_tags,
    stamp_of,
)
from envferry.index.database import Connection, Database
from envferry.index.digest_rows import (
    LockDigests,
    read_named_digests,
    unread_locks,
    write_named_digests,
)
from envferry.index.file_rows import unread_files, write_files
from envferry.index.registry_keys import Place, RegistryKeys, list_fully, list_quickly
from envferry.index.rows import (
    IndexedState,
    fact,
    put_fact,
    remembered,
    remove,
    write_artifact_states,
    write_tags,
)
from envferry.progress import Expected, Silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Executor
    from pathlib import Path

    from envferry.progress import Progress
    from envferry.registry import Registry

T = TypeVar("T")
Read = TypeVar("Read", bound=ArtifactFiles | LockDigests)

DIRECTORY = "catalog"
"""Below the cache."""
THREADS = 16
FULL_SECONDS = 600
"""How long a change inside an artifact's folder, which nothing else shows, may stay unseen.

Also how long an artifact may be listed that another tool removed where empty folders are kept.
"""
SMALL = 300
"""Up to so many artifacts (two pages of keys), everything is listed each time."""
BATCH = 200
"""Manifests that are read before they are written: bounds the memory of a first index."""
FILE_THREADS = 4
"""Archives whose indexes are read at once: one of 50,000 files takes some 40 MB of memory."""
FEW_ARCHIVES = 10
WORTH_SAYING = 100
"""Artifacts to read from which on people are told why it takes a moment."""


class RegistryIndex:
    """A registry and its index."""

    def __init__(self, registry: Registry, database: Database) -> None:
        self.registry, self.database = registry, database

    @classmethod
    def open(cls, registry: Registry, cache_dir: Path) -> RegistryIndex:
        """Open the index of a registry below the cache; nothing is read from the registry yet."""
        database = Database.for_place(cache_dir / DIRECTORY, registry.store.place)
        return cls(registry, database)

    def close(self) -> None:
        """Close the index."""
        self.database.close()

    def ask(self, query: Callable[[Connection], T]) -> T:
        """Ask the index, see `queries`; one that turns out damaged is filled again first."""
        before = self.database.discarded
        answer = self.database.run(query)
        # Discarded in between, the new and empty index has given this answer.
        if self.database.discarded == before:
            return answer
        self.refresh()
        return self.database.run(query)

    def refresh(self, *, fully: bool = False, progress: Progress | None = None) -> None:
        """Bring the index up to date with the registry.

        Quickly, as a rule; everything is listed while that is cheap, at times, and `fully`.
        """
        discarded = self.database.discarded
        self._refresh(fully, progress or Silent())
        if self.database.discarded != discarded:  # found damaged half way
            self._refresh(fully, progress or Silent())

    def read_files(self, progress: Progress | None = None) -> None:
        """Read the indexes of the archives whose files are not known yet: a few MB of each.

        An archive that cannot be read is noted with the reason; a server that does not answer is an
        error, and what was read before it is kept.
        """

        def write(connection: Connection, found: Iterable[ArtifactFiles]) -> None:
            for one in found:
                write_files(connection, one.place, one.lists, one.problem)

        def read(place: Place) -> ArtifactFiles:
            return read_file_lists(self.registry, place)

        self._read_unread("the files of {}", unread_files, read, write, progress)

    def read_locks(self, progress: Progress | None = None) -> None:
        """Read the digests that locks name, of the locks where they are not known yet.

        A lock that cannot be read is noted, as archives are in `read_files`.
        """

        def read(unread: tuple[Place, str]) -> LockDigests:
            return read_named_digests(self.registry, *unread)

        self._read_unread("the locks of {}", unread_locks, read, write_named_digests, progress)

    def _read_unread(
        self,
        what: str,
        unread: Callable[[Connection], list[T]],
        read: Callable[[T], Read],
        write: Callable[[Connection, Iterable[Read]], None],
        progress: Progress | None,
    ) -> None:
        """Read what the index has not read yet, some at once; write it as it comes."""
        missing = self.database.run(unread)
        shown = progress if progress and len(missing) >= FEW_ARCHIVES else Silent()
        title = f"read {what.format(plural(len(missing), 'artifact'))}"
        size = Expected(len(missing))
        with Workers(FILE_THREADS, "reading") as pool, shown.task(title, size) as advance:
            # No larger batches: what was read before a server fails is in the index.
            for start in range(0, len(missing), FILE_THREADS):
                batch = missing[start : start + FILE_THREADS]
                found: tuple[Read, ...] = tuple(pool.map(read, batch))

                def note(connection: Connection, found: tuple[Read, ...] = found) -> None:
                    write(connection, found)

                self.database.write(note)
                for number, one in enumerate(found, start):
                    size.learn(str(number), one.size)
                    advance(one.size)

    def _refresh(self, fully: bool, progress: Progress) -> None:
        before, now = self.database.run(remembered), time.time()
        # Not below 0: a clock that was set back must not put off the full listing for as long.
        is_recent = 0 <= now - before.listed_at < FULL_SECONDS
        is_full = fully or not is_recent or len(before.artifacts) <= SMALL
        with Workers(THREADS, "index") as pool:
            # Without the database's lock: pages are answered while a registry is listed.
            holdings = (list_fully if is_full else list_quickly)(self.registry, pool)
            moved = {
                name: listed
                for name, listed in holdings.tags.items()
                # Only what was written since is read: a listing has the stamp of each tag.
                if before.tags.get(name) != listed.stamp
            }
            tags = read_tags(self.registry, moved, pool)
            places = _to_look_at(holdings, before, tags, now)
            self._look(places, holdings, pool, progress)
        gone = before.artifacts.keys() - holdings.folders.keys()
        lost = before.tags.keys() - holdings.tags.keys()

        def write(connection: Connection) -> None:
            # One transaction for all of it: no question sees a tag without its artifact.
            remove(connection, gone, lost)
            write_tags(connection, tags)
            # The time at which it began: what changed since then is for the next one to see.
            put_fact(connection, "refreshed_at", now)
            if is_full:
                put_fact(connection, "listed_at", now)
            if places or gone or lost or tags:
                put_fact(connection, "changes", fact(connection, "changes") + 1)

        self.database.write(write)

    def _look(
        self, places: list[Place], holdings: RegistryKeys, pool: Executor, progress: Progress
    ) -> None:
        """Read what is new and write it down, a batch at a time."""
        shown = progress if len(places) >= WORTH_SAYING else Silent()
        with shown.task(f"index {self.registry.url}: {plural(len(places), 'artifact')}"):
            for start in range(0, len(places), BATCH):
                batch = places[start : start + BATCH]
                folders = [holdings.folders[place] for place in batch]
                looks = tuple(
                    pool.map(read_artifact_state, [self.registry] * len(batch), batch, folders)
                )
                self.database.write(partial(write_artifact_states, looks=looks, now=time.time()))


def _to_look_at(
    holdings: RegistryKeys, before: IndexedState, tags: Iterable[TagState], now: float
) -> list[Place]:
    """Return the artifacts whose folders must be read.

    A push writes manifest, attestation and tags, in this order: so an artifact that was seen
    between the first two is looked at again when a tag was moved to it.
    """
    pushed = {(one.name.name, one.name.platform, one.id) for one in tags}
    places = []
    for place, folder in holdings.folders.items():
        known = before.artifacts.get(place)
        if known is None or known.is_due(now):
            places.append(place)
        elif folder is not None:
            if stamp_of(folder) != known.stamp:
                places.append(place)
        elif place in pushed and not known.attested:
            places.append(place)
    return places
