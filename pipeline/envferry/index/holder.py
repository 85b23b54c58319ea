"""The artifact that holds what was asked for: what all answers say of it."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from envferry.index.database import Connection

HOLDER = "artifacts.name, artifacts.platform, artifacts.id, artifacts.version, artifacts.published"
"""The columns of a `Holder`, without its tags."""


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """An artifact, as each thing in it that was found names it."""

    name: str
    """The environment."""
    platform: str
    id: str
    env_version: str | None
    published: datetime | None
    tags: tuple[str, ...]


def holder_facts(
    columns: tuple[Any, ...], tags: dict[tuple[str, str, str], tuple[str, ...]]
) -> dict[str, Any]:
    """Return the fields of a `Holder`, of the columns HOLDER and the tags of all artifacts."""
    name, platform, id_, version, published = columns
    return {
        "name": name,
        "platform": platform,
        "id": id_,
        "env_version": version,
        "published": time_of(published),
        "tags": tags.get((name, platform, id_), ()),
    }


def count_unread(
    table: str, condition: str, where: tuple[str, list[Any]]
) -> Callable[[Connection], dict[str, int]]:
    """Count the artifacts that have no row in a table, or one with a problem, by reason.

    `condition` says which row is an artifact's, `where` which artifacts are meant (`Filter.sql`).
    """
    selected, values = where
    statement = (
        f"SELECT coalesce({table}.problem, artifacts.problem, 'not read'), count(*) FROM artifacts "
        f"LEFT JOIN {table} ON {condition} WHERE {selected} "
        # Only tables that are not WITHOUT ROWID have a rowid.
        f"AND ({table}.rowid IS NULL OR {table}.problem IS NOT NULL) GROUP BY 1"
    )
    return lambda connection: dict(connection.execute(statement, values).fetchall())


def tags_by_place(
    connection: Connection, name: str | None
) -> dict[tuple[str, str, str], tuple[str, ...]]:
    """Return the tags of each artifact of an environment, or of all."""
    rows = connection.execute(
        "SELECT name, platform, id, tag FROM tags WHERE id IS NOT NULL AND (? IS NULL OR name = ?) "
        "ORDER BY tag",
        (name, name),
    )
    found: dict[tuple[str, str, str], tuple[str, ...]] = {}
    for *place, tag in rows:
        key = (place[0], place[1], place[2])
        found[key] = (*found.get(key, ()), tag)
    return found


def time_of(seconds: float | None) -> datetime | None:
    """Return a time of the index in UTC."""
    return None if seconds is None else datetime.fromtimestamp(int(seconds), timezone.utc)
