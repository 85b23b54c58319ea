"""What can be asked of an index. Each function takes the connection: `index.ask(query)`."""

from __future__ import annotations

from datetime import datetime, timezone
from functools import cmp_to_key
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from envferry.index.holder import Holder, tags_by_place, time_of
from envferry.index.match_spec import compare_conda
from envferry.index.rows import fact
from envferry.models import PackageFacts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from envferry.index.database import Connection
    from envferry.index.match_spec import MatchSpec

ENTRY = (
    "number, name, platform, id, version, size, unpacked, packages, published, attested, problem"
)
PACKAGE = "number, name, version, kind, build, license"
NEWEST_FIRST = "published DESC, id"


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One artifact, as the index has it."""

    name: str
    platform: str
    id: str
    version: str | None
    size: int
    """The bytes of its archive."""
    unpacked: int
    """The bytes of its files."""
    packages: int
    published: datetime | None
    """When its manifest was published, by the store's own clock, in UTC."""
    attested: bool
    """Whether an attestation lies beside it; who signed that is another question."""
    problem: str | None
    """What is wrong with a damaged one; sizes and packages are unknown then."""
    tags: tuple[str, ...] = ()


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """All artifacts of one name."""

    name: str
    platforms: tuple[str, ...]
    versions: int
    damaged: int
    size: int
    """The bytes of all archives."""
    published: datetime | None
    """When the newest was published."""
    tags: tuple[str, ...]
    """Those that moved last come first."""


class Tag(msgspec.Struct, frozen=True, kw_only=True):
    """A tag, as the index has it."""

    name: str
    platform: str
    tag: str
    id: str | None
    counter: int | None
    """How often it has moved."""
    signed: bool
    moved: datetime
    """When it was last written, by the store's own clock, in UTC."""
    problem: str | None
    """What is wrong with it: damaged, or it points to nothing."""


class Match(Holder, frozen=True, kw_only=True):
    """A package in an artifact."""

    package: str
    version: str
    kind: str
    build: str | None
    license: str | None


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which artifacts to list; None and False for all."""

    name: str | None = None
    platform: str | None = None
    tag: str | None = None
    is_tagged: bool = False

    def sql(self) -> tuple[str, list[Any]]:
        """Return a condition on `artifacts` and its values."""
        conditions, values = ["state != 'unfinished'"], list[Any]()
        for column in ("name", "platform"):
            if (value := getattr(self, column)) is not None:
                conditions.append(f"artifacts.{column} = ?")
                values.append(value)
        if self.tag is not None or self.is_tagged:
            conditions.append(
                "EXISTS (SELECT 1 FROM tags WHERE tags.name = artifacts.name AND "
                "tags.platform = artifacts.platform AND tags.id = artifacts.id"
                + (" AND tags.tag = ?)" if self.tag is not None else ")")
            )
            values += [] if self.tag is None else [self.tag]
        return " AND ".join(conditions), values


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """How much a registry holds, and how fresh the index is."""

    environments: int
    artifacts: int
    damaged: int
    size: int
    packages: int
    """Different ones, by name, version and build."""
    refreshed_at: datetime | None


EVERYTHING = Filter()


class MatchPart(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of a list of matches, and in which order."""

    order: Literal["environment", "package", "version", "published"] = "environment"
    is_descending: bool = False
    # SQLite takes a negative limit for none.
    limit: int = -1
    offset: int = 0


WHOLE = MatchPart()
MATCH_ORDERS = {
    "environment": "name",
    "package": "rank",
    "version": "rank",
    "published": "published",
}
version_key = cmp_to_key(compare_conda)
"""Orders versions as they follow each other: 2.9 before 2.10."""


def entries(
    wanted: Filter = EVERYTHING, limit: int = -1, offset: int = 0
) -> Callable[[Connection], tuple[Entry, ...]]:
    """List artifacts by name and platform, the newest first; damaged ones, too."""
    condition, values = wanted.sql()
    statement = (
        f"SELECT {ENTRY} FROM artifacts WHERE {condition} "
        f"ORDER BY name, platform, {NEWEST_FIRST} LIMIT ? OFFSET ?"
    )

    def query(connection: Connection) -> tuple[Entry, ...]:
        rows = connection.execute(statement, [*values, limit, offset]).fetchall()
        tags = tags_by_place(connection, wanted.name)
        return tuple(_entry(row, tags) for row in rows)

    return query


