"""Check an environment against a database of advisories: what is affected, clean or unknown.

"Clean" is said only of what the database could know: a package of an ecosystem that it holds, under
a name that is certain. All else is unknown, with the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from envferry.audit.advisory import LEVELS, Level, repository_key
from envferry.audit.ranges import fixed_versions, judge

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from envferry.audit.advisory import Advisory, AffectedPackage
    from envferry.audit.advisory_database import AdvisoryDatabase
    from envferry.audit.components import AuditComponent
    from envferry.audit.ranges import Verdict
    from envferry.pack.c_libraries import CLibrary

State = Literal["found", "clean", "unknown"]
SHOWN_IDS = 3
OSS_FUZZ = "OSV-"
"""Ids of what fuzzing found: far from all that is known of a library."""


class Silence(msgspec.Struct, frozen=True, kw_only=True):
    """Why a vulnerability does not count, and until when."""

    reason: str
    until: str
    """The last day, as `2027-01-31`."""
    source: str
    """The file that says so."""


class Vulnerability(msgspec.Struct, frozen=True, kw_only=True):
    """One vulnerability of one package: all records that are aliases of each other."""

    id: str
    aliases: tuple[str, ...]
    level: Level
    summary: str
    fixed: tuple[str, ...]
    """The versions that fix it."""
    silenced: Silence | None = None


class AuditedPackage(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one package, or of a library in one."""

    name: str
    version: str
    kind: str
    within: str
    state: State
    reason: str
    """Why it is unknown; of one that was found, what could not be decided besides."""
    vulnerabilities: tuple[Vulnerability, ...] = ()


def audit_component(component: AuditComponent, database: AdvisoryDatabase) -> AuditedPackage:
    """Say what a database knows of a component."""
    hits: list[tuple[Advisory, tuple[str, ...]]] = []
    undecided: dict[str, None] = {}
    reasons = [component.unknown] if component.unknown else []
    for advisory, affected, version, verdict in _verdicts(component, database):
        if verdict == "affected":
            # By the version of that name: a component may have another one on PyPI than in conda.
            hits.append((advisory, fixed_versions(affected, version)))
        elif verdict == "undecided":
            undecided[advisory.id] = None
    if undecided:
        ids = [*undecided]
        more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
        shown = ", ".join(ids[:SHOWN_IDS])
        reasons.append(f"{shown}{more} cannot be decided for version {component.version}")
    reasons += _gaps(component, database)
    vulnerabilities = _merged(hits)
    # "clean" needs both: nothing was found, and nothing speaks against the answer.
    state: State = "found" if vulnerabilities else "unknown" if reasons else "clean"
    return AuditedPackage(
        name=component.name,
        version=component.version,
        kind=component.kind,
        within=component.within,
        state=state,
        reason="; ".join(dict.fromkeys(reasons)),
        vulnerabilities=vulnerabilities,
    )


def judge_component(component: AuditComponent, advisories: Iterable[Advisory]) -> Verdict:
    """Say whether any of some advisories affects a component."""
    found = [verdict for *_, verdict in _against(component, advisories)]
    for verdict in ("affected", "undecided"):
        if verdict in found:
            return verdict
    return "unaffected"


def _verdicts(
    component: AuditComponent, database: AdvisoryDatabase
) -> Iterator[tuple[Advisory, AffectedPackage, str, Verdict]]:
    keys = [name.key for name in component.upstream]
    if component.library:
        keys += map(repository_key, component.library.repositories)
    # By id: several names of one component may lead to the same record.
    known = {advisory.id: advisory for key in keys for advisory in database.about(key)}
    return _against(component, known.values())


