"""What people see: results on stdout, progress and errors on stderr."""

from __future__ import annotations

import logging
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from envferry.base.json import to_json
from envferry.base.text import human_bytes, plural
from envferry.cli.shared.failures import Answer
from envferry.cli.shared.terminal import printable, styled
from envferry.config import is_plain_terminal
from envferry.progress import Expected, Silent
from envferry.redaction import fit_to_show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rich.progress import ProgressColumn

    from envferry.progress import Progress

LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)
QUIET_SECONDS = 1.0
"""A task shows a bar only when it takes longer than this."""


class Console:
    """Prints in the way that the options of a command ask for."""

    def __init__(self, *, as_json: bool, is_quiet: bool, verbosity: int) -> None:
        self.as_json = as_json
        self.is_quiet = is_quiet
        self.answer = Answer()
        level = logging.ERROR if is_quiet else LEVELS[min(verbosity, len(LEVELS) - 1)]
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(MessageFormatter())
        # `force`, as an earlier command of this process may have set up its own.
        logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
        logging.getLogger("envferry").setLevel(level)

    @property
    def progress(self) -> Progress:
        """Return how progress is shown: bars on a terminal, lines elsewhere, nothing if quiet."""
        if self.is_quiet:
            return Silent()
        return (
            ProgressBars() if sys.stderr.isatty() and not is_plain_terminal() else ProgressLines()
        )

    def note(self, text: str) -> None:
        """Say on stderr what people should know about a result."""
        if not self.is_quiet:
            click.echo(f"{styled('note:', bold=True)} {printable(text)}", err=True)

    def result(self, value: object, lines: Callable[[], Iterable[str]]) -> None:
        """Print a result: the value with `--json`, else the lines for people."""
        # An error that follows is not printed as JSON: there is one document only.
        self.answer.is_given = True
        if self.as_json:
            click.echo(to_json(plain(value)), nl=False)
        else:
            click.echo(printable("".join(f"{line}\n" for line in lines())), nl=False)

    def preview(self, value: object, lines: Callable[[], Iterable[str]]) -> None:
        """Print what a command would do: as its result, with `"dry_run": true` in the JSON."""
        facts = plain(value)
        if isinstance(facts, list):
            self.result([{**one, "dry_run": True} for one in facts], lines)
        else:
            self.result({**facts, "dry_run": True}, lines)

    def can_ask(self) -> bool:
        """Whether questions can be asked: at a terminal, without `--json`."""
        return not self.as_json and sys.stdin.isatty() and sys.stderr.isatty()

    def ask(self, question: str, default: str, choices: Sequence[str] = ()) -> str:
        """Ask at the terminal for a word or a line."""
        kind = click.Choice(choices) if choices else None
        answer: str = click.prompt(question, default=default, type=kind, err=True)
        return answer

    def confirm(self, question: str) -> bool:
        """Ask at the terminal; yes without a terminal, or with `--json`."""
        # Scripts are never asked.
        if not self.can_ask():
            return True
        return click.confirm(question, err=True)


def plain(value: object) -> Any:  # noqa: ANN401  (what JSON can have)
    """Return a result as JSON can have it: keys that are numbers become texts."""
    return msgspec.to_builtins(value, enc_hook=to_builtin, str_keys=True)


def to_builtin(value: object) -> object:
    """Turn what JSON does not know into what it does."""
    if isinstance(value, Path):
        return str(value)
    msg = f"no JSON form for {type(value).__name__}"
    raise NotImplementedError(msg)


class MessageFormatter(logging.Formatter):
    """`warning: …` for warnings, the bare text for what `-v` shows."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, without the logins of URLs in it."""
        text = printable(fit_to_show(super().format(record)))
        return f"{record.levelname.lower()}: {text}" if record.levelno > logging.INFO else text


class ProgressLines:
    """Progress as one line for each finished task: for logs."""

    @contextmanager
    def task(
        self, label: str, total_bytes: int | Expected | None = None
    ) -> Iterator[Callable[[int], None]]:
        """Run a task and say how long it took."""
        counter = ByteCounter()
        started = time.monotonic()
        yield counter.add
        click.echo(finished_line(label, time.monotonic() - started, counter.total), err=True)


class ProgressBars:
    """Progress as bars: for terminals."""

    @contextmanager
    def task(
        self, label: str, total_bytes: int | Expected | None = None
    ) -> Iterator[Callable[[int], None]]:
        """Run a task under a bar, then leave one line that says how long it took."""
        from rich.console import Console as RichConsole
        from rich.progress import Progress as RichProgress

        total = total_bytes if isinstance(total_bytes, int) else None
        expected = total_bytes if isinstance(total_bytes, Expected) else None
        columns = bar_columns(has_total=bool(total))
        counter = ByteCounter()
        started = time.monotonic()
        with RichProgress(*columns, console=RichConsole(stderr=True), transient=True) as bars:
            bar = bars.add_task(label, total=total, done="")

            def advance(count: int) -> None:
                counter.add(count)
                done = amount_done(counter.total, expected)
                bars.update(bar, completed=counter.total, done=done)

            yield advance
        click.echo(finished_line(label, time.monotonic() - started, counter.total), err=True)


def bar_columns(*, has_total: bool) -> list[ProgressColumn]:
    """Return what a bar shows: with a total, how much is done, how fast, and the time left."""
    from rich import progress

    start: list[ProgressColumn] = [
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description}"),
    ]
    if not has_total:
        return [*start, progress.TextColumn("{task.fields[done]}"), progress.TimeElapsedColumn()]
    return [
        *start,
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    ]


class ByteCounter:
    """Adds up bytes from many threads."""

    def __init__(self) -> None:
        self.total = 0
        self.lock = threading.Lock()

    def add(self, count: int) -> None:
        """Add bytes."""
        with self.lock:
            self.total += count


def amount_done(done_bytes: int, expected: Expected | None) -> str:
    """Return how far a task is: `1.2 GB of 3.1 GB and 57 more files`, whose sizes are unknown."""
    if expected is None:
        return human_bytes(done_bytes)
    # What had to be downloaded again comes on top.
    known = human_bytes(max(done_bytes, expected.known_bytes))
    unknown = expected.unknown_items
    more = f" and {plural(unknown, 'more file')}" if unknown else ""
    return f"{human_bytes(done_bytes)} of {known}{more}"


def finished_line(label: str, seconds: float, done_bytes: int) -> str:
    """Return what is left of a task when it is done."""
    if not done_bytes:
        return f"{label}: {seconds:.1f} s"
    speed = f", {human_bytes(done_bytes / seconds)}/s" if seconds >= QUIET_SECONDS else ""
    return f"{label}: {seconds:.1f} s, {human_bytes(done_bytes)}{speed}"
