"""One stream for several consumers: digests, a file. Each has a thread of its own."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future
    from types import TracebackType

PIECES_AHEAD = 3
"""How many pieces a consumer may be behind: each stays in memory until all have done with it."""


class Tee:
    """Calls each consumer with every piece of a stream, in order, in that consumer's own thread.

    What takes longest decides how long it takes, and not the sum. For a `with` block, which waits
    for what was fed.
    """

    def __init__(self, consumers: Iterable[Callable[[bytes | memoryview], object]]) -> None:
        # One thread for each: what comes first is done first.
        self.threads = [(ThreadPoolExecutor(1, "tee"), consumer) for consumer in consumers]
        self.running: deque[tuple[list[Future[object]], Callable[[], None]]] = deque()

    def __enter__(self) -> Tee:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.drain()
        finally:
            for thread, _ in self.threads:
                thread.shutdown(cancel_futures=True)

    def feed(self, piece: bytes | memoryview, release: Callable[[], None] = lambda: None) -> None:
        """Pass on a piece, which must stay as it is until `release` is called, by a later call.

        Raises what a consumer raised for this piece or an earlier one.
        """
        if not self.threads:
            release()
            return
        running = [thread.submit(consumer, piece) for thread, consumer in self.threads]
        self.running.append((running, release))
        self.wait_for_all_but(PIECES_AHEAD)

    def drain(self) -> None:
        """Return when all that was fed is done; raise what a consumer raised."""
        self.wait_for_all_but(0)

    def wait_for_all_but(self, count: int) -> None:
        """Wait until so many pieces, the last ones, may still be in work."""
        while len(self.running) > count:
            running, release = self.running.popleft()
            for future in running:
                future.result()
            release()
