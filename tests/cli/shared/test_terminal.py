"""What a terminal shows: colours where they are wanted, tables that fit, bars that say how long."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from typing import TYPE_CHECKING

import click
import pytest

from envferry.cli.doctor import problems
from envferry.cli.shared.console import bar_columns
from envferry.cli.shared.terminal import table
from tests.support.cli_runner import CliRunner

if TYPE_CHECKING:
    from pathlib import Path


def at_a_terminal(home: Path, words: list[str], **environ: str) -> str:
    """Return what a command shows at a terminal."""
    argv, around = CliRunner(home=home, cache=home / "cache", environ=environ).command(*words)
    ours, theirs = pty.openpty()
    subprocess.run(
        argv, cwd=home, env=around, stdin=theirs, stdout=theirs, stderr=theirs, check=False
    )
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    return shown


@pytest.mark.parametrize("plain", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_nothing_steers_a_terminal_that_wants_no_colours(
    tmp_path: Path, plain: dict[str, str]
) -> None:
    usual = {"TERM": "xterm", "NO_COLOR": ""}
    for words in (["doctor"], ["lock", "nothing"]):
        assert "\x1b[" in at_a_terminal(tmp_path, words, **usual)
        assert "\x1b" not in at_a_terminal(tmp_path, words, **{**usual, **plain})


def test_a_plain_terminal_gets_lines_of_progress(tmp_path: Path) -> None:
    words = ["keygen", "x", "-v"]
    assert "\x1b" not in at_a_terminal(tmp_path, words, TERM="dumb", NO_COLOR="")


def test_a_bar_with_a_total_says_how_fast_and_how_long() -> None:
    names = [type(column).__name__ for column in bar_columns(has_total=True)]
    assert {"BarColumn", "TransferSpeedColumn", "TimeRemainingColumn"} <= set(names)
    names = [type(column).__name__ for column in bar_columns(has_total=False)]
    assert "TimeElapsedColumn" in names
    assert "TimeRemainingColumn" not in names


HEADERS = ("NAME", "ID", "TAGS", "SIZE")
ROWS = [("transformer", "fa4fa8c4f2e6", ", ".join(f"tag-{n}" for n in range(20)), "1 MB")]


def test_a_table_fits_the_terminal() -> None:
    lines = list(table(HEADERS, ROWS, right=(3,), width=60))
    assert [len(click.unstyle(line)) for line in lines] == [60, 60]
    assert "transformer  fa4fa8c4f2e6  tag-0, tag-1" in lines[1]
    assert "…  1 MB" in lines[1]


def test_what_is_copied_is_never_cut() -> None:
    line = list(table(HEADERS, ROWS, right=(3,), width=10))[1]
    assert line == "transformer  fa4fa8c4f2e6"


def test_columns_for_which_there_is_no_room() -> None:
    """Empty ones go first, and then those on the right, which the header says."""
    headers = ("NAME", "VERSION", "TAGS", "SIZE", "PUBLISHED")
    rows = [("demo", "", "latest, stable", "56.4 MB", "2026-11-29")]
    shown = {width: list(table(headers, rows, right=(3,), width=width)) for width in (99, 44, 30)}
    assert click.unstyle(shown[99][0]) == "NAME  VERSION  TAGS               SIZE  PUBLISHED"
    assert click.unstyle(shown[44][0]) == "NAME  TAGS               SIZE  PUBLISHED"
    assert click.unstyle(shown[30][0]) == "NAME  TAGS             SIZE  …"
    assert shown[30][1] == "demo  latest, sta…  56.4 MB"


def test_a_file_gets_the_whole_table() -> None:
    assert list(table(HEADERS, ROWS, right=(3,)))[1].endswith("tag-19  1 MB")


FINE = {
    "sandbox bwrap": "works",
    "sandbox docker": "no: not here",
    "conda-lock": "4.0.3",
    "cache": "/c, 1 GB free",
    "GPU driver": "none",
    "registry": "./artifacts: the registry artifacts does not exist",
}


@pytest.mark.parametrize(
    ("finding", "registry", "words"),
    [
        ({}, "./artifacts", []),
        ({"sandbox bwrap": "no: x"}, "./artifacts", ["no sandbox engine works here: x"]),
        ({"sandbox bwrap": "no: x", "conda-lock": "not in this file"}, "./artifacts", []),
        ({"sandbox bwrap": "no: x", "conda-lock": "not installed (…)"}, "./artifacts", []),
        ({"cache": "no: no place for the cache"}, "./artifacts", ["no place for the cache"]),
        ({"GPU driver": "does not answer"}, "./artifacts", ["driver does not answer"]),
        ({"registry": "s3://x: no such bucket"}, "s3://x", ["s3://x: no such bucket"]),
        ({"registry": "s3://x: 3 artifacts"}, "s3://x", []),
    ],
)
def test_what_doctor_calls_a_problem(
    finding: dict[str, str], registry: str, words: list[str]
) -> None:
    found = problems({**FINE, **finding}, registry)
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))


def test_doctor_exits_with_11_for_a_registry_that_does_not_answer(tmp_path: Path) -> None:
    runner = CliRunner(home=tmp_path, cache=tmp_path / "cache")
    url = "https://127.0.0.1:9/none"
    said = runner.run("doctor", "--json", "--registry", url, expect=11)
    assert url in json.loads(said.stdout)["problems"][-1]