def _against(
    component: AuditComponent, advisories: Iterable[Advisory]
) -> Iterator[tuple[Advisory, AffectedPackage, str, Verdict]]:
    library = component.library
    repositories = set(map(repository_key, library.repositories)) if library else set()
    all_of_them = tuple(advisories)
    has_tags = library is not None and any(
        library.is_tag(text)
        for advisory in all_of_them
        for affected in advisory.affected
        if affected.keys() & repositories
        for text in affected.versions
    )
    for advisory in all_of_them:
        for affected in advisory.affected:
            keys = affected.keys()
            for name in component.upstream:
                if name.key in keys:
                    yield advisory, affected, name.version, judge(affected, name.version)
            if library and keys & repositories:
                verdict = _judge_tags(affected, library, component.version)
                # Only where other records list this library's tags: then a record without any
                # means no release.
                if verdict == "undecided" and has_tags and _is_between_releases(affected):
                    verdict = "unaffected"
                yield advisory, affected, component.version, verdict


def _judge_tags(affected: AffectedPackage, library: CLibrary, version: str) -> Verdict:
    """Say whether a library's version is affected, by the tags of its releases."""
    tags = library.tags_of(version)
    if any(tag in affected.versions for tag in tags):
        return "affected"
    verdicts = {judge(affected, tag) for tag in (*tags, version)}
    if "affected" in verdicts:
        return "affected"
    # A list that has none of its tags is about something else than we think.
    is_understood = any(library.is_tag(text) for text in affected.versions)
    return "unaffected" if verdicts == {"unaffected"} and is_understood else "undecided"


def _is_between_releases(affected: AffectedPackage) -> bool:
    """Whether a fault that OSS-Fuzz found was introduced and fixed between two releases.

    Its records list all tags that have the fault, where a repository's tags are known at all.
    """
    is_listed = affected.ecosystem == "OSS-Fuzz" and not affected.versions
    return is_listed and all(any(event.fixed for event in one.events) for one in affected.ranges)


def _gaps(component: AuditComponent, database: AdvisoryDatabase) -> Iterator[str]:
    """Say why nothing found would not mean clean."""
    for name in component.upstream:
        if name.ecosystem not in database.facts.ecosystems:
            yield f"the database has no advisories for {name.ecosystem}"
        elif not name.certain and not database.knows(name.key):
            yield f"nothing says that it is {name.name} of {name.ecosystem}"
    if library := component.library:
        keys = map(repository_key, library.repositories)
        known = [one for key in keys for one in database.about(key)]
        if not known:
            yield f"the database has no entries for {library.repositories[0]}"
        elif all(one.id.startswith(OSS_FUZZ) for one in known):
            yield f"of {library.repositories[0]} the database has only what OSS-Fuzz found"


def _merged(hits: list[tuple[Advisory, tuple[str, ...]]]) -> tuple[Vulnerability, ...]:
    """Make one of all records that have a name in common."""
    groups: list[tuple[set[str], list[tuple[Advisory, tuple[str, ...]]]]] = []
    for hit in hits:
        names, members = set(hit[0].names), [hit]
        # A new record may connect groups that had no name in common, so all of them are joined.
        for group in [one for one in groups if one[0] & names]:
            names |= group[0]
            members = [*group[1], *members]
            groups.remove(group)
        groups.append((names, members))
    found = [_vulnerability(names, members) for names, members in groups]
    return tuple(sorted(found, key=lambda one: (-LEVELS.index(one.level), one.id)))


def _vulnerability(
    names: set[str], members: list[tuple[Advisory, tuple[str, ...]]]
) -> Vulnerability:
    # The CVE id comes first: it is the one that policies and other tools use.
    ordered = sorted(names, key=lambda name: (not name.startswith("CVE-"), name))
    # One record without a level does not hide the level that another one states.
    levels = [one.level for one, _ in members if one.level != "unknown"]
    return Vulnerability(
        id=ordered[0],
        aliases=tuple(ordered[1:]),
        level=max(levels, key=LEVELS.index) if levels else "unknown",
        summary=next((one.summary for one, _ in members if one.summary), ""),
        fixed=tuple(dict.fromkeys(version for _, fixed in members for version in fixed)),
    )