def count(wanted: Filter = EVERYTHING) -> Callable[[Connection], int]:
    """Count artifacts."""
    condition, values = wanted.sql()
    statement = f"SELECT count(*) FROM artifacts WHERE {condition}"
    return lambda connection: int(connection.execute(statement, values).fetchone()[0])


def environments(part: str = "") -> Callable[[Connection], tuple[Environment, ...]]:
    """List environments whose name holds `part`, by name."""
    # instr and not LIKE, for which each `_` of a name would fit any letter.
    statement = """
SELECT name, group_concat(DISTINCT platform), count(*), sum(state = 'damaged'), sum(size),
  max(published) FROM artifacts WHERE state != 'unfinished' AND instr(lower(name), lower(?))
GROUP BY name ORDER BY name
"""

    def query(connection: Connection) -> tuple[Environment, ...]:
        tags: dict[str, dict[str, None]] = {}
        for name, tag in connection.execute("SELECT name, tag FROM tags ORDER BY moved DESC, tag"):
            tags.setdefault(name, {})[tag] = None
        return tuple(
            Environment(
                name=row[0],
                # NAME_PATTERN allows no comma, which group_concat puts in between.
                platforms=tuple(sorted(row[1].split(","))),
                versions=row[2],
                damaged=row[3],
                size=row[4],
                published=time_of(row[5]),
                tags=tuple(tags.get(row[0], ())),
            )
            for row in connection.execute(statement, (part,))
        )

    return query


def all_tags(name: str | None = None) -> Callable[[Connection], tuple[Tag, ...]]:
    """List tags; those that point to nothing say so."""
    statement = """
SELECT tags.name, tags.platform, tag, tags.id, counter, signed, moved, tags.problem, state
FROM tags LEFT JOIN artifacts ON (artifacts.name, artifacts.platform, artifacts.id) =
  (tags.name, tags.platform, tags.id)
WHERE ? IS NULL OR tags.name = ? ORDER BY tags.name, tags.platform, tag
"""

    def query(connection: Connection) -> tuple[Tag, ...]:
        return tuple(
            Tag(
                name=row[0],
                platform=row[1],
                tag=row[2],
                id=row[3],
                counter=row[4],
                signed=bool(row[5]),
                moved=time_of(row[6]) or datetime.fromtimestamp(0, timezone.utc),
                problem=row[7]
                or (
                    None
                    # NULL for a tag whose artifact is not in the index at all.
                    if row[8] == "published"
                    else "it points to an artifact that does not exist"
                ),
            )
            for row in connection.execute(statement, (name, name))
        )

    return query


def find(
    wanted: MatchSpec, where: Filter = EVERYTHING, part: MatchPart = WHOLE
) -> Callable[[Connection], tuple[Match, ...]]:
    """Find the artifacts that hold a package: by environment, the newest first."""
    return _matches(lambda connection: _accepted(connection, wanted), where, part)


def find_packages(
    accepts: Callable[[PackageFacts], bool], where: Filter = EVERYTHING
) -> Callable[[Connection], tuple[Match, ...]]:
    """Find the artifacts that hold any package that is accepted, as `find` does.

    Each package is asked about once, however many artifacts hold it.
    """

    def accepted(connection: Connection) -> dict[int, tuple[Any, ...]]:
        rows = connection.execute(f"SELECT {PACKAGE} FROM packages")
        return {row[0]: row[1:] for row in rows if accepts(_facts(row[1:]))}

    return _matches(accepted, where, WHOLE)


def _facts(row: tuple[Any, ...]) -> PackageFacts:
    name, version, kind, build, license_ = row
    return PackageFacts(
        name=name, version=version, kind=kind, build=build or None, license=license_ or None
    )


