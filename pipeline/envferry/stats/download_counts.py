"""Downloads of artifacts, counted out of logged requests: nothing phones home.

An archive is fetched in many parts, and an update reads some parts only. So what one client gets of
one archive on one day is one download. Clients are counted, never named.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from envferry.artifacts import ARCHIVE_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envferry.stats.access_log import LoggedRequest

NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"
ARCHIVE = re.compile(
    rf"(?:.*/)?v1/envs/(?P<name>{NAME})/(?P<platform>{NAME})/(?P<id>[0-9a-f]{{12}})/"
    rf"(?P=name)-(?P=platform)-(?P=id){re.escape(ARCHIVE_SUFFIX)}"
)
SENT = (200, 206)


class Downloads(msgspec.Struct, frozen=True, kw_only=True):
    """How often an artifact, or all of an environment, was fetched."""

    name: str
    platform: str
    id: str
    """Empty for all artifacts of an environment."""
    downloads: int
    """Pairs of a client and a day."""
    clients: int
    sent: int
    """Bytes."""
    first: str
    last: str
    """Days, in UTC."""


class DownloadCounter(msgspec.Struct):
    """What was counted so far."""

    places: dict[tuple[str, str, str], _Count] = msgspec.field(default_factory=dict)
    lines: int = 0
    not_understood: int = 0

    def count(self, requests: Iterable[LoggedRequest | None]) -> None:
        """Count requests; None is a line that was not understood."""
        for one in requests:
            self.lines += 1
            if one is None:
                self.not_understood += 1
            elif one.method == "GET" and one.status in SENT:
                self._add(one)

    def _add(self, request: LoggedRequest) -> None:
        found = ARCHIVE.fullmatch(request.path)
        if found:
            place = (found["name"], found["platform"], found["id"])
            day = request.time.date().isoformat()
            count = self.places.setdefault(place, _Count())
            count.visits.add((request.client, day))
            count.sent += request.sent

    def result(self, *, by_name: bool = False) -> tuple[Downloads, ...]:
        """Return the counts, the most frequent first; of whole environments with `by_name`."""
        summed: dict[tuple[str, str, str], _Count] = {}
        for (name, platform, id_), count in self.places.items():
            place = (name, platform, "") if by_name else (name, platform, id_)
            total = summed.setdefault(place, _Count())
            total.visits |= count.visits
            total.sent += count.sent
        found = [_downloads(place, count) for place, count in summed.items()]
        return tuple(
            sorted(found, key=lambda one: (-one.downloads, one.name, one.platform, one.id))
        )


class _Count(msgspec.Struct):
    visits: set[tuple[str, str]] = msgspec.field(default_factory=set)
    sent: int = 0


def _downloads(place: tuple[str, str, str], count: _Count) -> Downloads:
    days = [day for _, day in count.visits]
    name, platform, id_ = place
    return Downloads(
        name=name,
        platform=platform,
        id=id_,
        downloads=len(count.visits),
        clients=len({client for client, _ in count.visits}),
        sent=count.sent,
        first=min(days),
        last=max(days),
    )
