"""conda-lock's content hashes of a spec, computed beside all else that a lock takes."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from envferry.base.workers import Workers
from envferry.lock.conda.conda_half import content_hashes
from envferry.lock.conda.conda_requests import spec_as_written
from envferry.lock.existing_lock import known_hashes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envferry.lock.lock_options import LockOptions
    from envferry.models import Spec
    from envferry.progress import Progress


@contextmanager
def hashing(
    spec: Spec, platforms: tuple[str, ...], options: LockOptions, progress: Progress
) -> Iterator[Callable[[], dict[str, str]]]:
    """Have conda-lock hash a spec while the block runs; what is yielded waits for the hashes.

    They follow from the spec alone and decide nothing, but conda-lock takes a second or more to
    start: so they begin before anything is solved, and are waited for last. With a solver of the
    user's own there are none to wait for: conda-lock hashes where it solves.
    """
    if options.solver:
        yield dict
        return
    known = known_hashes(spec, options.channels or spec.channels)
    if not {*platforms} - known.keys():
        yield lambda: {platform: known[platform] for platform in platforms}
        return
    with Workers(1, "hash") as hasher:
        future = hasher.submit(content_hashes, spec_as_written(spec, options), platforms)

        def wait() -> dict[str, str]:
            with progress.task(f"locking {spec.name}: conda-lock's content hash"):
                return future.result()

        yield wait
