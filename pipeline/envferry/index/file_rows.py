"""The files of artifacts in the index: each package's list of files once, for all artifacts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from blake3 import blake3

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envferry.archive.index import FileEntry, Index
    from envferry.index.database import Connection
    from envferry.index.registry_keys import Place

MOST_PLACED = 100_000_000
"""Files of different lists that the index keeps: 6 to 15 GB, by how much their
names differ. Artifacts that bring more are named."""
DIGEST_BYTES = 16


class FileList(msgspec.Struct, frozen=True):
    """What one package, or no package, brings to an artifact."""

    package: str
    """Empty for files that no package owns."""
    version: str
    paths: tuple[str, ...]
    contents: tuple[str, ...] = ()
    """The XXH3-128 of each file in hex; empty where it differs from environment to environment, so
    that artifacts share lists."""

    @property
    def digest(self) -> bytes:
        """Equal for equal lists of equal packages."""
        # NUL is in no path, and the empty text between them tells paths from contents.
        text = "\0".join((self.package, self.version, *self.paths, "", *self.contents))
        return blake3(text.encode()).digest(DIGEST_BYTES)


def file_lists(index: Index) -> tuple[FileList, ...]:
    """Return the lists of an archive: files and links, no directories."""
    found = []
    for one in index.packages:
        entries = index.files[one.first_file : one.first_file + one.files]
        here = [entry for entry in entries if entry.type != "directory"]
        if here:
            paths = tuple(entry.path for entry in here)
            contents = tuple(entry.xxh128 if _is_alike(entry) else "" for entry in here)
            found.append(FileList(one.name, one.version, paths, contents))
    return tuple(found)


def content_number(xxh128: str) -> int:
    """Return the number by which the index knows a content: the first eight bytes of its digest."""
    # Signed, as SQLite's integers are.
    return int.from_bytes(bytes.fromhex(xxh128)[:8], "big", signed=True)


def _is_alike(entry: FileEntry) -> bool:
    """Whether a file is the same in every environment that has its package.

    Byte code and records name the prefix, or what names it; and nothing is in all empty files.
    """
    # Edits put the prefix into a file, and RECORD has the digests of such files.
    depends = entry.edits or entry.path.endswith((".pyc", "/RECORD", "/direct_url.json"))
    return bool(entry.size) and not depends


def unread_files(connection: Connection) -> list[Place]:
    """Return the artifacts whose files are not in the index yet, the newest first.

    Those that could not be read are among them: they may have been repaired since.
    """
    rows = connection.execute(
        "SELECT name, platform, id FROM artifacts WHERE state = 'published' AND number NOT IN "
        "(SELECT artifact FROM filed WHERE problem IS NULL OR problem = ?) "
        "ORDER BY published DESC",
        # What found no room is not read again at each question.
        (fullness(),),
    )
    return [(row[0], row[1], row[2]) for row in rows]


def write_files(
    connection: Connection, place: Place, lists: Iterable[FileList], problem: str = ""
) -> None:
    """Write the files of an artifact, or why there are none."""
    row = connection.execute(
        "SELECT number FROM artifacts WHERE name = ? AND platform = ? AND id = ?", place
    ).fetchone()
    if row is None:  # removed since
        return
    (placed,) = connection.execute("SELECT coalesce(sum(files), 0) FROM file_lists").fetchone()
    for one in lists:
        number, added = _list_number(connection, one, room=MOST_PLACED - placed)
        placed += added
        if number is None:
            # The artifact is named as one that is not searched in full. What fits of
            # it is found, and lists that others have brought already take no room.
            problem = fullness()
            continue
        connection.execute("INSERT OR IGNORE INTO listed VALUES (?, ?)", (number, row[0]))
    connection.execute("INSERT OR REPLACE INTO filed VALUES (?, ?)", (row[0], problem or None))


def fullness() -> str:
    """Return why files were not taken in; with the limit: under another one they are read again."""
    return f"the index of files is full: it has {MOST_PLACED:,}"


def forget_files(connection: Connection) -> None:
    """Remove what belongs to no artifact any more."""
    connection.execute("DELETE FROM filed WHERE artifact NOT IN (SELECT number FROM artifacts)")
    connection.execute("DELETE FROM listed WHERE artifact NOT IN (SELECT number FROM artifacts)")
    gone = connection.execute(
        "DELETE FROM file_lists WHERE number NOT IN (SELECT list FROM listed)"
    ).rowcount
    # Only then: these statements read whole tables, of up to 100 million rows.
    if gone:
        # There is room now: what found none is read again.
        connection.execute("DELETE FROM filed WHERE problem = ?", (fullness(),))
        for table in ("placed", "held"):
            connection.execute(
                f"DELETE FROM {table} WHERE list NOT IN (SELECT number FROM file_lists)"
            )
        for table, column in (("file_names", "name"), ("file_folders", "folder")):
            connection.execute(
                f"DELETE FROM {table} WHERE number NOT IN (SELECT {column} FROM placed)"
            )


def _list_number(connection: Connection, one: FileList, room: int) -> tuple[int | None, int]:
    """Return the row of a list and how many files it is new with; None where it has no room."""
    row = connection.execute(
        "SELECT number FROM file_lists WHERE digest = ?", (one.digest,)
    ).fetchone()
    if row:
        return row[0], 0
    if len(one.paths) > room:
        return None, 0
    number = connection.execute(
        "INSERT INTO file_lists (digest, package, version, files) VALUES (?, ?, ?, ?)",
        (one.digest, one.package, one.version, len(one.paths)),
    ).lastrowid
    split = [path.rpartition("/") for path in one.paths]
    for table, column, texts in (
        ("file_names", "name", {name for _, _, name in split}),
        ("file_folders", "folder", {folder for folder, _, _ in split}),
    ):
        connection.executemany(
            f"INSERT OR IGNORE INTO {table} ({column}) VALUES (?)", ((text,) for text in texts)
        )
    connection.executemany(
        "INSERT OR IGNORE INTO placed SELECT file_names.number, file_folders.number, ? "
        "FROM file_names, file_folders WHERE name = ? AND folder = ?",
        ((number, name, folder) for folder, _, name in split),
    )
    connection.executemany(
        "INSERT OR IGNORE INTO held SELECT ?, file_names.number, file_folders.number, ? "
        "FROM file_names, file_folders WHERE name = ? AND folder = ?",
        (
            (content_number(content), number, name, folder)
            for content, (folder, _, name) in zip(one.contents, split, strict=False)
            if content
        ),
    )
    return number, len(one.paths)
