"""Solve match specs with rattler, in a worker that leaves at once.

`python -m envferry.lock.conda.solving REQUEST ANSWER`: it reads the extracts of indexes that it is
given, and uses no network.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from datetime import datetime, timezone
from fnmatch import fnmatchcase as fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from envferry.base.json import decode_json
from envferry.lock.conda.repodata import PUBLIC, RepodataExtract
from envferry.lock.conda.spec_lines import RequestedPackage, is_exact
from envferry.models import ChannelPriority  # noqa: TC001  (msgspec reads it)
from envferry.redaction import without_credentials
from envferry.worker_process import Worker, answer_request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rattler import MatchSpec, MultiSource, RepoDataRecord, SparseRepoData


class SolveRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to solve, for one platform."""

    wanted: tuple[RequestedPackage, ...]
    tiers: tuple[tuple[RepodataExtract, ...], ...] = ()
    """What the channels have, in order of priority."""
    virtual_packages: dict[str, tuple[str, str]] = {}
    """Version and build string, by name."""
    kept: tuple[str, ...] = ()
    """URLs of packages that stay where the specs allow it."""
    updated: tuple[str, ...] = ()
    """Names that alone may move; when there are any, all else of `kept` must stay."""
    exclude_newer: str | None = None
    """A date or time (ISO 8601): what a channel got later does not exist."""
    priority: ChannelPriority = "strict"


class SolveAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The records to install, or why there are none."""

    records: tuple[dict[str, Any], ...] = ()
    """As the indexes have them, with `fn`, `url` and `channel`, sorted by name."""
    error: str = ""
    bad_line: str = ""
    """The line that is not a valid match spec, if `error` is about one."""
    elsewhere: tuple[str, ...] = ()
    """`CHANNEL::NAME` of what must come from a channel that strict priority hides."""


def solve(request: SolveRequest) -> SolveAnswer:
    """Solve in a worker; a request without a solution has an answer with an error."""
    with tempfile.TemporaryDirectory(prefix="envferry-solve-") as directory:
        worker = Worker(module="envferry.lock.conda.solving", scratch=Path(directory))
        return worker.ask(request, SolveAnswer)


def work(request: SolveRequest) -> SolveAnswer:
    """Solve in this process."""
    # Imported where it is used: who calls `solve` loads this module as well, and needs no rattler.
    from rattler.exceptions import InvalidMatchSpecError, SolverError

    specs = []
    for wanted in request.wanted:
        try:
            specs.append(_match_spec(wanted.spec))
        except (InvalidMatchSpecError, ValueError) as error:
            return SolveAnswer(error=str(error), bad_line=wanted.line)
    restrict(request.tiers, specs)
    try:
        solver = _Solver(request, specs)
        if request.priority == "strict" and (hidden := solver.hidden_line()):
            return hidden
        return SolveAnswer(records=solver.records(request.priority))
    except SolverError as error:
        # Other priorities hide nothing: a second solve could not find more.
        elsewhere = solver.elsewhere() if request.priority == "strict" else ()
        return SolveAnswer(error=str(error), elsewhere=elsewhere)


def _match_spec(text: str) -> MatchSpec:
    """Parse a match spec; raise for fields that the solver would ignore."""
    from rattler import MatchSpec

    spec = MatchSpec(text)
    if spec.namespace:
        message = "namespaces are not supported"
        raise ValueError(message)
    return spec


def restrict(tiers: Sequence[Sequence[RepodataExtract]], specs: Sequence[MatchSpec]) -> None:
    """Drop from the extracts what fields forbid that rattler's solver does not look at."""
    for spec in specs:
        if not (spec.file_name or spec.subdir) or not spec.name:
            continue
        for item in (item for tier in tiers for item in tier):
            path = Path(item.path)
            content = decode_json(path.read_bytes(), dict[str, Any])
            for key in ("packages", "packages.conda"):
                content[key] = {
                    file: record
                    for file, record in content[key].items()
                    if record["name"] != spec.name.normalized
                    or (spec.subdir in (None, item.subdir) and fnmatch(file, spec.file_name or "*"))
                }
            path.write_bytes(msgspec.json.encode(content))


