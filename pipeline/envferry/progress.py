"""The port through which stages say how far they are."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager


class Expected:
    """How many bytes a task has, as far as it is known yet: each item says so when it begins."""

    def __init__(self, items: int) -> None:
        self.items = items
        self.sizes: dict[str, int] = {}

    def learn(self, item: str, size: int) -> None:
        """Note the bytes of an item; what was known of it stays. From any thread."""
        self.sizes.setdefault(item, size)

    @property
    def known_bytes(self) -> int:
        """What all known items have together."""
        # A copy: another thread may add an item meanwhile, which would end the iteration with an
        # error.
        return sum(list(self.sizes.values()))

    @property
    def unknown_items(self) -> int:
        """How many items have not begun."""
        return self.items - len(self.sizes)


class Progress(Protocol):
    """Shows the progress of one task at a time; implemented by the command line."""

    def task(
        self, label: str, total_bytes: int | Expected | None = None
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Open a task of `total_bytes`; the yielded function adds bytes done, from any thread."""
        ...


class Silent:
    """A `Progress` that shows nothing: for libraries, tests and `--quiet`."""

    @contextmanager
    def task(
        self, label: str, total_bytes: int | Expected | None = None
    ) -> Iterator[Callable[[int], None]]:
        """Open a task whose progress is not shown."""
        yield lambda done_bytes: None
