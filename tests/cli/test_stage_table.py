"""The live table of a release on workers, on terminals that are too small for it."""

from __future__ import annotations

import io

import click
import pytest
from rich.console import Console

from envferry.cli.shared.stage_table import Row, StageTable

HEIGHT = 14


def drawn(table: StageTable, columns: int) -> list[str]:
    """Return the lines that a terminal of so many columns gets."""
    screen = io.StringIO()
    Console(file=screen, width=columns, height=HEIGHT, force_terminal=True).print(table)
    return [line.rstrip() for line in click.unstyle(screen.getvalue()).splitlines()]


@pytest.fixture
def table() -> StageTable:
    """Forty jobs with long names, of which all but four have ended or wait."""
    made = StageTable()
    for number in range(40):
        key = str(number)
        spec = f"specs/team/transformer-training-{number:02}.yml"
        made.rows[key] = Row(spec=spec, platform="linux-aarch64")
        if number < 20:
            worker = f"tls://gpu-host-{number}.cluster.example.org:43211"
            made.show(key, f"push transformer-training-{number:02}-linux-aarch64.tar.zst", worker)
        if number < 16:
            made.end(key, "failed" if number == 7 else "released")
    return made


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_what_runs_is_on_the_screen(table: StageTable, columns: int) -> None:
    lines = drawn(table, columns)
    assert len(lines) < HEIGHT, "else the terminal scrolls, and each drawing leaves lines behind"
    assert max(map(len, lines)) <= columns
    for number, line in zip((16, 17, 18, 19, 7), lines[1:], strict=False):
        assert f"{number:02}.yml" in line, "the part of a path that tells it from others"
        assert ("push" if number != 7 else "failed") in line
    assert lines[-1] == "40 jobs: 4 running, 1 failed, 20 waiting, 15 released"


def test_nothing_to_do() -> None:
    assert drawn(StageTable(), 80)[-1].startswith("0 jobs")


def test_all_jobs_are_shown_in_the_end(table: StageTable) -> None:
    table.is_over = True
    lines = drawn(table, 80)
    assert len(lines) == 42
    assert [f"{number:02}.yml" in line for number, line in enumerate(lines[1:-1])] == [True] * 40
