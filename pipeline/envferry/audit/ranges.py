"""Whether an advisory affects a version, by the OSV format's own rules.

https://ossf.github.io/osv-schema/#evaluation: a version is affected if the list of versions has it,
or if a range does. What cannot be decided is said, and is not "no".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from msgspec.structs import replace

from envferry.audit.distributions import RPM
from envferry.audit.version_order import base_ecosystem, pep440_key, public_version, version_key

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from envferry.audit.advisory import AffectedPackage, RangeEvent, VersionRange

Verdict = Literal["affected", "unaffected", "undecided"]
ORDER = ("introduced", "last_affected", "fixed", "limit")
"""Of several events at one version, what comes first."""
START, WITHOUT_END = "0", "*"
EPOCH = re.compile(r"^\d+:")


def judge(affected: AffectedPackage, version: str) -> Verdict:
    """Say whether a version of the package is affected."""
    affected = _without_epochs(affected, version)
    is_python = base_ecosystem(affected.ecosystem) == "PyPI"
    wanted = public_version(version) if is_python else version
    # The list first: an entry in it counts even where no range says so.
    if _is_listed(affected, {version, wanted}, is_python=is_python):
        return "affected"
    # Commits have no order without the repository, which an offline audit does not have.
    ordered = [one for one in affected.ranges if one.type != "GIT"]
    verdicts = [judge_range(one, affected.ecosystem, wanted) for one in ordered]
    if "affected" in verdicts:
        return "affected"
    if "undecided" in verdicts:
        return "undecided"
    if ordered:
        return "unaffected"
    return _by_list(affected)


def judge_range(one: VersionRange, ecosystem: str, version: str) -> Verdict:
    """Say whether a range holds a version."""
    key = version_key(one.type, ecosystem)
    position = key(version) if key else None
    if key is None or position is None:
        return "undecided"
    events = [
        (name, text, _place(key, name, text))
        for event in one.events
        for name, text in _fields(event)
    ]
    # One event that cannot be placed could move the end of the range across the version.
    if any(place is None for _, _, place in events):
        return "undecided"
    limits = [place for name, text, place in events if name == "limit" and text != WITHOUT_END]
    if limits and not any(_is_before(position, place) for place in limits):
        return "unaffected"
    return "affected" if _is_inside(position, events) else "unaffected"


def fixed_versions(affected: AffectedPackage, version: str) -> tuple[str, ...]:
    """Return the versions that fix it and are newer than `version`, the oldest first."""
    affected = _without_epochs(affected, version)
    found: dict[str, None] = {}
    for one in affected.ranges:
        key = version_key(one.type, affected.ecosystem)
        position = key(version) if key else None
        if key is None or position is None:
            continue
        fixes = [(key(event.fixed), event.fixed) for event in one.events if event.fixed]
        newer = [item for item in fixes if item[0] is not None and item[0] > position]
        found.update((text, None) for _, text in sorted(newer, key=lambda item: item[0]))
    return tuple(found)


def _without_epochs(affected: AffectedPackage, version: str) -> AffectedPackage:
    """Leave out the epochs of an RPM advisory for a version that is told without: it has one, too.

    Else every such version would be older than 1:0.
    """
    if base_ecosystem(affected.ecosystem) not in RPM or ":" in version:
        return affected
    ranges = tuple(
        replace(
            one,
            events=tuple(
                replace(event, **{name: EPOCH.sub("", text) for name, text in _fields(event)})
                for event in one.events
            ),
        )
        for one in affected.ranges
    )
    return replace(affected, ranges=ranges)


def _is_inside(position: Any, events: Sequence[tuple[str, str, Any]]) -> bool:  # noqa: ANN401
    """Walk the events in the order of their versions, as the format says."""
    inside = False
    for name, _, place in sorted(events, key=_event_order):
        if name == "introduced" and not _is_before(position, place):
            inside = True
        ends = name == "fixed" and not _is_before(position, place)
        if ends or (name == "last_affected" and _is_before(place, position)):
            inside = False
    return inside


class _First:
    """Before every version."""


FIRST = _First()


def _place(key: Callable[[str], Any], name: str, text: str) -> Any:  # noqa: ANN401
    is_start = (name, text) == ("introduced", START) or (name, text) == ("limit", WITHOUT_END)
    return FIRST if is_start else key(text)


def _is_before(one: Any, other: Any) -> bool:  # noqa: ANN401
    if one is FIRST or other is FIRST:
        return one is FIRST and other is not FIRST
    return bool(one < other)


def _event_order(event: tuple[str, str, Any]) -> Any:  # noqa: ANN401
    name, _, place = event
    return (0, 0, ORDER.index(name)) if place is FIRST else (1, place, ORDER.index(name))


def _fields(event: RangeEvent) -> list[tuple[str, str]]:
    values = ((name, getattr(event, name)) for name in ORDER)
    return [(name, text) for name, text in values if text is not None]


def _is_listed(affected: AffectedPackage, wanted: set[str], *, is_python: bool) -> bool:
    if wanted & set(affected.versions):
        return True
    if not is_python:
        return False
    # `1.0` and `1.0.0` are one version by PEP 440, and lists have either.
    versions = {pep440_key(text) for text in wanted} - {None}
    return any(pep440_key(text) in versions for text in affected.versions)


def _by_list(affected: AffectedPackage) -> Verdict:
    """Say what it means that a list without a range of versions does not name a version.

    Where only commits say what is affected, the list has the releases that were out when it was
    made: newer ones are affected, too, unless a commit ends the range.
    """
    ends = [
        any(event.fixed or event.last_affected for event in one.events) for one in affected.ranges
    ]
    return "unaffected" if affected.versions and all(ends) else "undecided"
