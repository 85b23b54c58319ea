"""The command line: errors in words, exit codes, nothing loaded that is not needed."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pipeline.cli.main import run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["bogus"], 2, "No such command 'bogus'"),
        (["install"], 2, "Missing argument"),
        (["install", "demo", "--bogus"], 2, "No such option"),
        (["install", "a b"], 2, "is no environment name"),
        (["install", "demo@.x"], 2, "is no tag or id"),
        (["install", "nowhere/demo.tar.zst"], 7, "is not there"),
        (["ls", "--registry", "ftp://x"], 2, "ftp"),
        (["show", "demo", "--registry", "file:///nowhere/at/all"], 7, "nowhere/at/all"),
        (["pack", "never-built"], 7, "is not built"),
    ],
)
def test_errors(
    arguments: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENVFERRY_CACHE", str(tmp_path))
    assert run(arguments) == code
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.startswith("error: ")
    assert "\nhint: " in printed.err
    assert printed.out == ""


def test_json_is_one_document(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts").mkdir()
    assert run(["ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_an_impossible_setting_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    assert run(["ls"]) == 3
    assert "SOURCE_DATE_EPOCH is 'yesterday'" in capsys.readouterr().err


def test_what_the_system_refuses_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fetch", "demo", "-o", "/proc/self/nothing"]) == 11
    assert "(/proc/self/nothing)" in capsys.readouterr().err


def test_help_loads_no_command() -> None:
    script = (
        "import sys; from pipeline.cli.main import run; run(['--help']); "
        "print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(done.stderr.splitlines())
    assert "pipeline.cli.main" in loaded
    assert not {name for name in loaded if name.startswith(("pipeline.stages", "rich", "msgspec"))}
