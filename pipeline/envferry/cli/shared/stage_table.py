"""What workers do at the moment: a live table on a terminal, a line for each stage elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import click
import msgspec

from envferry.cli.shared.terminal import harmless

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.table import Table

    from envferry.cli.shared.console import Console

ENDED = ("released", "failed")


class Stages(Protocol):
    """Shows which stage each job is in."""

    def show(self, key: str, stage: str, worker: str) -> None:
        """Note the next stage of a job."""
        ...

    def end(self, key: str, how: str) -> None:
        """Note how a job ended: `released` or `failed`."""
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


class Rows(msgspec.Struct):
    """The jobs of a release; says nothing, as `--quiet` wants it."""

    rows: dict[str, Row] = msgspec.field(default_factory=dict)

    def show(self, key: str, stage: str, worker: str) -> None:
        """Note the next stage of a job."""
        row = self.rows[key]
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
    """A table that is redrawn: for terminals."""

    def __rich__(self) -> Table:
        """Return the table as it is now."""
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for header in ("SPEC", "PLATFORM", "STAGE", "SECONDS", "WORKER"):
            table.add_column(header, justify="right" if header == "SECONDS" else "left")
        # What has ended goes up and out of a small screen first.
        for row in sorted(self.rows.values(), key=lambda row: row.stage not in ENDED):
            texts = (row.spec, row.platform, row.stage, f"{row.seconds:.0f}", row.worker)
            table.add_row(*map(escape, texts))
        return table


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
            yield shown
