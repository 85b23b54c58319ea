"""What was published last, and badges: for readers that are not people."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING

import msgspec

from envferry.base.times import rfc3339
from envferry.errors import NotFound
from envferry.index import queries
from envferry.index.queries import Filter
from envferry.names import DEFAULT_TAG, check_name
from envferry.registry.layout import check_tag

if TYPE_CHECKING:
    from envferry.index.queries import Entry
    from envferry.web.page_request import PageRequest
    from envferry.web.site import RegistryView

MOST_NEWS = 50
LETTER = 6.6
"""The width of a letter in a badge, about: its text is stretched to fit."""
NEVER = datetime.fromtimestamp(0, timezone.utc)


class News(msgspec.Struct, frozen=True, kw_only=True):
    """The newest artifacts of a registry, or of one environment."""

    name: str | None
    updated: str
    entries: tuple[tuple[Entry, str], ...]
    """Each with the time when it was published, in RFC 3339."""


class Badge(msgspec.Struct, frozen=True, kw_only=True):
    """Two words side by side, with their widths in pixels."""

    left: str
    right: str
    is_good: bool

    @property
    def widths(self) -> tuple[int, int]:
        """The widths of both halves."""
        return tuple(round(len(text) * LETTER) + 12 for text in (self.left, self.right))  # type: ignore[return-value]


def list_news(site: RegistryView, name: str | None) -> News:
    """Return what was published last; raise NotFound for an environment that is not there."""
    if name is not None:
        check_name(name, "environment name")
    found = [one for one in site.ask(queries.entries(Filter(name=name))) if not one.problem]
    if name is not None and not found:
        message = f"this registry has no environment {name}"
        raise NotFound(message, hint="see all environments")
    # The id decides between equal times, so that the feed, and its ETag, stay the same.
    found.sort(key=lambda one: (one.published or NEVER, one.id), reverse=True)
    entries = tuple((one, rfc3339(one.published or NEVER)) for one in found[:MOST_NEWS])
    # An Atom feed has a time, also when it is empty (RFC 4287, 4.1.1).
    return News(name=name, updated=entries[0][1] if entries else rfc3339(NEVER), entries=entries)


def badge_of(site: RegistryView, request: PageRequest) -> Badge:
    """Return what a tag of an environment points to: its version, else the id."""
    name = check_name(request.path["name"], "environment name")
    tag = check_tag(request.text("tag") or DEFAULT_TAG)
    platform = request.text("platform")
    for one in site.ask(queries.all_tags(name)):
        if one.tag == tag and platform in ("", one.platform) and one.id and not one.problem:
            entry = site.entry(name, one.platform, one.id)
            return Badge(left=f"{name} {tag}", right=entry.version or entry.id, is_good=True)
    return Badge(left=f"{name} {tag}", right="not published", is_good=False)
