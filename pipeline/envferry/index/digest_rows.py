"""The digests of artifacts in the index, and those that their locks name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from envferry.errors import PipelineError
from envferry.stores.port import Unreachable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envferry.index.database import Connection
    from envferry.index.registry_keys import Place
    from envferry.models import Manifest
    from envferry.registry import Registry

# Whole words: the first digits of a SHA-256 must not be taken for an MD5.
DIGEST = re.compile(rb"(?<![0-9a-f])(?:[0-9a-f]{64}|[0-9a-f]{40}|[0-9a-f]{32})(?![0-9a-f])")
"""SHA-256, a commit, and MD5, as locks name downloads."""
MOST_NAMED = 20_000_000
"""Digests of different locks that the index keeps: 10 bytes each, and 50 for each different one."""


class LockDigests(msgspec.Struct, frozen=True, kw_only=True):
    """The digests that a lock names, or why they are not known."""

    lock: str
    """The lock's own digest, which its manifest has."""
    digests: frozenset[bytes] = frozenset()
    size: int = 0
    """The bytes of the lock."""
    problem: str = ""


def write_marks(connection: Connection, artifact: int, manifest: Manifest) -> None:
    """Write the digests of an artifact, by which it is found."""
    facts = manifest.archive
    marks = (
        (facts.blake3, "archive"),
        (facts.xxh128, "archive"),
        (facts.index_blake3, "index of the archive"),
        (facts.tar_sha256, "layer of the image"),
        (manifest.lock_digest, "lock"),
    )
    connection.executemany(
        "INSERT OR IGNORE INTO marks VALUES (?, ?, ?)",
        ((raw, artifact, what) for text, what in marks if (raw := _raw(text))),
    )


def unread_locks(connection: Connection) -> list[tuple[Place, str]]:
    """Return an artifact for each lock whose digests are not in the index, and the lock's own.

    Those that could not be read are among them: they may have been repaired since.
    """
    rows = connection.execute(
        "SELECT name, platform, id, lock FROM artifacts WHERE state = 'published' AND lock NOT IN "
        "(SELECT digest FROM locks WHERE problem IS NULL OR problem = ?) "
        "GROUP BY lock ORDER BY max(published) DESC",
        # What found no room is not read again at each question.
        (fullness(),),
    )
    return [((row[0], row[1], row[2]), row[3]) for row in rows]


def read_named_digests(registry: Registry, place: Place, lock: str) -> LockDigests:
    """Read the lock of an artifact; what is wrong with it is a finding, no error.

    A server that cannot be reached is an error. Not parsed, which takes half a second for a large
    one: every word of it that is as long as a digest is one.
    """
    try:
        data = registry.read_lock(registry.described(*place))
    except Unreachable:
        raise
    except PipelineError as error:
        return LockDigests(lock=lock, problem=error.message)
    # As bytes: half the size of their hex digits.
    digests = frozenset(bytes.fromhex(found.decode()) for found in DIGEST.findall(data))
    return LockDigests(lock=lock, digests=digests, size=len(data))


def write_named_digests(connection: Connection, found: Iterable[LockDigests]) -> None:
    """Write the digests of locks, or why there are none."""
    (room,) = connection.execute("SELECT ? - count(*) FROM named", (MOST_NAMED,)).fetchone()
    for one in found:
        problem = one.problem or (fullness() if len(one.digests) > room else "")
        connection.execute(
            "INSERT INTO locks (digest, problem) VALUES (?, ?) "
            "ON CONFLICT (digest) DO UPDATE SET problem = excluded.problem",
            (one.lock, problem or None),
        )
        if problem:
            continue
        room -= len(one.digests)
        digests = [(digest,) for digest in one.digests]
        connection.executemany("INSERT OR IGNORE INTO named_digests (digest) VALUES (?)", digests)
        connection.executemany(
            "INSERT OR IGNORE INTO named SELECT named_digests.number, locks.number "
            "FROM named_digests, locks WHERE named_digests.digest = ? AND locks.digest = ?",
            ((digest, one.lock) for (digest,) in digests),
        )


def fullness() -> str:
    """Return why a lock was not taken in; with the limit: under another one it is read again."""
    return f"the index of digests is full: it has {MOST_NAMED:,}"


def forget_digests(connection: Connection) -> None:
    """Remove what belongs to no artifact any more."""
    connection.execute("DELETE FROM marks WHERE artifact NOT IN (SELECT number FROM artifacts)")
    gone = connection.execute(
        "DELETE FROM locks WHERE digest NOT IN (SELECT lock FROM artifacts)"
    ).rowcount
    # Only then: these statements read whole tables.
    if gone:
        connection.execute("DELETE FROM named WHERE lock NOT IN (SELECT number FROM locks)")
        connection.execute(
            "DELETE FROM named_digests WHERE number NOT IN (SELECT digest FROM named)"
        )
        # There is room now: what found none is read again.
        connection.execute("DELETE FROM locks WHERE problem = ?", (fullness(),))


def _raw(text: str) -> bytes:
    """Return a digest in hex as bytes; nothing for what a damaged manifest has in its place."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""
