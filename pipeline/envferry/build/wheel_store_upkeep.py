"""Look after the store of wheels: list it, verify it, keep it within bounds."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from envferry.base.files import read_own
from envferry.build.cache_locks import cache_lock
from envferry.build.cache_upkeep import Pruned
from envferry.build.extraction_request import ExtractedFile, ExtractedWheel
from envferry.build.interpreters import interpreter_size
from envferry.build.wheel_store import (
    BYTECODE,
    BYTECODE_INDEX,
    WHEEL_INDEX,
    StoredFiles,
    drop,
    store_root,
)
from envferry.errors import TargetOccupied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

GIGABYTE = 10**9
T = TypeVar("T")


class StoredPart(msgspec.Struct, frozen=True, kw_only=True):
    """An extracted wheel, the byte code of one, or an interpreter."""

    path: Path
    kind: str
    name: str
    size: int
    """Of its files, in bytes."""
    used: float
    """When a build last asked for it, in seconds since 1970."""
    is_linked: bool
    """Whether a build has these files: then removing it would free nothing."""


def list_parts(cache_root: Path) -> list[StoredPart]:
    """Return what this user's store has, used last first; what cannot be read is left out."""
    parts = [*_wheel_parts(store_root(cache_root)), *_interpreters(store_root(cache_root))]
    return sorted(parts, key=lambda part: (-part.used, part.kind, part.name))


def _wheel_parts(root: Path) -> Iterator[StoredPart]:
    for home in root.glob("??/*"):
        about = _decoded(home / WHEEL_INDEX, ExtractedWheel)
        if about is None:
            continue
        name = about.name or home.name
        yield _part(home, "wheel", name, about.files)
        for made in home.glob(f"{BYTECODE}/*"):
            files = _decoded(made / BYTECODE_INDEX, dict[str, ExtractedFile])
            if files is not None:
                yield _part(made, "byte code", name, files)


def _decoded(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.msgpack.decode(read_own(path), type=kind)
    except (OSError, msgspec.MsgspecError) as error:
        log.info("%s cannot be read: %s", path, error)
        return None


def _part(home: Path, kind: str, name: str, files: dict[str, ExtractedFile]) -> StoredPart:
    stored = StoredFiles(home=home, files=files, stamps={})
    largest = max(files, key=lambda file: files[file].size, default="")
    # Trees have all files of a part, but for those that other wheels have as well.
    path = Path(stored.path_of(largest))
    return StoredPart(
        path=home,
        kind=kind,
        name=name,
        size=sum(file.size for file in files.values()),
        used=home.stat().st_mtime,
        is_linked=bool(largest) and path.exists() and path.stat().st_nlink > 1,
    )


def _interpreters(root: Path) -> Iterator[StoredPart]:
    for home in root.glob("interpreters/*"):
        yield StoredPart(
            path=home,
            kind="interpreter",
            name=home.name,
            size=interpreter_size(home),
            used=home.stat().st_mtime,
            is_linked=False,
        )


def verify_parts(cache_root: Path, advance: Callable[[int], None]) -> list[StoredPart]:
    """Read all stored files and remove the parts of which one is wrong; return these."""
    damaged = []
    with cache_lock(cache_root, shared=True):
        for part in list_parts(cache_root):
            index = part.path / (WHEEL_INDEX if part.kind == "wheel" else BYTECODE_INDEX)
            if part.kind == "wheel":
                about = _decoded(index, ExtractedWheel)
                files = about.files if about else {}
            else:
                files = _decoded(index, dict[str, ExtractedFile]) or {}
            # Without stamps, every file is read.
            if not StoredFiles(home=part.path, files=files, stamps={}).is_intact():
                drop(part.path)
                damaged.append(part)
            advance(part.size)
    return damaged


def prune_wheels(cache_root: Path, *, older_than: float, dry_run: bool = False) -> Pruned:
    """Remove what no build used since `older_than` (seconds since 1970), or has links to.

    Raises TargetOccupied while a build uses the cache.
    """
    if not cache_root.is_dir():
        return Pruned(files=0, size=0)
    with cache_lock(cache_root, shared=False):
        parts = [part for part in list_parts(cache_root) if part.used < older_than]
        return _remove([part for part in parts if not part.is_linked], dry_run=dry_run)


def trim_wheels(cache_root: Path, limit_bytes: int) -> Pruned:
    """Remove what was not used for longest, until all that no build has links to is within a limit.

    While another build uses the cache, nothing is removed: that build does it.
    """
    try:
        with cache_lock(cache_root, shared=False):
            unused = [part for part in list_parts(cache_root) if not part.is_linked]
            excess = sum(part.size for part in unused) - limit_bytes
            going = []
            for part in reversed(unused):
                if excess <= 0:
                    break
                going.append(part)
                excess -= part.size
            return _remove(going, dry_run=False)
    except TargetOccupied as error:
        log.info("extracted wheels are looked after later: %s", error)
        return Pruned(files=0, size=0)


def _remove(parts: list[StoredPart], *, dry_run: bool) -> Pruned:
    if not dry_run:
        for part in parts:
            drop(part.path)
    return Pruned(files=len(parts), size=sum(part.size for part in parts))
