"""The digests of an archive's tar stream, each computed by a thread of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

from blake3 import blake3

from envferry.base.sha256 import IncrementalSha256

if TYPE_CHECKING:
    from concurrent.futures import Future
    from types import TracebackType


class TarDigests:
    """BLAKE3, which an archive's id is taken from, and SHA-256, which images need.

    SHA-256 costs 0.6 s for each GB, twice as much as all else that is done with a frame after it
    is compressed; an image would have to be decompressed for it when the archive is pushed.
    """

    def __init__(self) -> None:
        self.blake3 = blake3()
        self.sha256 = IncrementalSha256()
        self.threads = ExitStack()
        # One thread for each: what comes first is hashed first.
        self.pools = [
            self.threads.enter_context(ThreadPoolExecutor(1, thread_name_prefix=name))
            for name in ("tar-blake3", "tar-sha256")
        ]
        self.running: list[Future[object]] = []

    def __enter__(self) -> TarDigests:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.threads.close()

    def feed(self, raw: bytes | memoryview) -> None:
        """Hash the next bytes of the stream; they must stay as they are until `wait` returns."""
        updates = (self.blake3.update, self.sha256.update)
        self.running += [
            pool.submit(update, raw) for pool, update in zip(self.pools, updates, strict=True)
        ]

    def wait(self) -> None:
        """Return when all that was fed is hashed."""
        while self.running:
            self.running.pop().result()
