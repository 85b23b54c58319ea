"""Other programs: run, explained when they fail, stopped when we are."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from envferry import process
from envferry.errors import ToolFailed
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path


def test_output_comes_back() -> None:
    finished = process.run([sys.executable, "-c", "print('out')"])
    assert finished.stdout == "out\n"


def test_the_command_line_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "envferry"):
        process.run(["true", "two words"])
    assert "+ true 'two words'" in caplog.text


def test_a_failure_shows_the_last_lines() -> None:
    script = "import sys; print('x\\n' * 99, 'the reason', file=sys.stderr); sys.exit(7)"
    with pytest.raises(ToolFailed, match="exited with 7") as caught:
        process.run([sys.executable, "-c", script])
    assert caught.value.message.endswith("the reason")
    assert len(caught.value.message.splitlines()) == process.ERROR_LINES + 1


def test_a_missing_program_is_an_error_of_ours() -> None:
    with pytest.raises(ToolFailed, match="cannot run no-such-program"):
        process.run(["no-such-program"])


def test_too_many_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux takes a quarter of the stack's limit, and 6 MiB at most (execve(2))."""
    for number in range(70):
        monkeypatch.setenv(f"LONG_{number}", "x" * 100_000)
    monkeypatch.setenv("LONGEST", "secret" * 20_000)
    with pytest.raises(ToolFailed, match=r"Argument list too long: .* 7,\d\d\d,\d\d\d") as caught:
        process.run(["true"])
    assert "the longest are LONGEST (120,000 bytes), LONG_" in caught.value.hint
    assert "secret" not in f"{caught.value.message} {caught.value.hint}"
    words = ["/usr/bin/env", "TOKEN=" + "secret" * 20_000]
    with pytest.raises(ToolFailed) as caught:
        process.run([*words, *["x" * 100_000] * 70], env={})
    assert "TOKEN (120,006 bytes)" in caught.value.hint
    assert "secret" not in f"{caught.value.message} {caught.value.hint}"


def test_what_is_left_running_is_not_waited_for() -> None:
    finished = process.run_to_its_end(
        ["sh", "-c", "sleep infinity & echo $!; echo two >&2; exit 3"]
    )
    left, said = finished.stdout.split()
    assert (finished.returncode, said) == (3, "two")
    os.kill(int(left), signal.SIGKILL)  # raises, had it been waited for


def test_a_signal_is_named() -> None:
    with pytest.raises(ToolFailed, match="was killed by signal 9"):
        process.run(["sh", "-c", "kill -9 $$"])


def test_an_interrupt_stops_the_program(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    child = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    parent = (
        f"from envferry import process; import sys; process.run([sys.executable, '-c', {child!r}])"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stderr=subprocess.DEVNULL) as running:
        wait_until(lambda: pid_file.exists() and pid_file.read_text(), "the program runs")
        running.send_signal(signal.SIGINT)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
