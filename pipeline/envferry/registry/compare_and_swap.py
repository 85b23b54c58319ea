"""A value of a registry that several processes may write at once, each on what it has read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.base.retry import RACES, persistently
from envferry.errors import StoreError
from envferry.stores.port import LostRace, lost_races_as_transient

if TYPE_CHECKING:
    from collections.abc import Callable

    from envferry.registry.registry import Registry


def compare_and_swap(
    target: Registry, key: str, make: Callable[[bytes | None], bytes | None]
) -> bool:
    """Write what `make` returns for what is there now; return whether that was needed.

    `make` gets None where nothing is there, and returns None where nothing is to be written; it
    is called again after each lost race. Raises StoreError when others keep winning.
    """

    def attempt() -> bool:
        # The version before the value: a write in between is then a lost race, not a lost update.
        stat = target.store.stat(key)
        there = target.store.read(key) if stat else None
        wanted = make(there)
        # Equal, too, when the answer to our own write was lost and this is the round after.
        if wanted is None or wanted == there:
            return False
        with lost_races_as_transient():
            target.store.replace(key, wanted, stat.version if stat else None)
        return True

    try:
        return persistently(attempt, RACES)
    except LostRace as error:
        message = f"{key} in {target.url} keeps being changed by other processes"
        raise StoreError(message, hint="run the command again: nothing is sent twice") from error
