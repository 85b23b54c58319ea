"""Taking an artifact out of a registry while others push and tag: nothing that was kept is lost.

Who removes puts a mark (`pruning.json`) into the folder, then looks at the tags, then deletes: the
manifest first, the mark last. Who pushes or tags writes the tag, then looks for the mark, then
whether all files are there. So one of the two always sees the other (ADR 11).
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from envferry.artifacts import REGISTRY_MANIFEST
from envferry.base.json import to_json
from envferry.errors import NotFound, StoreError
from envferry.registry.layout import PRUNING
from envferry.stores.port import KeyTaken, LostRace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envferry.registry.inventory import Folder
    from envferry.registry.registry import Registry

WAIT_SECONDS = 20.0
"""A removal is a dozen small calls: one that takes longer was interrupted."""
POLL_SECONDS = 0.1


class RemovedMeanwhile(StoreError):
    """An artifact was removed while it was pushed or tagged; to push it again is safe."""


def require_settled(registry: Registry, folder: str) -> None:
    """Wait while a folder is being removed; raise StoreError when that takes too long."""
    deadline = time.monotonic() + WAIT_SECONDS
    while registry.store.stat(folder + PRUNING):
        if time.monotonic() > deadline:
            message = (
                f"{folder} is being removed from {registry.url}, or its removal was interrupted"
            )
            hint = "if no prune is running, complete it: `envferry prune --hours 0 --delete`"
            raise StoreError(message, hint=hint)
        time.sleep(POLL_SECONDS)


def require_kept(registry: Registry, folder: str, names: Iterable[str]) -> None:
    """Raise RemovedMeanwhile unless these files are in a folder, and no removal is under way."""
    require_settled(registry, folder)
    # After the mark is gone: whatever that removal deleted is missing in this listing.
    there = {listed.key for listed in registry.store.list(folder)}
    missing = sorted({folder + name for name in names} - there)
    if missing:
        message = f"{missing[0]} was removed from {registry.url} at the same time"
        raise RemovedMeanwhile(message, hint="push the artifact again, or point the tag elsewhere")


def remove_artifact(registry: Registry, folder: Folder, older_than_seconds: float) -> str | None:
    """Remove an artifact, or what is left of one; return why not, if it stays.

    A removal that began that long ago is taken over.
    """
    if not _claim(registry, folder, older_than_seconds):
        return "another process is removing it"
    # After the mark, never before it: see above.
    tags = [tag for tag, id_ in registry.tags(folder.name, folder.platform).items()
            if id_ == folder.id]  # fmt: skip
    if not tags:
        # First: without it, the artifact does not count as published while its files go.
        registry.store.delete(folder.key + REGISTRY_MANIFEST)
        # Listed in full first: POSIX leaves open what a directory being
        # read shows of files that go.
        for listed in list(registry.store.list(folder.key)):
            if listed.key != folder.key + PRUNING:
                registry.store.delete(listed.key)
    # Last, and also where the artifact stays: while the mark is there, pushes wait.
    registry.store.delete(folder.key + PRUNING)
    if not tags:
        platform = folder.key.removesuffix(f"{folder.id}/")
        # From the inside out. SeaweedFS lists empty folders for 90 s and
        # more, directories keep them.
        for empty in (folder.key, platform, platform.removesuffix(f"{folder.platform}/")):
            registry.store.delete_folder(empty)
    return f"tagged {', '.join(tags)} in the meantime" if tags else None


def _claim(registry: Registry, folder: Folder, older_than_seconds: float) -> bool:
    """Mark a folder; of several who want to remove it, one may."""
    # Random, so that `_is_ours` can tell our own mark from another remover's.
    key, mark = folder.key + PRUNING, to_json({"schema": 1, "mark": os.urandom(8).hex()})
    stat = registry.store.stat(key)
    try:
        if stat is None:
            registry.store.create(key, mark)
            return True
        if stat.modified and time.time() - stat.modified.timestamp() < older_than_seconds:
            return False
        # A stale mark: of several that want to take over, one gets it.
        registry.store.replace(key, mark, stat.version)
    except (KeyTaken, LostRace):
        return _is_ours(registry, key, mark)
    return True


def _is_ours(registry: Registry, key: str, mark: bytes) -> bool:
    """Whether the mark that is in the way is our own, written by an attempt whose answer got lost.

    Taken for another remover's, it would hold up every push until it is stale.
    """
    try:
        return registry.store.read(key) == mark
    except NotFound:
        return False
