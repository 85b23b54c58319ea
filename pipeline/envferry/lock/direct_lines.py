"""The lines that a spec itself asks conda for, where rattler alone would not obey them.

Its solver knows strict channel priority only among the records that a line accepts: a version that
the first channel lacks would come from the next one. And it takes no notice of `subdir` and `fn`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rattler import MatchSpec

from envferry.models import without_credentials
from envferry.specs.conda_lines import parse_conda_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rattler import Gateway, RepoDataRecord


class DirectLineError(Exception):
    """A line of the spec that no solution obeys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectLine:
    """A line, and what rattler is asked for to obey it."""

    text: str
    name: str
    matches: tuple[MatchSpec, ...]
    subdir: str | None
    file_name: str | None
    any_channel: bool
    """Whether it leaves open which package is meant, and so which channel it is from."""


def direct_lines(texts: Iterable[str]) -> tuple[DirectLine, ...]:
    """Read the lines of a spec; raise rattler's InvalidMatchSpecError for what is none."""
    return tuple(_direct_line(text) for text in texts)


def _direct_line(text: str) -> DirectLine:
    match = MatchSpec(text)
    line = parse_conda_line(text)
    exact = bool(line and line.version.startswith("==") and line.build and "*" not in line.build)
    file_name = match.file_name
    more: tuple[MatchSpec, ...] = ()
    if file_name:
        stem = file_name.removesuffix(".conda").removesuffix(".tar.bz2")
        name, _, rest = stem.rpartition("-")[0].rpartition("-")
        more = (MatchSpec(f"{name} =={rest} {stem.rpartition('-')[2]}"),)
    return DirectLine(
        text=without_credentials(text),
        name=match.name.normalized,
        matches=(match, *more),
        subdir=match.subdir,
        file_name=file_name,
        any_channel=match.channel is None and not exact and not (line and line.url),
    )


async def check_priority(
    lines: Sequence[DirectLine], sources: Mapping[str, Any], gateway: Gateway, platform: str
) -> None:
    """Raise DirectLineError for a line that only a channel behind the first one satisfies.

    An exact pin with its build says which package it means: exported files mix channels so.
    """
    asked = [line for line in lines if line.any_channel]
    if len(sources) < 2 or not asked:
        return
    names = sorted({line.name for line in asked})

    async def records_of(source: object) -> list[RepoDataRecord]:
        found = await gateway.query(
            [source], [platform, "noarch"], names, recursive=False, channel_relations="disabled"
        )
        return [record for subdir in found for record in subdir]

    found = await asyncio.gather(*map(records_of, sources.values()))
    by_channel = dict(zip(sources, found, strict=True))
    for line in asked:
        records = {
            channel: [item for item in items if item.name.normalized == line.name]
            for channel, items in by_channel.items()
        }
        having = [channel for channel, items in records.items() if items]
        able = [
            channel
            for channel in having
            if any(all(match.matches(item) for match in line.matches) for item in records[channel])
        ]
        if able and able[0] != having[0]:
            first, other = (without_credentials(item) for item in (having[0], able[0]))
            raise DirectLineError(
                f"`{line.text}` is in {other} and not in {first}, which has other builds of "
                f"{line.name} and comes first by strict channel priority: `{other}::{line.text}`"
            )


def check_answer(lines: Sequence[DirectLine], records: Sequence[RepoDataRecord]) -> None:
    """Raise DirectLineError for a solution that is not what a line says."""
    by_name = {record.name.normalized: record for record in records}
    for line in lines:
        record = by_name[line.name]
        for what, wanted, found in (
            ("subdir", line.subdir, record.subdir),
            ("file", line.file_name, record.file_name),
        ):
            if wanted and wanted != found:
                message = f"`{line.text}` asks for the {what} {wanted}, the solution has {found}"
                raise DirectLineError(message)
