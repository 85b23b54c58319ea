"""Threads for what waits for servers, and how an interrupt ends them."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

PATIENCE_SECONDS = 0.3
"""How long an interrupt lets threads finish what they are in the middle of."""
P = ParamSpec("P")
T = TypeVar("T")


class Workers(ThreadPoolExecutor):
    """A pool for a `with` block; when the block fails, what has not begun never does.

    After an interrupt a thread that still waits for an answer is left behind: it ends with the
    process, as if that were killed. So nothing that workers do may need an orderly end.
    """

    def __init__(self, count: int, name: str) -> None:
        """Have at most `count` threads; `name` is what debuggers call them."""
        super().__init__(count, thread_name_prefix=name)
        # Weak: a finished future would keep its result in memory.
        self.submitted: WeakSet[Future[Any]] = WeakSet()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a thread call `fn`."""
        future = super().submit(fn, *args, **kwargs)
        self.submitted.add(future)
        return future

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for all threads, after an interrupt only for a moment."""
        is_interrupt = isinstance(error, KeyboardInterrupt)
        # ThreadPoolExecutor's own exit would wait for every thread: for a hung server, minutes.
        self.shutdown(wait=not is_interrupt, cancel_futures=error is not None)
        if is_interrupt:
            wait([one for one in self.submitted if one.running()], PATIENCE_SECONDS)
