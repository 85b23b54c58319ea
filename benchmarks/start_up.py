"""How long a command takes that does almost nothing."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from benchmarks.comparing import Command, Result, run_once
from demo.voyage import ENVFERRY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.environments import Environment

ROUNDS = 9


def results(environment: Environment) -> Iterator[Result]:
    """Yield the seconds of `envferry --help`."""
    runs = [run_once(Command.of(ENVFERRY, "--help")).seconds for _ in range(ROUNDS)]
    yield Result(name="help_seconds", ours=statistics.median(runs), other=1, goal=0.15, unit="s")
