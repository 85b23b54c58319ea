"""What a release will pack, send and have hosts read, estimated from a version before.

Of a package that both versions have alike, all is known: its frames will be the same. One that is
new in its version is taken to be as large as it was; of one that is new altogether, its download
is the estimate, where the lock knows its size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from envferry.archive.index import PackageEntry
    from envferry.archive.reader import Archive
    from envferry.models import Lock, LockedPackage

Key = tuple[Literal["conda", "pypi", "none", "generated"], str]


class ExpectedArchive(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of an archive that is not made yet, in bytes; estimates."""

    packages: int
    changed: int
    """Packages that the version before has not, or not in this version and build."""
    unknown: int
    """Those of them of whose size nothing is known: all figures are too low by them."""
    tree: int
    """Of the tar stream."""
    archive: int
    fresh: int
    """Of the archive, what the version before has not: changed packages, files without a package,
    what packing generates, the index."""


def expect_archive(lock: Lock, platform: str, before: Archive) -> ExpectedArchive:
    """Estimate the archive of a lock by one that is like it."""
    there: dict[Key, PackageEntry] = {
        (entry.kind, canonicalize_name(entry.name)): entry for entry in before.index.packages
    }
    locked = lock.for_platform(platform)
    tree = archive = fresh = changed = unknown = 0
    for package in locked:
        entry = there.get(key_of(package))
        # A download is compressed: it stands for the frames, and says
        # nothing on what it unpacks to.
        size = sizes_of(before, entry) if entry else (0, int(package.record.get("size") or 0))
        is_same = entry is not None and is_alike(entry, package)
        changed += not is_same
        unknown += entry is None and not size[1]
        tree, archive = tree + size[0], archive + size[1]
        fresh += 0 if is_same else size[1]
    for entry in before.index.packages:
        # Files of no package and what packing generates: in every archive, and different in each.
        if entry.kind not in ("conda", "pypi"):
            size = sizes_of(before, entry)
            tree, archive, fresh = tree + size[0], archive + size[1], fresh + size[1]
    # Index and seek table: other bytes in each version, of about the same length.
    end = before.source.size - sum(frame.size for frame in before.index.frames)
    return ExpectedArchive(
        packages=len(locked),
        changed=changed,
        unknown=unknown,
        tree=tree,
        archive=archive + end,
        fresh=fresh + end,
    )


def sizes_of(archive: Archive, entry: PackageEntry) -> tuple[int, int]:
    """Return the bytes of a package's frames: what they hold, and compressed."""
    frames = archive.index.frames[entry.first_frame : entry.first_frame + entry.frames]
    return sum(frame.tar_size for frame in frames), sum(frame.size for frame in frames)


def key_of(package: LockedPackage) -> Key:
    """Return what a package of a lock is called in an index."""
    return ("conda" if package.manager == "conda" else "pypi", canonicalize_name(package.name))


def is_alike(entry: PackageEntry, package: LockedPackage) -> bool:
    """Whether an archive has a package in the version that a lock names."""
    same_build = package.manager != "conda" or entry.build == (package.build or "")
    return entry.version == package.version and same_build
