"""Advisories: what is read of records in the OSV format, and kept in the database.

https://ossf.github.io/osv-schema/ (1.7)
"""

from __future__ import annotations

import re
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
from packaging.utils import canonicalize_name

from envferry.audit.distributions import BUG_FIXES
from envferry.base.json import convert, decode_json
from envferry.errors import IntegrityError

Level = Literal["none", "low", "medium", "high", "critical", "unknown"]
LEVELS: tuple[Level, ...] = ("none", "low", "medium", "high", "critical", "unknown")
"""Qualitative severities of CVSS, the least first; what has none may be the worst."""
WORDS: dict[str, Level] = {"MODERATE": "medium", "IMPORTANT": "high"}
"""What GitHub and Red Hat call some of them."""
DISTRIBUTED = ("ALSA-", "RLSA-")
"""Ids of AlmaLinux and Rocky Linux, whose summaries begin with the level: `Important: …`."""
MOST_SUMMARY = 200
ADVISORY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")


class SkippedRecord(msgspec.Struct, frozen=True):
    """A record of an archive that could not be read."""

    file: str
    reason: str


class RangeEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """A point of a range; exactly one of its fields is set."""

    introduced: str | None = None
    fixed: str | None = None
    last_affected: str | None = None
    limit: str | None = None


class VersionRange(msgspec.Struct, frozen=True, omit_defaults=True):
    """Versions between events."""

    type: str
    events: tuple[RangeEvent, ...] = ()
    repo: str = ""


class AffectedPackage(msgspec.Struct, frozen=True, omit_defaults=True):
    """One package that an advisory is about."""

    ecosystem: str = ""
    name: str = ""
    ranges: tuple[VersionRange, ...] = ()
    versions: tuple[str, ...] = ()

    def keys(self) -> set[str]:
        """Return the names under which it is looked for."""
        if self.ecosystem and self.ecosystem not in ("GIT", "OSS-Fuzz"):
            return {package_key(self.ecosystem, self.name)}
        return {repository_key(one.repo) for one in self.ranges if one.repo}


