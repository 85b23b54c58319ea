"""The SQLite file of an index: opened, checked, rebuilt; in memory where none can be written."""

from __future__ import annotations

import logging
import sqlite3
import threading
from contextlib import closing, suppress
from typing import TYPE_CHECKING, TypeVar

from blake3 import blake3

from envferry.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger(__name__)

T = TypeVar("T")
Connection = sqlite3.Connection

APPLICATION = 0x656E7666
"""`envf`, in the header of the file: what has another number is not ours."""
VERSION = 3
BUSY_SECONDS = 30
"""How long to wait for another process that is writing."""

TABLES = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE artifacts (
  number INTEGER PRIMARY KEY,
  name TEXT NOT NULL, platform TEXT NOT NULL, id TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('published', 'damaged', 'unfinished')),
  problem TEXT, version TEXT,
  size INTEGER NOT NULL, unpacked INTEGER NOT NULL, packages INTEGER NOT NULL,
  published REAL, attested INTEGER NOT NULL, stamp TEXT NOT NULL,
  first_seen REAL NOT NULL, looked_at REAL NOT NULL, lock TEXT NOT NULL,
  UNIQUE (name, platform, id)
);
CREATE TABLE tags (
  name TEXT NOT NULL, platform TEXT NOT NULL, tag TEXT NOT NULL,
  id TEXT, counter INTEGER, signed INTEGER NOT NULL, problem TEXT,
  moved REAL NOT NULL, stamp TEXT NOT NULL,
  PRIMARY KEY (name, platform, tag)
) WITHOUT ROWID;
CREATE TABLE packages (
  number INTEGER PRIMARY KEY,
  normal TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL, kind TEXT NOT NULL,
  build TEXT NOT NULL, license TEXT NOT NULL,
  UNIQUE (normal, version, kind, build, name)
);
CREATE TABLE contents (
  package INTEGER NOT NULL, artifact INTEGER NOT NULL, PRIMARY KEY (package, artifact)
) WITHOUT ROWID;
CREATE TABLE filed (artifact INTEGER PRIMARY KEY, problem TEXT);
CREATE TABLE file_lists (
  number INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE,
  package TEXT NOT NULL, version TEXT NOT NULL, files INTEGER NOT NULL
);
CREATE TABLE listed (
  list INTEGER NOT NULL, artifact INTEGER NOT NULL, PRIMARY KEY (list, artifact)
) WITHOUT ROWID;
CREATE TABLE file_names (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE file_folders (number INTEGER PRIMARY KEY, folder TEXT NOT NULL UNIQUE);
CREATE TABLE placed (
  name INTEGER NOT NULL, folder INTEGER NOT NULL, list INTEGER NOT NULL,
  PRIMARY KEY (name, folder, list)
) WITHOUT ROWID;
CREATE TABLE held (
  content INTEGER NOT NULL,
  name INTEGER NOT NULL, folder INTEGER NOT NULL, list INTEGER NOT NULL,
  PRIMARY KEY (content, name, folder, list)
) WITHOUT ROWID;
CREATE TABLE marks (
  digest BLOB NOT NULL, artifact INTEGER NOT NULL, what TEXT NOT NULL,
  PRIMARY KEY (digest, artifact, what)
) WITHOUT ROWID;
CREATE TABLE locks (number INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, problem TEXT);
CREATE TABLE named_digests (number INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE);
CREATE TABLE named (
  digest INTEGER NOT NULL, lock INTEGER NOT NULL, PRIMARY KEY (digest, lock)
) WITHOUT ROWID;
"""


class Database:
    """One connection, which threads share by turns."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.discarded = 0
        """How often it was thrown away."""
        # Reentrant: `run` discards the file while it holds the lock.
        self.lock = threading.RLock()
        self.connection = self._connect()

    @classmethod
    def for_place(cls, directory: Path, place: str) -> Database:
        """Open the file below `directory` that belongs to a store's `place`."""
        # A hash: a place has slashes, and may be longer than a file name.
        return cls(directory / f"{blake3(place.encode()).hexdigest()[:32]}.sqlite")

    def run(self, work: Callable[[Connection], T]) -> T:
        """Do `work`; when the file turns out damaged, on a new, empty one.

        Raises HostError when the disk or another process does not allow it.
        """
        with self.lock:
            try:
                return self._attempt(work)
            except sqlite3.OperationalError as error:
                # Before DatabaseError, its base class: after a full disk or a long
                # wait the file is still good.
                message = f"the index {self.path or 'in memory'}: {error}"
                raise HostError(
                    message,
                    hint="check that the disk has free space; the index file can be removed",
                ) from error
            except (sqlite3.ProgrammingError, sqlite3.IntegrityError):
                raise  # these are bugs
            except sqlite3.DatabaseError as error:
                log.info("the index %s is damaged, rebuilding it: %s", self.path, error)
                self.discard()
                return self._attempt(work)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Do `work` that writes: whole or not at all, after what other processes write."""

        def locked(connection: Connection) -> T:
            # At once: a transaction that reads first and then writes fails without waiting
            # when another process has written in between.
            connection.execute("BEGIN IMMEDIATE")
            return work(connection)

        return self.run(locked)

    def discard(self) -> None:
        """Throw everything away and start with an empty index."""
        with self.lock:
            self.discarded += 1
            self.connection.close()
            if self.path:
                _remove(self.path)
            self.connection = self._connect()

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    def _attempt(self, work: Callable[[Connection], T]) -> T:
        with self.connection:
            return work(self.connection)

    def _connect(self) -> Connection:
        if self.path:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                return _open(self.path)
            except (OSError, sqlite3.OperationalError) as error:
                log.info("no index can be kept in %s: %s", self.path.parent, error)
                # In memory from here on: there is no file to remove when it is discarded.
                self.path = None
        return _open(None)


def _open(path: Path | None) -> Connection:
    """Open a file and make its tables; one that is not ours, or older, is removed first."""
    # Twice: the first attempt may find a foreign or damaged file, and removes it.
    for _ in range(2):
        # Threads share the connection: `Database.lock` lets one at a time use it.
        connection = sqlite3.connect(
            path or ":memory:", timeout=BUSY_SECONDS, check_same_thread=False
        )
        try:
            _prepare(connection)
        except sqlite3.OperationalError:
            connection.close()
            raise
        except (sqlite3.DatabaseError, _Foreign) as error:
            connection.close()
            if path is None:
                raise
            log.info("rebuilding the index %s: %s", path, error)
            _remove(path)
        else:
            return connection
    message = f"{path} is being rebuilt again and again"
    raise sqlite3.OperationalError(message)


class _Foreign(Exception):
    """A file that another program, or another version, has made."""


def _prepare(connection: Connection) -> None:
    """Make the tables of a new file; raise _Foreign when it has others.

    Locked from the look to the last table: of two processes at once, one makes them.
    """
    connection.execute("PRAGMA synchronous = OFF")  # a lost index is rebuilt
    # Negative numbers are KiB: 64 MiB (SQLite, PRAGMA cache_size).
    connection.execute("PRAGMA cache_size = -65536")
    connection.execute("BEGIN IMMEDIATE")
    with connection, closing(connection.cursor()) as cursor:
        (application,) = cursor.execute("PRAGMA application_id").fetchone()
        (version,) = cursor.execute("PRAGMA user_version").fetchone()
        (tables,) = cursor.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if (application, version) == (APPLICATION, VERSION):
            return
        if tables:
            msg = f"application {application:#x}, version {version}"
            raise _Foreign(msg)
        # Not `executescript`, which commits first and so would give up the lock.
        for statement in filter(str.strip, TABLES.split(";")):
            cursor.execute(statement)
        # PRAGMA takes no bound values. Set last, in the same transaction as the tables.
        cursor.execute(f"PRAGMA application_id = {APPLICATION}")
        cursor.execute(f"PRAGMA user_version = {VERSION}")


def _remove(path: Path) -> None:
    # With its journal: SQLite would roll a new file back by an old one.
    for suffix in ("", "-journal", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).unlink()
