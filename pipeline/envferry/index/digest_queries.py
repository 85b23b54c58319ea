"""Which artifacts have a digest: their own, that of a download in their lock, that of a file."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from envferry.errors import UsageError
from envferry.index.file_queries import FileContent, find_files
from envferry.index.holder import HOLDER, Holder, count_unread, holder_facts, tags_by_place
from envferry.index.queries import EVERYTHING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from envferry.index.database import Connection
    from envferry.index.queries import Filter

LABEL = re.compile(r"(?:sha-?256|blake3|md5|xxh3(?:-?128)?|xxh128)[:=]", re.IGNORECASE)
LENGTHS = (12, 32, 40, 64)
"""Hex digits of an id; of MD5 and XXH3-128; of a commit; of SHA-256 and BLAKE3."""
CONTENT_DIGITS = 32
DOWNLOAD = "download"
"""What a digest in a lock is of: a package's file, or a commit."""


class DigestMatch(Holder, frozen=True, kw_only=True):
    """An artifact that has a digest."""

    digest: str
    what: str
    """`archive`, `lock`, `download`, `file` and so on."""
    path: str = ""
    """Of a file."""
    package: str = ""
    """Of a file, and of a download whose lock was read; empty for a file that no package owns."""
    package_version: str = ""


def parse_digest(text: str) -> str:
    """Return the hex digits of a digest, `sha256:…` or bare; raise UsageError for another text."""
    digits = LABEL.sub("", text.strip(), count=1).lower()
    if len(digits) not in LENGTHS or not re.fullmatch(r"[0-9a-f]+", digits):
        message = f"{text!r} is not a digest"
        hint = (
            "write it in hex: SHA-256 or BLAKE3 (64 digits), a commit (40), MD5 or XXH3-128 (32),"
            " or an artifact's id (12); --hash-of FILE takes a file instead"
        )
        raise UsageError(message, hint=hint)
    return digits


def find_digests(
    digests: Iterable[str], where: Filter = EVERYTHING
) -> Callable[[Connection], tuple[DigestMatch, ...]]:
    """Find the artifacts that have one of the digests (hex): by environment, the newest first.

    Raises UsageError where too much is found to be read.
    """
    wanted = tuple(digests)
    condition, values = where.sql()
    own = (
        f"SELECT what, {HOLDER} FROM marks JOIN artifacts ON artifacts.number = marks.artifact "
        f"WHERE marks.digest = ? AND {condition} UNION ALL "
        # An id is looked up where it lies: `marks` has whole digests only.
        f"SELECT 'artifact', {HOLDER} FROM artifacts WHERE artifacts.id = ? AND {condition}"
    )
    named = (
        f"SELECT '{DOWNLOAD}', {HOLDER} FROM named_digests "
        "JOIN named ON named.digest = named_digests.number "
        "JOIN locks ON locks.number = named.lock JOIN artifacts ON artifacts.lock = locks.digest "
        f"WHERE named_digests.digest = ? AND {condition}"
    )

    def query(connection: Connection) -> tuple[DigestMatch, ...]:
        tags = tags_by_place(connection, where.name)
        found = []
        for digest in wanted:
            raw = bytes.fromhex(digest)
            rows = connection.execute(own, [raw, *values, digest, *values]).fetchall()
            rows += connection.execute(named, [raw, *values]).fetchall()
            found += [
                DigestMatch(digest=digest, what=what, **holder_facts(tuple(holder), tags))
                for what, *holder in rows
            ]
            # Only XXH3-128 has this length among what archives say of files.
            if len(digest) == CONTENT_DIGITS:
                files = find_files((FileContent(digest),), where)(connection)
                found += [
                    DigestMatch(digest=digest, what="file", **msgspec.structs.asdict(one))
                    for one in files
                ]
        return tuple(sorted(found, key=_order))

    return query


def count_unread_locks(where: Filter = EVERYTHING) -> Callable[[Connection], dict[str, int]]:
    """Count the artifacts whose locks are not known, by reason."""
    return count_unread("locks", "locks.digest = artifacts.lock", where.sql())


def _order(one: DigestMatch) -> tuple[Any, ...]:
    newest = -(one.published.timestamp() if one.published else 0)
    return (one.name, one.platform, newest, one.id, one.what, one.path)