class _Solver:
    """What one request is solved with."""

    def __init__(self, request: SolveRequest, specs: Sequence[MatchSpec]) -> None:
        from rattler import (
            Channel,
            GenericVirtualPackage,
            MultiSource,
            PackageName,
            SparseRepoData,
            Version,
        )
        from rattler.package import BuildString

        self.request = request
        self.specs = [*specs]
        self.sources: list[MultiSource | SparseRepoData] = []
        self.indexes: list[SparseRepoData] = []
        self.tiers: list[list[SparseRepoData]] = []
        self.first_tiers: dict[str, int] = {}
        """The first tier that has a package of a name."""
        for number, tier in enumerate(request.tiers):
            found = [SparseRepoData(Channel(item.channel), item.subdir, item.path) for item in tier]
            self.indexes += found
            self.tiers.append(found)
            # conda's `defaults` is several channels of one priority.
            is_group = len({item.channel for item in tier}) > 1
            self.sources += [MultiSource(f"tier {number}", found)] if is_group else found
            for name in (name for index in found for name in index.package_names()):
                self.first_tiers.setdefault(name, number)
        self.virtual_packages = [
            GenericVirtualPackage(PackageName(name), Version(version), BuildString(build))
            for name, (version, build) in request.virtual_packages.items()
        ]

    def records(self, priority: ChannelPriority) -> tuple[dict[str, Any], ...]:
        """Return the solution; raise SolverError when none exists."""
        found = [_fields(record) for record in self.solve(priority)]
        # Virtual packages are part of the solution, but have no file.
        real = [record for record in found if not record["name"].startswith("__")]
        return tuple(sorted(real, key=lambda record: str(record["name"])))

    def solve(self, priority: ChannelPriority) -> list[RepoDataRecord]:
        """Have rattler solve."""
        import rattler
        from rattler.solver import solve_with_sparse_repodata

        priorities = {
            "strict": rattler.ChannelPriority.Strict,
            "flexible": rattler.ChannelPriority.Flexible,
            "disabled": rattler.ChannelPriority.Disabled,
        }
        kept, pinned = self._kept()
        newest = self.request.exclude_newer
        return asyncio.run(
            solve_with_sparse_repodata(
                self.specs,
                self.sources,
                locked_packages=kept,
                pinned_packages=pinned,
                virtual_packages=self.virtual_packages,
                channel_priority=priorities[priority],
                exclude_newer=moment(newest) if newest else None,
                # Private channels rarely have a package's upload time: such packages are accepted.
                timestamp_policy="allow-missing",
            )
        )

    def hidden_line(self) -> SolveAnswer | None:
        """Return the error of a line that only a channel behind the first one satisfies.

        The words of rattler's solver would name the packages that conflict, not the way out. An
        exact pin with its build says which package it means, and gets it: exported files mix
        channels so.
        """
        for number, (wanted, spec) in enumerate(zip(self.request.wanted, self.specs, strict=True)):
            if wanted.channel or not spec.name:
                continue
            name = spec.name.normalized
            first = self.first_tiers.get(name, 0)
            able = [tier for tier, found in enumerate(self.tiers) if _has(found, spec, name)]
            if not able or able[0] == first:
                continue
            having, other = (self.request.tiers[tier][0].channel for tier in (first, able[0]))
            if is_exact(wanted.line):
                self.specs[number] = _match_spec(f"{other.rstrip('/')}::{wanted.spec}")
                continue
            line = without_credentials(wanted.line)
            places = f"is in {_shown(other)} and not in {_shown(having)}"
            message = f"`{line}` {places}, which has other {name}"
            return SolveAnswer(error=message, elsewhere=(f"{_shown(other)}::{line}",))
        return None

    def elsewhere(self) -> tuple[str, ...]:
        """Return what a flexible solution takes from channels that strict priority hides."""
        from rattler.exceptions import SolverError

        try:
            found = self.solve("flexible")
        except SolverError:
            return ()
        # Reversed, so that of a channel in several tiers the first one counts: it is written last.
        tiers = {
            item.channel.rstrip("/"): number
            for number, tier in reversed([*enumerate(self.request.tiers)])
            for item in tier
        }
        hidden = [
            record
            for record in found
            if tiers.get(record.channel.rstrip("/"), 0)
            > self.first_tiers.get(record.name.normalized, 0)
        ]
        names = {f"{_shown(record.channel)}::{record.name.normalized}" for record in hidden}
        return tuple(sorted(names))

    def _kept(self) -> tuple[list[RepoDataRecord], list[RepoDataRecord]]:
        """Return the records of what is kept: those that should stay, and those that must."""
        urls = {*self.request.kept}
        # NAME-VERSION-BUILD: a name may have dashes, the other two cannot.
        names = {url.rsplit("/", 1)[-1].rsplit("-", 2)[0] for url in urls}
        records = [
            record
            for index in self.indexes
            for name in sorted(names)
            for record in index.load_records(name)
            if without_credentials(record.url) in urls
        ]
        if not self.request.updated:
            return records, []
        moving = {name.lower() for name in self.request.updated}
        staying = [record for record in records if record.name.normalized not in moving]
        return staying, staying


def _has(indexes: Sequence[SparseRepoData], spec: MatchSpec, name: str) -> bool:
    """Whether a channel has a package that a spec accepts."""
    return any(spec.matches(record) for index in indexes for record in index.load_records(name))


def _fields(record: RepoDataRecord) -> dict[str, Any]:
    """Return a record as its index has it, with where it is."""
    fields: dict[str, Any] = json.loads(record.to_json())
    return {
        **fields,
        "fn": record.file_name,
        # These go into locks, which are published: no logins.
        "url": without_credentials(record.url),
        "channel": without_credentials(record.channel or ""),
    }


def _shown(channel: str) -> str:
    """Return a channel as people write it."""
    return without_credentials(channel).rstrip("/").removeprefix(f"{PUBLIC}/")


def moment(text: str) -> datetime:
    """Return a date or time; what names no zone is UTC."""
    # Python 3.10 does not read the `Z` of ISO 8601.
    found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


if __name__ == "__main__":
    answer_request(SolveRequest, lambda request, _: work(request))
