"""Which artifacts hold a file, or a module to import: questions to the index of files."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from envferry.errors import UsageError
from envferry.index.file_rows import content_number
from envferry.index.holder import HOLDER, Holder, count_unread, holder_facts, tags_by_place
from envferry.index.queries import EVERYTHING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from envferry.index.database import Connection
    from envferry.index.queries import Filter

MOST_FILES = 20_000
"""A pattern that fits more different files means nothing in particular."""
MOST_MATCHES = 50_000
MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
SITE_PACKAGES = "lib/python*/site-packages"
SUFFIXES = (".py", ".so", ".*.so")
"""After a module's own name; a package has an `__init__` with one of them."""


class FilePattern(msgspec.Struct, frozen=True, kw_only=True):
    """The last part of a path, and the folder that it is in; both may have `*`, `?` and `[…]`."""

    name: str
    folder: str = ""
    """The folder, or its last parts; empty for any."""
    is_whole: bool = False
    """Whether the folder is counted from the top."""

    @classmethod
    def parse(cls, text: str) -> FilePattern:
        """Parse what a user writes: `libcudnn.so.9`, `libcudnn*`, `lib/libz.so*`, `/bin/python3`.

        A leading slash is the top of the environment. Raises UsageError for a folder.
        """
        folder, _, name = text.removeprefix("./").rpartition("/")
        if not name:
            message = f"{text!r} names no file"
            raise UsageError(message, hint="write the file's name, or the end of its path")
        return cls(name=name, folder=folder.strip("/"), is_whole=text.startswith("/"))

    def places(self) -> tuple[str, list[str]]:
        """Return how to select the numbers of name, folder and list, and the values for it."""
        condition, values = self._condition()
        return f"SELECT name, folder, list FROM placed WHERE {condition}", values

    def _condition(self) -> tuple[str, list[str]]:
        names = f"placed.name IN (SELECT number FROM file_names WHERE {_fits('name', self.name)})"
        if not (self.is_whole or self.folder):
            return names, [self.name]
        same = _fits("folder", self.folder)
        if self.is_whole:
            folders = f"SELECT number FROM file_folders WHERE {same}"
            return f"{names} AND placed.folder IN ({folders})", [self.name, self.folder]
        ends = f"({same} OR folder GLOB ?)"
        values = [self.name, self.folder, f"*/{self.folder}"]
        if _is_pattern(self.name):
            folders = f"SELECT number FROM file_folders WHERE {ends}"
            return f"{names} AND placed.folder IN ({folders})", values
        # Few files have one name: theirs are compared, not all folders that there are.
        one = f"SELECT 1 FROM file_folders WHERE number = placed.folder AND {ends}"
        return f"{names} AND EXISTS ({one})", values


class FileContent(msgspec.Struct, frozen=True):
    """Files of one content, wherever they are."""

    xxh128: str

    def places(self) -> tuple[str, list[int]]:
        """Return how to select the numbers of name, folder and list, and the values for it."""
        number = content_number(self.xxh128)
        return "SELECT name, folder, list FROM held WHERE content = ?", [number]


class FileMatch(Holder, frozen=True, kw_only=True):
    """A file in an artifact."""

    path: str
    package: str
    """Empty for a file that no package owns."""
    package_version: str


def module_patterns(module: str) -> tuple[FilePattern, ...]:
    """Return the files of which one is there when `import MODULE` works; raise UsageError.

    What has neither `__init__` nor a file of its own, a namespace, is not found.
    """
    if not MODULE.fullmatch(module):
        message = f"{module!r} is not the name of a module"
        raise UsageError(message, hint="as in `import google.protobuf`, without `import`")
    *above, last = module.split(".")
    folder = "/".join([SITE_PACKAGES, *above])
    inside = f"{folder}/{last}"
    return tuple(
        FilePattern(name=f"{name}{suffix}", folder=where, is_whole=True)
        for name, where in (("__init__", inside), (last, folder))
        for suffix in SUFFIXES
    )


def find_files(
    wanted: Iterable[FilePattern | FileContent], where: Filter = EVERYTHING
) -> Callable[[Connection], tuple[FileMatch, ...]]:
    """Find artifacts that hold a file: by environment, the newest first.

    Raises UsageError where too much is found to be read.
    """
    selections = [one.places() for one in wanted]
    condition, values = where.sql()
    statement = (
        "SELECT place.value ->> 0, file_names.name, file_folders.folder, file_lists.package, "
        f"file_lists.version, {HOLDER} FROM json_each(?) AS place "
        "JOIN file_lists ON file_lists.number = place.value ->> 2 "
        "JOIN file_names ON file_names.number = place.value ->> 0 "
        "JOIN file_folders ON file_folders.number = place.value ->> 1 "
        "JOIN listed ON listed.list = file_lists.number "
        f"JOIN artifacts ON artifacts.number = listed.artifact WHERE {condition} "
        # One more than allowed, to notice that there are more.
        f"LIMIT {MOST_MATCHES + 1}"
    )

    def query(connection: Connection) -> tuple[FileMatch, ...]:
        # A set: one file may fit several patterns.
        placed = {row for one in selections for row in _placed(connection, *one)}
        _require_few(len(placed), MOST_FILES)
        # One JSON value for `json_each`: SQLite takes 32,766 bound values at most by default.
        text = "[" + ",".join(f"[{name},{folder},{list_}]" for name, folder, list_ in placed) + "]"
        rows = connection.execute(statement, [text, *values]).fetchall()
        _require_few(len(rows), MOST_MATCHES)
        tags = tags_by_place(connection, where.name)
        return tuple(_match(row, tags) for row in sorted(rows, key=_order))

    return query


def count_unsearched(where: Filter = EVERYTHING) -> Callable[[Connection], dict[str, int]]:
    """Count the artifacts whose files are not known, by reason."""
    return count_unread("filed", "filed.artifact = artifacts.number", where.sql())


def _require_few(number: int, most: int) -> None:
    if number > most:
        message = f"more than {most} files fit"
        hint = "name more of the file or its folder, an environment, or add --tagged"
        raise UsageError(message, hint=hint)


def _placed(
    connection: Connection, selection: str, values: list[str] | list[int]
) -> list[tuple[int, ...]]:
    """Return the files that fit: numbers of name, folder and list."""
    return connection.execute(f"{selection} LIMIT {MOST_FILES + 1}", values).fetchall()


def _fits(column: str, pattern: str) -> str:
    """Compare as fast as the pattern allows: an equal text is looked up."""
    # GLOB and not LIKE, which ignores the case of ASCII letters: names of files differ by it.
    return f"{column} {'GLOB' if _is_pattern(pattern) else '='} ?"


def _is_pattern(text: str) -> bool:
    return any(char in text for char in "*?[")


def _order(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Sort as the other lists are: by environment, the newest first."""
    _, name, folder, package, _, env, platform, id_, _, published = row
    return (env, platform, -(published or 0), id_, package, folder, name)


def _match(row: tuple[Any, ...], tags: dict[tuple[str, str, str], tuple[str, ...]]) -> FileMatch:
    _, name, folder, package, version, *holder = row
    return FileMatch(
        path=f"{folder}/{name}" if folder else name,
        package=package,
        package_version=version,
        **holder_facts(tuple(holder), tags),
    )
