"""What a request asks for: texts, the part of a list, and the order of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from envferry.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

T = TypeVar("T")

ROWS = 100
"""On a page."""
LONGEST_TEXT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Paging:
    """Which part of a long list a page shows."""

    page: int
    pages: int
    total: int


@dataclass(frozen=True, slots=True)
class Order:
    """By what a list is sorted."""

    sort: str
    descending: bool


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """Something that a list can be sorted by."""

    key: Callable[[T], Any]
    descends: bool = False
    """Whether the largest, or newest, come first where nothing else is asked for."""


@dataclass(frozen=True, slots=True)
class PageRequest:
    """What a request asks for, its path and its query."""

    path: Mapping[str, str]
    query: Mapping[str, str]

    def text(self, name: str) -> str:
        """Return a text of the query; raise UsageError when it is too long."""
        text = self.query.get(name, "").strip()
        if len(text) > LONGEST_TEXT:
            message = f"{name} has {len(text)} characters, {LONGEST_TEXT} are allowed"
            raise UsageError(message, hint="shorten the query")
        return text

    def paging(self, total: int, rows: int = ROWS) -> Paging:
        """Return which part of a list is asked for; the nearest one that there is."""
        text = self.text("page")
        # Rounded up; an empty list has a page, too.
        pages = max(1, -(-total // rows))
        page = min(max(int(text), 1), pages) if text.isascii() and text.isdecimal() else 1
        return Paging(page=page, pages=pages, total=total)

    def paginate(self, found: Sequence[T], rows: int = ROWS) -> tuple[tuple[T, ...], Paging]:
        """Return the part of a list that the page shows."""
        paging = self.paging(len(found), rows)
        return tuple(found[(paging.page - 1) * rows : paging.page * rows]), paging

    def order(self, columns: Mapping[str, Column[Any]], prefix: str = "") -> Order:
        """Return by which of the columns to sort, the first one by default.

        `prefix` is for the second list of a page.
        """
        asked = self.text(f"{prefix}sort")
        sort = asked if asked in columns else next(iter(columns))
        ways = {"asc": False, "desc": True}
        return Order(sort, ways.get(self.text(f"{prefix}order"), columns[sort].descends))


def ordered(rows: Iterable[T], order: Order, columns: Mapping[str, Column[T]]) -> tuple[T, ...]:
    """Sort rows; those that are equal stay as they are."""
    return tuple(sorted(rows, key=columns[order.sort].key, reverse=order.descending))


def time_key(time: datetime | None) -> float:
    """Order times; what has none is the oldest."""
    return time.timestamp() if time else 0.0
