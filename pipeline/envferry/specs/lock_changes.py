"""What is different between two locks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import msgspec

from envferry.base.text import human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from envferry.models import Lock, LockedPackage

ChangeKind = Literal["added", "removed", "changed"]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One package that two locks do not have alike."""

    kind: ChangeKind
    manager: str
    name: str
    platform: str
    before: str | None = None
    """Version, and the build or commit where the version alone does not tell."""
    after: str | None = None
    size_before: int | None = None
    """Bytes to download; None where a channel's index does not say it, and for pip packages."""
    size_after: int | None = None
    license: str | None = None
    """The newest one that is known, as the channel's index says it."""

    def __str__(self) -> str:
        sign = {"added": "+", "removed": "-", "changed": "~"}[self.kind]
        versions = " → ".join(text for text in (self.before, self.after) if text)
        return f"{sign} {self.manager} {self.name} {versions}  ({self.platform})"


def compare_locks(before: Lock | None, after: Lock) -> tuple[Change, ...]:
    """Return what `after` has otherwise than `before`, by platform, half and name.

    A package that moved from one half to the other is one that changed.
    """
    old = _by_name(before.packages if before else ())
    new = _by_name(after.packages)
    return tuple(_changes(old, new))


def markdown_table(changes: Sequence[Change]) -> list[str]:
    """Return the lines of a Markdown table, for the summaries of CI jobs."""
    lines = [
        "| | package | before | after | size | licence | platform |",
        "|---|---|---|---|---:|---|---|",
    ]
    for change in changes:
        cells = (
            {"added": "new", "removed": "gone", "changed": ""}[change.kind],
            f"{change.name} ({change.manager})",
            change.before or "",
            change.after or "",
            _size_change(change),
            change.license or "",
            change.platform,
        )
        lines.append("| " + " | ".join(_cell(text) for text in cells) + " |")
    return lines


def _size_change(change: Change) -> str:
    if change.before and change.after:
        if change.size_before is None or change.size_after is None:
            return ""
        difference = change.size_after - change.size_before
        sign = "+" if difference >= 0 else "-"
        return f"{sign}{human_bytes(abs(difference))}"
    size = change.size_after if change.after else change.size_before
    if size is None:
        return ""
    return f"{'+' if change.after else '-'}{human_bytes(size)}"


def _cell(text: str) -> str:
    """Return text that cannot leave its cell: versions and licences come from channels."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))


_Key = tuple[str, str]


def _by_name(packages: tuple[LockedPackage, ...]) -> dict[_Key, LockedPackage]:
    # Without the half: a package that moved from one to the other is one change, not two.
    return {(package.platform, package.name): package for package in packages}


def _changes(old: dict[_Key, LockedPackage], new: dict[_Key, LockedPackage]) -> Iterator[Change]:
    for key in sorted(old.keys() | new.keys()):
        first, second = old.get(key), new.get(key)
        if first and second and _same(first, second):
            continue
        found = second or first
        assert found is not None
        kind: ChangeKind = "changed" if first and second else "added" if second else "removed"
        # With equal versions, only the build, the half or the hash tells them apart.
        exact = bool(first and second and first.version == second.version)
        yield Change(
            kind=kind,
            manager=found.manager,
            name=found.name,
            platform=found.platform,
            before=_version(first, second, exact) if first else None,
            after=_version(second, first, exact) if second else None,
            size_before=first.record.get("size") if first else None,
            size_after=second.record.get("size") if second else None,
            license=found.record.get("license"),
        )


def _same(first: LockedPackage, second: LockedPackage) -> bool:
    alike = (first.manager, first.version, first.build) == (
        *(second.manager, second.version, second.build),
    )
    # The hash as well: an index may serve another file for the same version and build.
    return alike and (first.sha256 or first.md5) == (second.sha256 or second.md5)


def _version(package: LockedPackage, other: LockedPackage | None, exact: bool) -> str:
    """Say a version, with as much more as tells it from the other one."""
    if not exact or other is None:
        return package.version
    if package.manager != other.manager:
        return f"{package.version} ({package.manager})"
    if package.build != other.build:
        return f"{package.version}={package.build}"
    return f"{package.version} ({(package.sha256 or package.md5 or '')[:12]})"
