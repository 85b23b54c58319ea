"""What hosts say of themselves: `v1/hosts/HOST.json`, written by each, read by operators.

Nothing here is signed, and nothing is believed further than it can do harm: a report may keep an
artifact from being pruned, and is shown; it decides nothing else.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from envferry.base.json import from_json, to_json
from envferry.base.limits import REPORT_BYTES, require_sane
from envferry.base.times import read_time
from envferry.base.workers import Workers
from envferry.errors import NotFound, PipelineError, StoreError, UsageError
from envferry.names import ID_PATTERN, NAME_PATTERN
from envferry.registry.layout import HOSTS, host_key
from envferry.stores.port import LostRace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envferry.registry.registry import Registry
    from envferry.stores.port import Listed

READERS = 16
MOST_HOSTS = 100_000
MOST_TEXT = 400
"""Characters of any text in a report: what is longer is cut where it is written and read."""
FUTURE = timedelta(hours=1)
"""How far a host's clock may be ahead."""


class ReportedEnvironment(msgspec.Struct, frozen=True, kw_only=True):
    """One installation of a host."""

    name: str
    id: str
    platform: str
    is_current: bool
    ref: str = ""
    """What was asked for when it was installed."""
    installed: str = ""
    """When that was, in UTC."""


class ReportedTag(msgspec.Struct, frozen=True, kw_only=True):
    """One tag that a host follows."""

    ref: str
    id: str
    """What it pointed to when the registry answered last."""
    polled: str = ""
    waiting: str = ""
    error: str = ""


class HostReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one host says."""

    host: str
    time: str
    """When it says so, in UTC, by its own clock."""
    envferry: str
    environments: tuple[ReportedEnvironment, ...] = ()
    follows: tuple[ReportedTag, ...] = ()
    schema: int = 1


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """What all hosts say."""

    reports: tuple[HostReport, ...]
    """By host."""
    damaged: dict[str, str]
    """The keys of reports that cannot be used, and why."""


def write_report(registry: Registry, report: HostReport) -> None:
    """Write a host's report over its last one.

    Raises UsageError where a registry cannot be written or lists no hosts, or the report is too
    long; StoreError when it refuses.
    """
    store = registry.store.writable
    if store is None:
        message = f"{registry.url} is read-only: hosts cannot report to it"
        raise UsageError(message, hint="report_to names a directory or s3://bucket/prefix")
    data = to_json(report)
    if len(data) > REPORT_BYTES:
        message = f"the report of {report.host} has {len(data):,} bytes, at most {REPORT_BYTES:,}"
        raise UsageError(message, hint="`envferry remove NAME` removes installations")
    key = host_key(report.host)
    # Only this host writes here: it loses races to itself, as after an answer that got lost.
    for _ in range(3):
        there = store.stat(key)
        try:
            store.replace(key, data, there.version if there else None)
        except LostRace:
            continue
        return
    message = f"{key} in {registry.url} keeps being changed by other processes"
    raise StoreError(message, hint="do two hosts have the same name?")


def read_fleet(registry: Registry) -> Fleet:
    """Read all reports; those that are damaged are named, and the others are read all the same.

    Raises UsageError for a registry that cannot be listed.
    """
    store = registry.store.writable
    if store is None:
        message = f"{registry.url} cannot be listed: the hosts in it are unknown"
        raise UsageError(message, hint="name the directory or bucket behind it")
    # Hosts write below this prefix and are not trusted, so how much is read of it is bounded.
    listed = list(islice(store.list(HOSTS), MOST_HOSTS))

    def read(one: Listed) -> HostReport | str:
        try:
            return checked(one.key, read_report(registry, one))
        except NotFound:
            return ""  # removed since
        except PipelineError as error:
            return error.message

    with Workers(READERS, "fleet") as pool:
        found = dict(zip((one.key for one in listed), pool.map(read, listed), strict=True))
    reports = [one for one in found.values() if isinstance(one, HostReport)]
    damaged = {key: text for key, text in sorted(found.items()) if isinstance(text, str) and text}
    return Fleet(reports=tuple(sorted(reports, key=lambda one: one.host)), damaged=damaged)


def read_report(registry: Registry, one: Listed) -> HostReport:
    """Read one report, no more of it than one has."""
    require_sane(one.size, one.key, registry.url)
    # Of the listed length: a host must not make operators read more than was listed.
    return from_json(registry.store.read(one.key, 0, one.size), HostReport, one.key)


def checked(key: str, report: HostReport) -> HostReport:
    """Return a report without what is not plausible; raise StoreError for one of another host."""
    if key != host_key(report.host):
        message = f"{key} says that it is of {report.host[:MOST_TEXT]!r}"
        raise StoreError(message)
    # Called for its check alone: the functions below rely on a valid time.
    reported_at(report)
    environments = tuple(
        msgspec.structs.replace(one, ref=one_line(one.ref), installed=one_line(one.installed))
        for one in report.environments
        if is_plausible(one)
    )
    follows = tuple(
        msgspec.structs.replace(
            one,
            ref=one_line(one.ref),
            id=one.id if ID_PATTERN.fullmatch(one.id) else "",
            polled=one_line(one.polled),
            waiting=one_line(one.waiting),
            error=one_line(one.error),
        )
        for one in report.follows
    )
    return msgspec.structs.replace(
        report,
        envferry=one_line(report.envferry),
        environments=environments,
        follows=follows,
    )


def one_line(text: str) -> str:
    """Return a text that fits a row of a table: it neither begins a row nor moves the cursor."""
    # Operators' terminals would act on escape sequences in a report.
    return "".join(char if char.isprintable() else "\ufffd" for char in text[:MOST_TEXT])


def is_plausible(one: ReportedEnvironment) -> bool:
    """Whether name, platform and id have the form that a registry allows."""
    names = (NAME_PATTERN.fullmatch(one.name), NAME_PATTERN.fullmatch(one.platform))
    return bool(all(names) and ID_PATTERN.fullmatch(one.id)) and len(one.ref) <= MOST_TEXT


def followed_in_vain(report: HostReport) -> tuple[ReportedTag, ...]:
    """Return the tags that a host follows, with nothing of that environment current there."""
    current = {one.name for one in report.environments if one.is_current}
    return tuple(one for one in report.follows if one.ref.partition("@")[0] not in current)


def reported_at(report: HostReport) -> datetime:
    """Return when a host reported; raise StoreError for what is not a time."""
    found = read_time(report.time)
    if found is None:
        message = f"{report.time[:40]!r} is not a valid time"
        raise StoreError(message)
    return found


def is_recent(report: HostReport, now: datetime, within: timedelta) -> bool:
    """Whether a report is not older than that, nor from the future."""
    # A clock that is years ahead would otherwise protect an artifact for as long.
    return -FUTURE <= now - reported_at(report) <= within


def hosts_of_artifacts(
    reports: Iterable[HostReport], now: datetime, within: timedelta
) -> dict[tuple[str, str, str], list[str]]:
    """Return which hosts have an artifact, by name, platform and id; old reports do not count."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for report in reports:
        if is_recent(report, now, within):
            # A set: a report may name an artifact twice, and its host counts once.
            for artifact in {(one.name, one.platform, one.id) for one in report.environments}:
                found.setdefault(artifact, []).append(report.host)
    return found