class Advisory(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One record."""

    id: str
    modified: str
    aliases: tuple[str, ...] = ()
    upstream: tuple[str, ...] = ()
    """The vulnerabilities that a distribution's advisory is about: several, so no aliases."""
    summary: str = ""
    level: Level = "unknown"
    affected: tuple[AffectedPackage, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """All ids of what it describes."""
        return frozenset((self.id, *self.aliases))


class _Package(msgspec.Struct):
    ecosystem: str
    name: str


class _Severity(msgspec.Struct):
    type: str
    score: str


class _Affected(msgspec.Struct):
    package: _Package | None = None
    severity: tuple[_Severity, ...] = ()
    ranges: tuple[VersionRange, ...] = ()
    versions: tuple[str, ...] = ()


class _Record(msgspec.Struct):
    id: str
    modified: str
    withdrawn: str | None = None
    aliases: tuple[str, ...] = ()
    upstream: tuple[str, ...] = ()
    related: tuple[str, ...] = ()
    summary: str = ""
    details: str = ""
    severity: tuple[_Severity, ...] = ()
    affected: tuple[_Affected, ...] = ()
    database_specific: dict[str, Any] = {}


def read_osv(data: bytes) -> Advisory | None:
    """Return the advisory of an OSV record; None for one that was withdrawn or fixes only bugs.

    Raises IntegrityError, with the reason, for what is not a valid record.
    """
    try:
        # A field that is null is a field that is not there.
        found = decode_json(data, dict[str, Any])
        record = convert(_without_nulls(found), _Record)
    except (msgspec.MsgspecError, RecursionError) as error:
        message = f"not an OSV record: {error}"
        raise IntegrityError(message) from error
    if not ADVISORY_ID.fullmatch(record.id):
        message = f"not an OSV record: its id is {record.id[:40]!r}"
        raise IntegrityError(message)
    if record.withdrawn or record.id.startswith(BUG_FIXES):
        return None
    affected = tuple(map(_affected, record.affected))
    if faults := [fault for one in affected for fault in _faults(one)]:
        raise IntegrityError("; ".join(faults[:3]))
    # GitHub's records have a summary; many of PyPA's have details only.
    text = record.summary or record.details
    return Advisory(
        id=record.id,
        modified=record.modified,
        # Ids are printed and compared: what does not look like one is dropped.
        aliases=tuple(alias for alias in record.aliases if ADVISORY_ID.fullmatch(alias)),
        upstream=_upstream(record),
        summary=" ".join(text.split())[:MOST_SUMMARY],
        level=_level(record),
        affected=affected,
    )


def _upstream(record: _Record) -> tuple[str, ...]:
    """Return what a distribution's record is about; AlmaLinux says it as `related`."""
    said = record.upstream or (record.related if record.id.startswith(DISTRIBUTED) else ())
    return tuple(one for one in said if ADVISORY_ID.fullmatch(one))


def package_key(ecosystem: str, name: str) -> str:
    """Return under which name a package of an ecosystem is looked for."""
    return f"{ecosystem}/{canonicalize_name(name) if ecosystem == 'PyPI' else name}"


def repository_key(url: str) -> str:
    """Return under which name a git repository is looked for, however its URL is written."""
    try:
        parts = urlsplit(url if "://" in url else f"https://{url}")
    except ValueError:  # `https://[`: no repository has it, and nothing else is lost
        return f"git/{url}"
    path = parts.path.strip("/").removesuffix(".git").lower()
    return f"git/{(parts.hostname or '').lower()}/{path}"


def _without_nulls(value: Any) -> Any:  # noqa: ANN401  (JSON)
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _affected(found: _Affected) -> AffectedPackage:
    package = found.package
    return AffectedPackage(
        ecosystem=package.ecosystem if package else "",
        name=package.name if package else "",
        ranges=found.ranges,
        versions=found.versions,
    )


def _faults(affected: AffectedPackage) -> list[str]:
    """Say what no range of the format may have."""
    faults = []
    for one in affected.ranges:
        fields = [
            [event.introduced, event.fixed, event.last_affected, event.limit]
            for event in one.events
        ]
        # The schema's own rule. A range that breaks it could be read in two ways, and one of them
        # says "clean".
        if any(sum(field is not None for field in event) != 1 for event in fields):
            faults.append(
                f"an event of {affected.name or one.repo} does not have exactly one field"
            )
        if not any(event.introduced is not None for event in one.events):
            faults.append(f"a range of {affected.name or one.repo} has no `introduced`")
    return faults


def _level(record: _Record) -> Level:
    """Return how severe a record is: by its vectors, the newest CVSS, else by its own word."""
    scores = [*record.severity, *(one for item in record.affected for one in item.severity)]
    for one in sorted(scores, key=lambda score: score.type, reverse=True):
        if (level := _of_vector(one)) is not None:
            return level
    word = str(record.database_specific.get("severity", "")).upper()
    if not word and record.id.startswith(DISTRIBUTED):
        word = record.summary.partition(":")[0].upper()
    found = WORDS.get(word, word.lower())
    return next((level for level in LEVELS if level == found), "unknown")


def _of_vector(severity: _Severity) -> Level | None:
    """Return the level of a CVSS vector; None for one that is not valid."""
    # Imported here: only making a database needs it, not every audit.
    from cvss import CVSS2, CVSS3, CVSS4, CVSSError

    kinds = {"CVSS_V2": CVSS2, "CVSS_V3": CVSS3, "CVSS_V4": CVSS4}
    if severity.type not in kinds:
        return None
    try:
        score = float(kinds[severity.type](severity.score).scores()[0])
    except (CVSSError, IndexError, KeyError, ValueError):
        return None
    bounds: tuple[tuple[float, Level], ...] = (
        *((9.0, "critical"), (7.0, "high")),
        *((4.0, "medium"), (0.1, "low")),
    )
    return next((level for least, level in bounds if score >= least), "none")
