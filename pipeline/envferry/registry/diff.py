"""What is different between two artifacts, and what an update from one to the other reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from envferry.archive.extraction import needed_frames
from envferry.archive.identity import check_manifest
from envferry.archive.reader import Archive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.archive.reader import Source
    from envferry.models import Manifest, PackageFacts


class PackageChange(msgspec.Struct, frozen=True, kw_only=True):
    """One package that two artifacts do not have alike."""

    change: Literal["added", "removed", "changed"]
    kind: str
    name: str
    before: str | None = None
    """Its version; with its build where the version alone does not tell."""
    after: str | None = None
    size_before: int = 0
    """The bytes of its files, uncompressed."""
    size_after: int = 0

    @property
    def grows(self) -> int:
        """The bytes that it takes more."""
        return self.size_after - self.size_before


class UpdateCost(msgspec.Struct, frozen=True, kw_only=True):
    """What a host that has one artifact, installed at its own prefix, reads for the other."""

    bytes: int
    """Exactly, its index included."""
    of_bytes: int
    frames: int
    of_frames: int
    files: int
    """Files whose content it does not have."""
    of_files: int


class ArtifactDifference(msgspec.Struct, frozen=True, kw_only=True):
    """What is different between two artifacts."""

    before: str
    after: str
    archive_before: int
    """The bytes of the archive."""
    archive_after: int
    unpacked_before: int
    unpacked_after: int
    packages: tuple[PackageChange, ...]
    """By name."""
    settings: tuple[str, ...]
    """What else of the manifest is not alike: prefix, version, requirements, checks."""
    update: UpdateCost


def compare_artifacts(
    before: tuple[Manifest, Source], after: tuple[Manifest, Source]
) -> ArtifactDifference:
    """Compare two artifacts; of the archives only the indexes are read.

    Raises IntegrityError when an index is not the one that its manifest binds.
    """
    old, new = before[0], after[0]
    return ArtifactDifference(
        before=old.stem,
        after=new.stem,
        archive_before=old.archive.size,
        archive_after=new.archive.size,
        unpacked_before=old.archive.tar_size,
        unpacked_after=new.archive.tar_size,
        packages=tuple(compare_packages(old.packages, new.packages)),
        settings=tuple(
            name
            for name in ("prefix", "version", "platform", "requirements", "checks", "image")
            if getattr(old, name) != getattr(new, name)
        ),
        # Compared with their manifests first: an index of other bytes would give invented costs.
        update=plan_update(_open(*before), _open(*after)),
    )


def compare_packages(
    before: tuple[PackageFacts, ...], after: tuple[PackageFacts, ...]
) -> Iterator[PackageChange]:
    """Yield the packages that are not alike, by name."""
    old, new = ({(item.name, item.kind): item for item in side} for side in (before, after))
    for key in sorted(old.keys() | new.keys()):
        first, second = old.get(key), new.get(key)
        if first and second and _is_same(first, second):
            continue
        exact = bool(first and second and first.version == second.version)
        yield PackageChange(
            change="changed" if first and second else "added" if second else "removed",
            kind=key[1],
            name=key[0],
            before=_version(first, exact) if first else None,
            after=_version(second, exact) if second else None,
            size_before=first.size if first else 0,
            size_after=second.size if second else 0,
        )


def plan_update(before: Archive, after: Archive) -> UpdateCost:
    """Return what an install of `after` reads where `before` is installed."""
    # Empty files cost no bytes, so they count on neither side.
    there = {entry.xxh128 for entry in before.index.files if entry.size}
    files = after.index.files
    present = {n for n, entry in enumerate(files) if entry.size and entry.xxh128 in there}
    frames = needed_frames(after, present, ())
    return UpdateCost(
        bytes=after.fetch_bytes(frames),
        of_bytes=after.source.size,
        frames=len(frames),
        of_frames=len(after.index.frames),
        files=sum(1 for n, entry in enumerate(files) if entry.size and n not in present),
        of_files=sum(1 for entry in files if entry.size),
    )


def _open(manifest: Manifest, source: Source) -> Archive:
    archive = Archive(source)
    check_manifest(archive, manifest)
    return archive


def _is_same(first: PackageFacts, second: PackageFacts) -> bool:
    # The size as well: wheels have no build, and left-out files change what a package brings.
    return (first.version, first.build, first.size) == (second.version, second.build, second.size)


def _version(package: PackageFacts, exact: bool) -> str:
    return f"{package.version}={package.build}" if exact and package.build else package.version
