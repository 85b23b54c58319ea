"""Look after the download cache: list it, verify it, remove what was not used recently."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from envferry.base.files import exclusive_lock, remove_tree
from envferry.base.json import decode_json
from envferry.build.cache_locks import ENTRY_LOCK, cache_lock, entry_lock
from envferry.build.download import ALGORITHMS, hash_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DAY_SECONDS = 86400
DIGEST = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")


class CacheEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One verified download."""

    path: Path
    algorithm: str
    digest: str
    size: int
    used: float
    """When a build last asked for it, in seconds since 1970."""


class CachedIndex(msgspec.Struct, frozen=True, kw_only=True):
    """An index of a channel, unpacked."""

    path: Path
    url: str
    size: int
    used: float
    """When a lock last asked for it, in seconds since 1970."""


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """What was removed."""

    files: int
    size: int


def list_entries(root: Path) -> list[CacheEntry]:
    """Return all downloads, those used last first; other files there are ignored."""
    entries = [
        read_entry(path)
        for algorithm in ALGORITHMS
        for path in root.glob(f"{algorithm}/??/*/*")
        # Names with a dot are the lock and halves of downloads.
        if DIGEST.fullmatch(path.parent.name) and not path.name.startswith(".") and path.is_file()
    ]
    return sorted(entries, key=lambda entry: (-entry.used, entry.path.name))


def list_indexes(root: Path) -> list[CachedIndex]:
    """Return the indexes of channels that were fetched, those used last first."""
    entries = []
    for note in root.glob("*/about.json"):
        index, lock = note.with_name("index"), note.with_name(ENTRY_LOCK)
        if index.is_file() and lock.is_file():
            about = decode_json(note.read_bytes(), dict[str, str])
            used, size = lock.stat().st_mtime, index.stat().st_size
            entries.append(CachedIndex(path=index, url=about["url"], size=size, used=used))
    return sorted(entries, key=lambda entry: (-entry.used, entry.url))


def prune_indexes(root: Path, *, older_than: float, dry_run: bool = False) -> Pruned:
    """Remove indexes, shards and notes that no lock used since then; see `prune_entries`."""
    if not root.is_dir():
        return Pruned(files=0, size=0)
    sizes = []
    # Alone, as there: a lock reads an index piece by piece, and waits for the lock in its folder.
    with cache_lock(root, shared=False):
        for lock in list(root.glob(f"*/{ENTRY_LOCK}")):
            if lock.stat().st_mtime < older_than:
                files = [path for path in lock.parent.iterdir() if path != lock]
                sizes += [path.stat().st_size for path in files if path.name == "index"]
                if not dry_run:
                    shutil.rmtree(lock.parent)
        for pattern in ("shards/*/*", "places/*"):
            for path in list(root.glob(pattern)):
                if path.stat().st_mtime < older_than:
                    sizes.append(path.stat().st_size)
                    if not dry_run:
                        path.unlink()
    return Pruned(files=len(sizes), size=sum(sizes))


def read_entry(path: Path) -> CacheEntry:
    """Describe a download by its path: `ALGORITHM/ab/DIGEST/FILE`."""
    lock = path.with_name(ENTRY_LOCK)
    return CacheEntry(
        path=path,
        algorithm=path.parts[-4],
        digest=path.parts[-2],
        size=path.stat().st_size,
        # A cache that was copied may lack the locks; then the file's own time has to do.
        used=(lock if lock.exists() else path).stat().st_mtime,
    )


def verify_entries(root: Path, advance: Callable[[int], None]) -> list[CacheEntry]:
    """Hash every download and remove those whose bytes are wrong; return these.

    Builds may go on: what one of them replaces meanwhile is looked at before or after.
    """
    with cache_lock(root, shared=True):
        return [entry for entry in list_entries(root) if remove_damaged(entry, advance)]


def remove_damaged(entry: CacheEntry, advance: Callable[[int], None]) -> bool:
    """Remove a download whose bytes are wrong; return whether they were."""
    lock = entry.path.with_name(ENTRY_LOCK)
    is_new = not lock.exists()
    with entry_lock(entry.path.parent, using=False):
        if is_new:  # its time counts from now on
            os.utime(lock, (entry.used, entry.used))
        is_damaged = (
            # It may be gone: a build that found it damaged has removed it since the listing.
            entry.path.exists() and hash_file(entry.path, entry.algorithm, advance) != entry.digest
        )
        if is_damaged:
            entry.path.unlink()
    return is_damaged


def prune_entries(root: Path, *, older_than: float, dry_run: bool = False) -> Pruned:
    """Remove downloads last used before `older_than` (seconds since 1970) and halves of downloads.

    With `dry_run` nothing is removed: the answer says what would be. Raises TargetOccupied while a
    build or a lock uses the cache.
    """
    if not root.is_dir():
        return Pruned(files=0, size=0)
    with cache_lock(root, shared=False):
        files = [entry.path for entry in list_entries(root) if entry.used < older_than]
        files += [path for name in ALGORITHMS for path in root.glob(f"{name}/??/*/.*.partial")]
        repositories = list(old_repositories(root, older_than))
        sizes = [path.stat().st_size for path in files] + [size for _, size in repositories]
        if not dry_run:
            for path in files:
                path.unlink()
            for algorithm in ALGORITHMS:
                remove_empty(root / algorithm)
            for folder, _ in repositories:
                shutil.rmtree(folder)
            for record in list(root.glob("made/*.json")):
                if record.stat().st_mtime < older_than:
                    record.unlink()
    return Pruned(files=len(sizes), size=sum(sizes))


def old_repositories(root: Path, older_than: float) -> Iterator[tuple[Path, int]]:
    """Yield the repositories that no build or lock asked for since, and the size of each."""
    for lock in list(root.glob(f"git/*/{ENTRY_LOCK}")):
        if lock.stat().st_mtime < older_than:
            files = [path for path in lock.parent.rglob("*") if path.is_file()]
            yield lock.parent, sum(path.stat().st_size for path in files)


def remove_empty(directory: Path) -> None:
    """Remove entries that hold nothing but their lock, and directories that hold nothing."""
    for entry in filter(Path.is_dir, directory.glob("??/*")):
        # Safe only with the cache held alone: a lock file that is removed under a waiter protects
        # nothing.
        if {path.name for path in entry.iterdir()} <= {ENTRY_LOCK}:
            shutil.rmtree(entry)
    for group in filter(Path.is_dir, directory.glob("??")):
        if not any(group.iterdir()):
            group.rmdir()


def remove_leftovers(builds: Path, *, dry_run: bool = False) -> Iterator[Path]:
    """Remove what builds that were killed left behind; yield what that was."""
    for left in sorted([*builds.glob("*.partial"), *builds.glob("*.again")]):
        name = left.name.removesuffix(".partial")
        if dry_run:
            yield left
            continue
        # The lock of that build: what it is making now is no leftover.
        with exclusive_lock(builds / f"{name}.lock", f"the build of {name}"):
            remove_tree(left)
        yield left
