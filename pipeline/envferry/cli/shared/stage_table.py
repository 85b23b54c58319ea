"""What workers do at the moment: a live table on a terminal, a line for each stage elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import click
import msgspec

from envferry.base.text import plural
from envferry.cli.shared.terminal import harmless

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.console import Console as RichConsole
    from rich.console import ConsoleOptions, RenderableType

    from envferry.cli.shared.console import Console

HEADERS = ("SPEC", "PLATFORM", "STAGE", "SECONDS", "WORKER")
GAP = 2
PARTS = (0.37, 0.36, 0.27)
"""How spec, stage and worker share what the other columns leave of a line."""
ENDED = ("released", "pushed", "failed")
ORDER = ("running", "failed", "waiting", "pushed", "released")
"""What is of most interest, first."""


class Stages(Protocol):
    """Shows which stage each job is in."""

    def show(self, key: str, stage: str, worker: str) -> None:
        """Note the next stage of a job."""
        ...

    def end(self, key: str, how: str) -> None:
        """Note how a job ended: `released`, `failed`, or `pushed`, to be released with others."""
        ...

    def seconds(self, key: str) -> float:
        """Return how long a job has been on its worker."""
        ...


class Row(msgspec.Struct):
    """One job."""

    spec: str
    platform: str
    stage: str = "waiting"
    worker: str = ""
    began: float | None = None
    ended: float | None = None

    @property
    def seconds(self) -> float:
        """How long it has been on its worker."""
        if self.began is None:
            return 0.0
        return (self.ended or time.monotonic()) - self.began

    @property
    def state(self) -> str:
        """Return what it does, one of `ORDER`."""
        if self.stage in ENDED:
            return self.stage
        return "waiting" if self.began is None else "running"


class Rows(msgspec.Struct):
    """The jobs of a release; says nothing, as `--quiet` wants it."""

    rows: dict[str, Row] = msgspec.field(default_factory=dict)

    def show(self, key: str, stage: str, worker: str) -> None:
        """Note the next stage of a job."""
        row = self.rows[key]
        # When another worker takes a job over, its time begins again.
        if row.worker != worker or row.began is None:
            row.began = time.monotonic()
        row.stage, row.worker = harmless(stage), harmless(worker)

    def end(self, key: str, how: str) -> None:
        """Note how a job ended."""
        row = self.rows[key]
        row.stage, row.ended = how, time.monotonic()

    def seconds(self, key: str) -> float:
        """Return how long a job has been on its worker."""
        return self.rows[key].seconds


class StageLines(Rows):
    """One line for each stage: for logs."""

    def show(self, key: str, stage: str, worker: str) -> None:
        """Note the next stage of a job."""
        super().show(key, stage, worker)
        row = self.rows[key]
        click.echo(f"{row.spec} ({row.platform}): {row.stage}, worker {row.worker}", err=True)

    def end(self, key: str, how: str) -> None:
        """Note how a job ended."""
        super().end(key, how)
        row = self.rows[key]
        click.echo(f"{row.spec} ({row.platform}): {how}, {row.seconds:.1f} s", err=True)


class StageTable(Rows):
    """A table that is redrawn, no larger than the screen: for terminals."""

    is_over: bool = False
    """Then all jobs are shown, however many."""

    def __rich_console__(
        self, console: RichConsole, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        """Yield the table as it is now, what runs first, one line a job."""
        from rich.markup import escape
        from rich.table import Table

        rows = [*self.rows.values()]
        if not self.is_over:
            rows.sort(key=lambda row: ORDER.index(row.state))
            # Three lines are not rows: the header, the counts, and the one with the cursor.
            rows = rows[: max(1, console.size.height - len((HEADERS, "counts", "cursor")))]
        # A release of which everything is there already has no rows.
        platform = max((len(row.platform) for row in rows), default=0)
        wide = (len(HEADERS) - 1) * GAP + platform + len("SECONDS")
        spec, stage, worker = (int((options.max_width - wide) * part) for part in PARTS)
        table = Table(box=None, pad_edge=False)
        for header in HEADERS:
            table.add_column(header, justify="right" if header == "SECONDS" else "left")
        for row in rows:
            texts = (
                cut_left(row.spec, spec),
                row.platform,
                cut_right(row.stage, stage),
                f"{row.seconds:.0f}",
                cut_right(row.worker.rpartition("://")[2], worker),
            )
            # rich would take brackets in a name for markup.
            table.add_row(*map(escape, texts))
        yield table
        yield escape(self.counts())

    def counts(self) -> str:
        """Return how many jobs are in which state."""
        counted = Counter(row.state for row in self.rows.values())
        said = ", ".join(f"{counted[state]} {state}" for state in ORDER if counted[state])
        return f"{plural(len(self.rows), 'job')}: {said}"


def cut_left(text: str, width: int) -> str:
    """Shorten a path to what tells it from others."""
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


def cut_right(text: str, width: int) -> str:
    """Shorten a text to its beginning."""
    return text if len(text) <= width else text[: width - 1] + "…"


@contextmanager
def stages_shown(console: Console, jobs: Mapping[str, tuple[str, str]]) -> Iterator[Stages]:
    """Show the stages of jobs, each a spec and a platform by its key, while the block runs."""
    rows = {key: Row(spec=spec, platform=platform) for key, (spec, platform) in jobs.items()}
    if console.is_quiet:
        yield Rows(rows)
    elif not sys.stderr.isatty():
        yield StageLines(rows)
    else:
        from rich.console import Console as RichConsole
        from rich.live import Live

        shown = StageTable(rows)
        with Live(shown, console=RichConsole(stderr=True), refresh_per_second=4):
            try:
                yield shown
            finally:
                shown.is_over = True
