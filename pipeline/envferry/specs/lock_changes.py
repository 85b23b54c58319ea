"""What is different between two locks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

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


_Key = tuple[str, str]


def _by_name(packages: tuple[LockedPackage, ...]) -> dict[_Key, LockedPackage]:
    return {(package.platform, package.name): package for package in packages}


def _changes(old: dict[_Key, LockedPackage], new: dict[_Key, LockedPackage]) -> Iterator[Change]:
    for key in sorted(old.keys() | new.keys()):
        first, second = old.get(key), new.get(key)
        if first and second and _same(first, second):
            continue
        found = second or first
        assert found is not None
        kind: ChangeKind = "changed" if first and second else "added" if second else "removed"
        exact = bool(first and second and first.version == second.version)
        yield Change(
            kind=kind,
            manager=found.manager,
            name=found.name,
            platform=found.platform,
            before=_version(first, second, exact) if first else None,
            after=_version(second, first, exact) if second else None,
        )


def _same(first: LockedPackage, second: LockedPackage) -> bool:
    alike = (first.manager, first.version, first.build) == (
        *(second.manager, second.version, second.build),
    )
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
