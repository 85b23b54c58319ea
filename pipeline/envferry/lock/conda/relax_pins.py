"""Replace conda pins that a channel cannot satisfy by ones that it can, as little as possible.

Compares them with rattler, in a worker process that leaves at once:
`python -m envferry.lock.conda.relax_pins REQUEST ANSWER`.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from envferry.errors import SpecError
from envferry.lock.conda.repodata import RepodataExtract, extract
from envferry.lock.conda.spec_lines import requested_package
from envferry.lock.solver_output import tidy
from envferry.models import Replacement
from envferry.redaction import without_credentials
from envferry.worker_process import Worker, answer_request

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rattler import MatchSpec, PackageRecord

    from envferry.lock.conda.repodata import ChannelIndexes

RelaxLevel = Literal["build", "patch", "all"]
LEVELS: tuple[RelaxLevel, ...] = ("build", "patch", "all")
PINNED_VERSION = re.compile(r"=*\s*(?P<minor>\d+\.\d+)(\.[\w.+!]*)?(\.\*)?")


class RelaxRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Pins, and how far they may be relaxed."""

    specs: tuple[str, ...]
    channels: tuple[str, ...]
    platform: str
    level: RelaxLevel
    tiers: tuple[tuple[RepodataExtract, ...], ...] = ()
    """What the channels have of these packages."""


class RelaxAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The pins to solve instead of those asked for."""

    specs: tuple[str, ...] = ()
    replacements: tuple[Replacement, ...] = ()
    error: str = ""


def relax_pins(request: RelaxRequest, indexes: ChannelIndexes) -> RelaxAnswer:
    """Relax the pins that no record of the channels satisfies.

    `build` drops build strings; `patch` also keeps no more than major.minor of a version; `all`
    also drops the version, and leaves out what the channels do not have at all. The first of
    these steps that a record satisfies is taken.
    Raises StoreError when a channel cannot be reached, SpecError when a pin cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="envferry-relax-") as directory:
        scratch = Path(directory)
        worker = Worker(module="envferry.lock.conda.relax_pins", scratch=scratch)
        answer = worker.ask(_with_records(request, indexes, scratch), RelaxAnswer)
    if not answer.error:
        return answer
    words = tidy(answer.error)
    channels = without_credentials(", ".join(request.channels))
    message = f"the conda half cannot be relaxed against {channels}: {words}"
    raise SpecError(message, hint="correct the pin that it names")


def _with_records(request: RelaxRequest, indexes: ChannelIndexes, scratch: Path) -> RelaxRequest:
    """Add what the channels have of the packages."""
    wanted = [requested_package(spec, request.channels) for spec in request.specs]
    folder = scratch / "index"
    folder.mkdir()
    names = {item.name for item in wanted if item.name}
    tiers = extract(indexes, request.channels, request.platform, names, folder)
    return msgspec.structs.replace(request, tiers=tiers)


def _relax(request: RelaxRequest) -> RelaxAnswer:
    """Compare every pin with the records of its name: the body of the worker."""
    from rattler import Channel, MatchSpec, SparseRepoData

    # Only `channels` were read: of another channel no record could satisfy the pin.
    wanted = {
        spec: MatchSpec(_without_other_channel(spec, request.channels)) for spec in request.specs
    }
    indexes = [
        SparseRepoData(Channel(item.channel), item.subdir, item.path)
        for tier in request.tiers
        for item in tier
    ]
    found = [
        index.load_records(name)
        for index in indexes
        for name in sorted({_name(spec) for spec in wanted.values()})
    ]
    records: dict[str, list[PackageRecord]] = {}
    for record in (record for source in found for record in source):
        records.setdefault(record.name.normalized, []).append(record)
    used, replacements = [], []
    for asked, match in wanted.items():
        kept = _without_other_channel(asked, request.channels)
        relaxed = _first_satisfied(kept, match, records.get(_name(match), []), request.level)
        if relaxed:
            used.append(relaxed)
        # A channel that was dropped counts as a change, too.
        if relaxed != asked:
            replacements.append(Replacement(asked=asked, used=relaxed, platform=request.platform))
    return RelaxAnswer(specs=tuple(used), replacements=tuple(replacements))


def _without_other_channel(spec: str, channels: Sequence[str]) -> str:
    """Drop the `channel::` of a pin when that channel is not searched."""
    channel, colons, rest = spec.partition("::")
    return rest if colons and channel not in channels else spec


def _first_satisfied(
    asked: str, match: MatchSpec, records: Sequence[PackageRecord], level: RelaxLevel
) -> str:
    """Return the pin closest to `asked` that a record satisfies, `asked` itself when none is.

    An empty answer leaves the package out: nothing of its name is there.
    """
    from rattler import MatchSpec

    if not records:
        return "" if level == "all" else asked
    # From the closest to the loosest: the first that fits changes least.
    for step in (asked, *_steps(match, level)):
        candidate = MatchSpec(step)
        if any(candidate.matches(record) for record in records):
            return step
    return asked


def _steps(match: MatchSpec, level: RelaxLevel) -> Iterator[str]:
    """Yield weaker and weaker pins, as far as `level` allows."""
    name, version = _name(match), (match.version or "").strip()
    if version and version != "*":
        # rattler spells an exact version `==1.2`, which both solvers read after a blank.
        yield f"{name} {version}"
        pinned = PINNED_VERSION.fullmatch(version)
        if pinned and level in LEVELS[1:]:
            yield f"{name} {pinned['minor']}.*"
    if level == "all":
        yield name


def _name(match: MatchSpec) -> str:
    return str(match.name.normalized)


def _work(request: RelaxRequest, _: Path) -> RelaxAnswer:
    from rattler.exceptions import InvalidMatchSpecError, InvalidVersionError

    try:
        return _relax(request)
    except (InvalidMatchSpecError, InvalidVersionError) as error:
        return RelaxAnswer(error=str(error))


if __name__ == "__main__":
    answer_request(RelaxRequest, _work)
