"""The port through which stages say how far they are."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager


class Progress(Protocol):
    """Shows the progress of one task at a time; implemented by the command line."""

    def task(
        self, label: str, total_bytes: int | None = None
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Open a task of `total_bytes`; the yielded function adds bytes done, from any thread."""
        ...


class Silent:
    """A `Progress` that shows nothing: for libraries, tests and `--quiet`."""

    @contextmanager
    def task(self, label: str, total_bytes: int | None = None) -> Iterator[Callable[[int], None]]:
        """Open a task that nobody watches."""
        yield lambda done_bytes: None
