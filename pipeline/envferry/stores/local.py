"""What a store on a disk of this machine offers beyond the port: reading in place, and its room."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from envferry.base.files import require_space
from envferry.stores.fallocate import allocated_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from envferry.stores.port import ReadableStore


def reader_into(store: ReadableStore, key: str) -> Callable[[int, memoryview], None] | None:
    """Return what fills memory with the bytes of a value from an offset; None for servers."""
    # Of `disk`, not of `store`: a wrapper that reads in another way has none, so nothing is read
    # past it.
    return partial(disk.read_into, key) if (disk := store.disk) else None


def require_room(store: ReadableStore, values: Mapping[str, int], what: str) -> None:
    """Raise HostError when a directory's disk lacks room for values of these sizes, by their keys.

    What an earlier run left of them counts as there. Servers know best what they have room for.
    """
    if (disk := store.disk) is None:
        return
    root = disk.root
    # What is on the disk can be larger than the value: it never counts for more.
    there = sum(min(size, _arrived_bytes(root, key)) for key, size in values.items())
    require_space(root, sum(values.values()) - there, what)


def _arrived_bytes(root: Path, key: str) -> int:
    """Return how much of the disk a value takes that is not complete: part of it, or some parts."""
    path, taken = root / key, 0
    # `.KEY.partial`, or `KEY.part001` of a registry in parts.
    for name in path.parent.glob(f"*{path.name}*"):
        # Its transfer may end, and rename the file, between the listing and this look.
        with suppress(FileNotFoundError):
            taken += allocated_bytes(name.stat())
    return taken
