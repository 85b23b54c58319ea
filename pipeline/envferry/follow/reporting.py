"""What this host reports of itself, and when: after changes, and now and then."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
from blake3 import blake3

from envferry.base.files import make_folders, write_bytes
from envferry.base.json import from_json, to_json
from envferry.errors import PipelineError
from envferry.follow.follow_state import FollowState, read_follow_state
from envferry.install.host.host_overview import facts_of
from envferry.install.records.env_home import HOME, EnvHome
from envferry.install.records.installed import environment_names
from envferry.registry.host_reports import (
    MOST_TEXT,
    HostReport,
    ReportedEnvironment,
    ReportedTag,
    write_report,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envferry.registry import Registry

EVERY = timedelta(hours=6)
"""How old a report becomes before it is written again, though nothing changed."""
NOTE = ".reported"
FOLLOW = ".follow-"


class ReportNote(msgspec.Struct, frozen=True, kw_only=True):
    """What was reported last, and where to."""

    registry: str = ""
    digest: str = ""
    """Of the report without its time."""
    time: str = ""
    schema: int = 1


def own_report(envs_dir: Path, *, host: str, time: str, release: str) -> HostReport:
    """Return what there is to say: records only, no file of an environment is read."""
    homes = [EnvHome.of(envs_dir, name) for name in environment_names(envs_dir)]
    return HostReport(
        host=host,
        time=time,
        envferry=release,
        environments=tuple(one for home in homes for one in reported_environments(home)),
        follows=tuple(one for home in homes for one in reported_tags(home)),
    )


def reported_environments(home: EnvHome) -> Iterator[ReportedEnvironment]:
    """Yield the installations of an environment; records that cannot be read are left out."""
    for facts in facts_of(home):
        if facts.problem:
            continue
        yield ReportedEnvironment(
            name=home.name,
            id=facts.id,
            platform=facts.platform,
            is_current=facts.is_current,
            ref=(facts.origin.ref if facts.origin else "")[:MOST_TEXT],
            installed=facts.origin.time if facts.origin else "",
        )


def reported_tags(home: EnvHome) -> Iterator[ReportedTag]:
    """Yield the tags that are followed."""
    for path in sorted(home.directory.glob(f"{FOLLOW}*")):
        tag = path.name.removeprefix(FOLLOW)
        state: FollowState = read_follow_state(home, tag)
        yield ReportedTag(
            ref=f"{home.name}@{tag}",
            id=state.id,
            polled=state.polled,
            waiting=state.waiting[:MOST_TEXT],
            error=state.error[:MOST_TEXT],
        )


def report_if_new(registry: Registry, report: HostReport, envs_dir: Path) -> bool:
    """Write a report unless the last one says the same and is young; say whether it was written.

    A poll that changes nothing therefore still costs one request.
    """
    note = ReportNote(registry=registry.url, digest=digest_of(report), time=report.time)
    path = envs_dir / HOME / NOTE
    last = read_note(path)
    is_same = (last.registry, last.digest) == (note.registry, note.digest)
    if is_same and not is_due(last.time, report.time):
        return False
    # Written before it is noted: a crash in between reports twice, not never.
    write_report(registry, report)
    make_folders(path.parent)
    write_bytes(path, to_json(note))
    return True


def digest_of(report: HostReport) -> str:
    """Return what tells a report from another, times of polls and of the report aside."""
    follows = tuple(msgspec.structs.replace(one, polled="") for one in report.follows)
    plain = msgspec.structs.replace(report, time="", follows=follows)
    return blake3(to_json(plain)).hexdigest()


def read_note(path: Path) -> ReportNote:
    """Return what was reported last; nothing where that is missing or damaged."""
    try:
        return from_json(path.read_bytes(), ReportNote, str(path))
    except (FileNotFoundError, PipelineError):
        return ReportNote()


def is_due(last: str, now: str) -> bool:
    """Whether a report is so old that the next one is due."""
    try:
        # Python 3.10 does not read the `Z`.
        times = [datetime.fromisoformat(one.replace("Z", "+00:00")) for one in (last, now)]
    except ValueError:
        return True
    # A clock that was set back makes a report due, instead of putting it off.
    return not timedelta(0) <= times[1] - times[0] < EVERY
