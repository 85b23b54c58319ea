"""Time two commands in turn on the same work; print ratios, for seconds here say little."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

ROUNDS = 5
ASIDE = ".aside-"
"""How the name of a tree begins that was put aside."""
NO_BYTE_CODE = "PYTHONDONTWRITEBYTECODE"


@dataclass(frozen=True, kw_only=True)
class Command:
    """A whole process, with what must be undone before each run."""

    argv: tuple[str, ...]
    prepare: Callable[[], None] = lambda: None
    environ: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, *words: str | Path, prepare: Callable[[], None] = lambda: None) -> Command:
        """Return a command of words and paths."""
        return cls(argv=tuple(map(str, words)), prepare=prepare)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a command; the peak is that of its largest process."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """One line of a benchmark: what is small is good."""

    name: str
    ours: float
    other: float
    """What it is held against; 1 where the figure stands for itself."""
    goal: float
    """The ratio to reach, at most."""
    unit: str
    note: str = ""

    @property
    def ratio(self) -> float:
        """Ours as a part of the other's."""
        return self.ours / self.other

    @property
    def row(self) -> dict[str, Any]:
        """What `--json` writes."""
        return {
            "ours": self.ours,
            "other": self.other,
            "ratio": self.ratio,
            "goal": self.goal,
            "unit": self.unit,
        }


def put_aside(tree: Path) -> None:
    """Take a tree away before the next run without freeing one inode; its bytes are freed.

    ext4 without a journal does not give out inodes that were freed in the last minutes, and looks
    at each of them for every new file (`recently_deleted` in the kernel's fs/ext4/ialloc.c): files
    made just after a large tree was deleted cost twenty times as much, and `cp` pays the same.
    """
    if not tree.exists():
        return
    aside = tree.with_name(f"{ASIDE}{time.monotonic_ns()}-{tree.name}")
    tree.rename(aside)
    for directory, _, names in os.walk(aside):
        for name in names:
            path = os.path.join(directory, name)  # noqa: PTH118  (68,816 of them)
            if not os.path.islink(path):  # noqa: PTH114
                os.truncate(path, 0)


def environment_of(command: Command) -> dict[str, str]:
    """Return the variables of a command.

    An installed command has its byte code. Where a shell forbids Python to keep any, every start
    would compile all modules, which is most of what a short command does.
    """
    inherited = {name: os.environ[name] for name in os.environ.keys() - {NO_BYTE_CODE}}
    return {**inherited, **dict(command.environ)}


def run_once(command: Command) -> Run:
    """Run a command between two syncs; the second one counts: write-back varies threefold."""
    command.prepare()
    os.sync()
    started = time.monotonic()
    with subprocess.Popen(
        command.argv,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment_of(command),
    ) as child:
        assert child.stderr is not None
        errors = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        sys.exit(f"error: {' '.join(command.argv)} failed:\n{errors.decode()}")
    os.sync()
    return Run(
        seconds=time.monotonic() - started,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_bytes=usage.ru_maxrss * 1024,
    )


def in_turn(ours: Command, other: Command, rounds: int = ROUNDS) -> tuple[list[Run], list[Run]]:
    """Run two commands in turn, after one round that does not count."""
    runs = [(run_once(ours), run_once(other)) for _ in range(rounds + 1)][1:]
    return [run for run, _ in runs], [run for _, run in runs]


def seconds_result(
    name: str, runs: tuple[Sequence[Run], Sequence[Run]], goal: float, note: str = ""
) -> Result:
    """Return the medians of two lists of runs as a result."""
    ours, other = (statistics.median(run.seconds for run in side) for side in runs)
    return Result(name=name, ours=ours, other=other, goal=goal, unit="s", note=note)


def table(results: Iterable[Result]) -> str:
    """Return results as a table."""
    lines = [f"{'':<28}{'ours':>10}{'other':>10}{'ratio':>8}{'goal':>8}"]
    for result in results:
        verdict = "" if result.ratio <= result.goal else "  not reached"
        lines.append(
            f"{result.name:<28}{result.ours:>10.3g}{result.other:>10.3g}"
            f"{result.ratio:>8.2f}{result.goal:>8.2f} {result.unit}{verdict}"
        )
        if result.note:
            lines.append(f"    {result.note}")
    return "\n".join(lines)
