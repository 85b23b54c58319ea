"""The comparison of what a page shows with what a command printed can fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.console_blocks import agrees, blocks_of, run_commands

if TYPE_CHECKING:
    from pathlib import Path

SAID = ["push demo: 0.8 s, 55.1 MB", "demo@fa4fa8c4f2e6 in /tmp/x, tags: latest"]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (["push demo: 1.2 s", "demo@c6db9f2ac836 in /tmp/x, tags: latest"], True),
        (["…", "demo@c6db9f2ac836 in …, tags: latest"], True),
        (["push demo: 1.2 s, 3 GB", "…"], True),
        (["…"], True),
        (["push demo: 1.2 s"], False),
        (["demo@c6db9f2ac836 in /tmp/x, tags: latest"], False),
        (["…", "demo@c6db9f2ac836 in …, tags: stable"], False),
        ([], False),
    ],
)
def test_agreement(shown: list[str], expected: bool) -> None:
    assert agrees(SAID, shown) is expected


def test_blocks_and_their_commands() -> None:
    page = "text\n```console\n$ one\na\n$ two\n```\n```sh\nnot run\n```\n```yaml\nx: 1\n```\n"
    console, file = blocks_of(page)
    assert list(console.commands()) == [("one", ["a"]), ("two", [])]
    assert (file.kind, file.text) == ("yaml", "x: 1\n")


def test_one_shell_runs_all(tmp_path: Path) -> None:
    commands = [
        "mkdir x && cd x",
        "export A=1; echo out; echo err >&2",
        'basename "$PWD$A"',
        "false",
    ]
    said = run_commands(commands, tmp_path, {"PATH": "/usr/bin:/bin"})
    assert [[line for line in one if line] for one in said] == [[], ["out", "err"], ["x1"], []]
