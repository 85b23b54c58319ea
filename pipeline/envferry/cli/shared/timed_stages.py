"""Stages whose time is noted while they run, for `release --plan`."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from envferry.base.durations import Duration, Durations
from envferry.cli.shared.console import ByteCounter
from envferry.config import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envferry.progress import Expected, Progress

STAGES = {"Fetching": "fetch", "build": "build", "pack": "pack", "push": "send"}
"""By the first word of what a task is called."""


def known_durations() -> Durations:
    """Return how long stages took on this machine."""
    return Durations(settings().cache_dir / "durations.jsonl")


class StageTimer:
    """A `Progress` that notes how long the stages of an environment take."""

    def __init__(self, inner: Progress, name: str) -> None:
        self.inner = inner
        self.name = name
        self.runs: list[Duration] = []

    @contextmanager
    def task(
        self, label: str, total_bytes: int | Expected | None = None
    ) -> Iterator[Callable[[int], None]]:
        """Open a task; what fails is not noted."""
        counter, started = ByteCounter(), time.monotonic()
        with self.inner.task(label, total_bytes) as advance:

            def counted(count: int) -> None:
                counter.add(count)
                advance(count)

            yield counted
        stage = STAGES.get(label.partition(" ")[0])
        if stage:
            seconds = round(time.monotonic() - started, 3)
            self.runs.append(
                Duration(stage=stage, name=self.name, seconds=seconds, size=counter.total)
            )


@contextmanager
def measured(inner: Progress, name: str) -> Iterator[StageTimer]:
    """Yield a `Progress` whose stages are noted when all ended well."""
    progress = StageTimer(inner, name)
    yield progress
    for run in progress.runs:
        known_durations().keep(run)
