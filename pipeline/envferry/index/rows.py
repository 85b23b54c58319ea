"""The rows of the index, as they are written and compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from packaging.utils import canonicalize_name

from envferry.index.artifact_state import stamp_of
from envferry.index.digest_rows import forget_digests, write_marks
from envferry.index.file_rows import forget_files
from envferry.trust.signed_tags import TagName

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envferry.index.artifact_state import ArtifactState, TagState
    from envferry.index.database import Connection
    from envferry.index.registry_keys import Place
    from envferry.models import Manifest, PackageFacts

FRESH_SECONDS = 60
"""What was first seen less long ago is most likely a push under way, and looked at each time."""
PATIENCE = 10
"""Unfinished and damaged artifacts are looked at again when a tenth of their age has passed."""

# Not INSERT OR REPLACE, which deletes the old row: its number, to which other tables refer, and
# `first_seen` stay as they are.
PUT_ARTIFACT = """
INSERT INTO artifacts (name, platform, id, state, problem, version, size, unpacked, packages,
  published, attested, stamp, first_seen, looked_at, lock)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (name, platform, id) DO UPDATE SET state = excluded.state, problem = excluded.problem,
  version = excluded.version, size = excluded.size, unpacked = excluded.unpacked,
  packages = excluded.packages, published = excluded.published, attested = excluded.attested,
  stamp = excluded.stamp, looked_at = excluded.looked_at, lock = excluded.lock
"""

NUMBER = "SELECT number FROM artifacts WHERE name = ? AND platform = ? AND id = ?"


class IndexedArtifact(msgspec.Struct, frozen=True):
    """What the index has of an artifact."""

    state: str
    attested: bool
    stamp: str
    first_seen: float
    looked_at: float

    def is_due(self, now: float) -> bool:
        """Whether something that was not right deserves another look."""
        age = self.looked_at - self.first_seen
        # Looks become rarer with age: an old fault does not cost a request at each refresh.
        is_time = age < FRESH_SECONDS or now - self.looked_at >= age / PATIENCE
        return self.state != "published" and is_time


class IndexedState(msgspec.Struct, frozen=True, kw_only=True):
    """All that a refresh compares with the registry."""

    artifacts: dict[Place, IndexedArtifact]
    tags: dict[TagName, str]
    """The stamp of each."""
    listed_at: float
    """When everything was last listed in full, in seconds since 1970; 0 for never."""


def remembered(connection: Connection) -> IndexedState:
    """Read what the index has."""
    artifacts = connection.execute(
        "SELECT name, platform, id, state, attested, stamp, first_seen, looked_at FROM artifacts"
    )
    tags = connection.execute("SELECT name, platform, tag, stamp FROM tags")
    return IndexedState(
        artifacts={tuple(row[:3]): IndexedArtifact(*row[3:]) for row in artifacts},
        tags={TagName(name=row[0], platform=row[1], tag=row[2]): row[3] for row in tags},
        listed_at=fact(connection, "listed_at"),
    )


def fact(connection: Connection, name: str) -> float:
    """Return a number that the index keeps about itself, 0 when it has none."""
    row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    return float(row[0]) if row else 0.0


def put_fact(connection: Connection, name: str, value: float) -> None:
    """Keep a number."""
    connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))


def write_artifact_states(
    connection: Connection, looks: Iterable[ArtifactState], now: float
) -> None:
    """Write artifacts and what is in them."""
    numbers: dict[tuple[str, ...], int] = {}
    for look in looks:
        folder, manifest = look.folder, look.manifest
        # Removed since it was listed; the next refresh takes it out.
        if not folder.files:
            continue
        state = "published" if manifest else "damaged" if look.problem else "unfinished"
        published = folder.published.timestamp() if folder.published else None
        connection.execute(
            PUT_ARTIFACT,
            (
                *(folder.name, folder.platform, folder.id, state, look.problem),
                *_sizes(manifest),
                *(published, folder.attested, stamp_of(folder), now, now),
                manifest.lock_digest if manifest else "",
            ),
        )
        if manifest:
            # Not lastrowid: after an update, that is the row of an earlier insert.
            row = connection.execute(NUMBER, (folder.name, folder.platform, folder.id)).fetchone()
            write_marks(connection, row[0], manifest)
            packages = {_package_number(connection, one, numbers) for one in manifest.packages}
            connection.executemany(
                "INSERT OR IGNORE INTO contents VALUES (?, ?)",
                ((package, row[0]) for package in packages),
            )


def write_tags(connection: Connection, tags: Iterable[TagState]) -> None:
    """Write tags."""
    connection.executemany(
        "INSERT OR REPLACE INTO tags VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (
                *(one.name.name, one.name.platform, one.name.tag, one.id or None),
                one.record.counter if one.record else None,
                bool(one.record and one.record.signatures),
                *(one.problem, one.listed.modified.timestamp(), one.listed.stamp),
            )
            for one in tags
        ),
    )


def remove(connection: Connection, places: Iterable[Place], tags: Iterable[TagName]) -> None:
    """Forget artifacts and tags that are gone."""
    connection.executemany(
        "DELETE FROM tags WHERE name = ? AND platform = ? AND tag = ?",
        ((one.name, one.platform, one.tag) for one in tags),
    )
    gone = [*places]
    if not gone:
        return
    connection.executemany("DELETE FROM artifacts WHERE name = ? AND platform = ? AND id = ?", gone)
    connection.execute("DELETE FROM contents WHERE artifact NOT IN (SELECT number FROM artifacts)")
    connection.execute("DELETE FROM packages WHERE number NOT IN (SELECT package FROM contents)")
    # After the artifacts: each of these removes what no artifact refers to any more.
    forget_digests(connection)
    forget_files(connection)


def _sizes(manifest: Manifest | None) -> tuple[str | None, int, int, int]:
    """Return version, size, size unpacked and number of packages."""
    if manifest is None:
        return None, 0, 0, 0
    facts = manifest.archive
    return manifest.version, facts.size, facts.tar_size, len(manifest.packages)


def _package_number(
    connection: Connection, package: PackageFacts, numbers: dict[tuple[str, ...], int]
) -> int:
    """Return the row of a package, which may be new; `numbers` spares questions."""
    key = (
        *(canonicalize_name(package.name), package.name, package.version),
        *(package.kind, package.build or ""),
    )
    if key not in numbers:
        columns = "(normal, name, version, kind, build, license)"
        connection.execute(
            f"INSERT OR IGNORE INTO packages {columns} VALUES (?, ?, ?, ?, ?, ?)",
            (*key, package.license or ""),
        )
        row = connection.execute(
            "SELECT number FROM packages WHERE normal = ? AND name = ? AND version = ? "
            "AND kind = ? AND build = ?",
            key,
        ).fetchone()
        numbers[key] = row[0]
    return numbers[key]
