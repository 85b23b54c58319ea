"""What people name as files is never waited for without end."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from pathlib import Path

import pytest

from envferry.base.inputs import open_input, read_input
from tests.support.cli_runner import ENVFERRY
from tests.support.keys import key_files

SHORT = b"x" * 1000
LONG = bytes(range(256)) * 1000
"""More than a pipe holds at once."""


@pytest.mark.parametrize("data", [b"", SHORT, LONG])
def test_files_are_read_whole(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(data)
    assert read_input(file, len(data)) == data


@pytest.mark.parametrize("data", [SHORT, LONG])
@pytest.mark.parametrize("begins", ["before it is opened", "after"])
def test_a_pipe_that_a_process_writes_to_is_read_whole(data: bytes, begins: str) -> None:
    """As `<(command)` of a shell, also while the command has not said anything yet."""
    reading, writing = os.pipe()
    may_begin = threading.Event()

    def write() -> None:
        may_begin.wait()
        with os.fdopen(writing, "wb") as stream:
            stream.write(data)

    writer = threading.Thread(target=write)
    writer.start()
    if begins != "after":
        may_begin.set()
    with open_input(Path(f"/dev/fd/{reading}")) as stream:
        may_begin.set()
        assert stream.read() == data
    writer.join()
    os.close(reading)


def test_what_never_ends_is_refused(tmp_path: Path) -> None:
    pipe, large = tmp_path / "pipe", tmp_path / "large"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="no process writes to") as told:
        open_input(pipe)
    assert told.value.errno == errno.EPIPE
    large.touch()
    os.truncate(large, 1 << 40)
    with pytest.raises(OSError, match="more than 1,000 bytes"):
        read_input(large, 1000)
    with pytest.raises(IsADirectoryError):
        read_input(tmp_path, 1000)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("keygen new --of PIPE", 2),
        ("push demo@stable --registry . --sign-key PIPE", 2),
        ("trust add PIPE --role root --sign-key ours.key", 2),
        ("trust add ours.pub --role root --sign-key ours.key --bundle PIPE", 2),
        ("trust update PIPE", 2),
        ("trust update .", 2),
        ("trust show PIPE", 2),
        ("audit demo@stable --registry . --policy PIPE", 3),
        ("audit demo@stable --registry . --vex PIPE", 7),
        ("audit demo@stable --registry . --database PIPE", 8),
        ("audit update PIPE", 7),
        ("audit update folder", 2),
        ("import PIPE", 3),
        ("lint PIPE", 3),
        ("lock PIPE", 3),
        ("lint includes.yml", 3),
        ("stats PIPE", 7),
        ("verify demo.tar.zst --trusted-key PIPE", 2),
        ("install demo.tar.zst", 7),
    ],
)
def test_no_command_waits_for_a_pipe(tmp_path: Path, command: str, code: int) -> None:
    for name in ("PIPE", "demo.tar.zst", "demo.manifest.json", "folder/a.json", "keys/trust.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / name, 0o600)
    text = "name: a\ndependencies:\n  - pip\n  - pip:\n      - -r PIPE\n"
    (tmp_path / "includes.yml").write_text(text)
    key_files(tmp_path / "ours")
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "ENVFERRY_TRUSTED_DIR": "/dev/null",
    }
    found = subprocess.run(
        [ENVFERRY, *command.split()],
        cwd=tmp_path,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,  # where one does, the test ends by this
        check=False,
    )
    assert (found.returncode, "Traceback" in found.stderr) == (code, False), found.stderr