def _matches(
    accepted: Callable[[Connection], dict[int, tuple[Any, ...]]],
    where: Filter,
    part: MatchPart,
) -> Callable[[Connection], tuple[Match, ...]]:
    condition, values = where.sql()
    first = MATCH_ORDERS[part.order] + (" DESC" if part.is_descending else "")
    statement = (
        "WITH wanted (chosen, rank) AS (SELECT value, key FROM json_each(?)) "
        f"SELECT chosen, {ENTRY} FROM wanted JOIN contents ON contents.package = chosen "
        f"JOIN artifacts ON artifacts.number = contents.artifact WHERE {condition} "
        f"ORDER BY {first}, name, platform, {NEWEST_FIRST}, rank LIMIT ? OFFSET ?"
    )

    def query(connection: Connection) -> tuple[Match, ...]:
        found = accepted(connection)
        tags = tags_by_place(connection, where.name)
        # The rank of a package is its place in this list: SQLite knows no versions.
        ranked = sorted(found, key=lambda number: _rank(found[number], part.order))
        rows = connection.execute(statement, [_json(ranked), *values, part.limit, part.offset])
        return tuple(_match(found[row[0]], _entry(row[1:], tags)) for row in rows)

    return query


def _rank(package: tuple[Any, ...], order: str) -> tuple[Any, ...]:
    name, version = package[0].lower(), version_key(package[1])
    return (version, name) if order == "version" else (name, version)


def count_finds(wanted: MatchSpec, where: Filter = EVERYTHING) -> Callable[[Connection], int]:
    """Count what `find` finds."""
    condition, values = where.sql()
    # Only published artifacts have contents: without a filter no other table is asked.
    join = f"JOIN artifacts ON artifacts.number = contents.artifact AND {condition}"
    if where == EVERYTHING:
        join, values = "", []
    statement = (
        f"SELECT count(*) FROM contents {join} "
        "WHERE contents.package IN (SELECT value FROM json_each(?))"
    )

    def query(connection: Connection) -> int:
        numbers = _json(_accepted(connection, wanted))
        return int(connection.execute(statement, [*values, numbers]).fetchone()[0])

    return query


def versions_of(wanted: MatchSpec) -> Callable[[Connection], tuple[str, ...]]:
    """Return all versions of a package that are there, wanted or not, the newest last."""

    def query(connection: Connection) -> tuple[str, ...]:
        versions = {row[2] for row in _named(connection, wanted.name)}
        return tuple(sorted(versions, key=version_key))

    return query


def totals(connection: Connection) -> Totals:
    """Count everything."""
    row = connection.execute(
        "SELECT count(DISTINCT name), count(*), coalesce(sum(state = 'damaged'), 0), "
        "coalesce(sum(size), 0) FROM artifacts WHERE state != 'unfinished'"
    ).fetchone()
    (packages,) = connection.execute("SELECT count(*) FROM packages").fetchone()
    return Totals(
        environments=row[0],
        artifacts=row[1],
        damaged=row[2],
        size=row[3],
        packages=packages,
        refreshed_at=time_of(fact(connection, "refreshed_at") or None),
    )


def _accepted(connection: Connection, wanted: MatchSpec) -> dict[int, tuple[Any, ...]]:
    """Return the packages that are meant: number to name, version, kind and build."""
    rows = _named(connection, wanted.name)
    return {row[0]: row[1:] for row in rows if wanted.accepts(row[2], row[4])}


def _json(numbers: Iterable[int]) -> str:
    return "[" + ",".join(map(str, numbers)) + "]"


def _named(connection: Connection, name: str) -> Iterable[tuple[Any, ...]]:
    """Return the packages of a name, which may hold `*`."""
    comparison = "GLOB" if "*" in name else "="
    return connection.execute(
        f"SELECT {PACKAGE} FROM packages WHERE normal {comparison} ?",
        (name,),
    )


def _entry(row: tuple[Any, ...], tags: dict[tuple[str, str, str], tuple[str, ...]]) -> Entry:
    _, name, platform, id_, version, size, unpacked, packages, published, attested, problem = row
    return Entry(
        name=name,
        platform=platform,
        id=id_,
        version=version,
        size=size,
        unpacked=unpacked,
        packages=packages,
        published=time_of(published),
        attested=bool(attested),
        problem=problem,
        tags=tags.get((name, platform, id_), ()),
    )


def _match(package: tuple[Any, ...], entry: Entry) -> Match:
    name, version, kind, build, license_ = package
    return Match(
        package=name,
        version=version,
        kind=kind,
        build=build or None,
        license=license_ or None,
        name=entry.name,
        platform=entry.platform,
        id=entry.id,
        env_version=entry.version,
        published=entry.published,
        tags=entry.tags,
    )
