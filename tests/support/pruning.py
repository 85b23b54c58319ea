"""Somebody who would empty the download cache at each step of a command."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from envferry.build.cache_upkeep import prune_entries
from envferry.errors import TargetOccupied
from envferry.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from envferry.progress import Expected


class Pruning(Silent):
    """A progress at each of whose tasks the cache is pruned, which must be refused."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tried: list[str] = []

    @contextmanager
    def task(
        self, label: str, total_bytes: int | Expected | None = None
    ) -> Iterator[Callable[[int], None]]:
        """Open a task; nothing is shown."""
        with pytest.raises(TargetOccupied, match="is using the cache"):
            prune_entries(self.root, older_than=1e12)
        self.tried.append(label.split(maxsplit=1)[0])
        yield lambda done_bytes: None
