"""What every engine promises of its containers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envferry.engines.port import Job, Mount
from envferry.engines.selection import Engine, choose_sandbox, open_sandbox
from envferry.errors import NoSandbox, ToolFailed
from tests.conftest import require
from tests.support.image_engine import BASE_IMAGE
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from envferry.engines.port import Sandbox
    from tests.support.image_engine import ImageEngine

pytestmark = pytest.mark.container

LONG_JOB = """\
import signal, sys
from envferry.cli.main import interrupt
from envferry.engines.port import Job
from envferry.engines.selection import Engine, open_sandbox
# A shell's background jobs ignore it, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, interrupt)
open_sandbox(Engine(sys.argv[1])).run(Job(argv=("/bin/sh", "-c", sys.argv[2])))
"""
TALK = "import socket; socket.create_connection(('192.0.2.1', 80), 3)"


def shell(sandbox: Sandbox, script: str, *mounts: Mount) -> str:
    """Run a shell script in a container and return what it printed."""
    return sandbox.run(Job(argv=("/bin/sh", "-c", script), mounts=mounts)).stdout


def test_a_job_sees_only_its_own_environment(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "do not tell")
    seen = dict(line.split("=", 1) for line in shell(sandbox, "env").splitlines())
    expected = {"HOME": "/tmp", "LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONHASHSEED": "0"}
    assert expected.items() <= seen.items()
    shells = {"PWD", "OLDPWD", "SHLVL", "_"}
    assert set(seen) - shells == {*expected, "PATH", "PYTHONDONTWRITEBYTECODE"}


def test_a_job_sees_nothing_of_this_machine(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "private").touch()
    script = f"hostname; cat /proc/1/hostname 2>/dev/null; ls {tmp_path} {Path.home()} 2>&1"
    seen = sandbox.run(Job(argv=("/bin/sh", "-c", script)), check=False).stdout
    assert seen.startswith("envferry\n")
    assert "private" not in seen
    processes = shell(sandbox, "ls /proc | grep -c '^[0-9]'")
    assert int(processes) < 12


def test_the_tool_is_all_that_a_job_sees_of_its_checkout(sandbox: Sandbox) -> None:
    checkout = Path(__file__).parents[2]
    look = Job(argv=("/bin/sh", "-c", f"ls -A {checkout}"), needs_tool=True)
    seen = set(sandbox.run(look, check=False).stdout.split())
    assert seen <= {"pipeline", Path(sys.prefix).name}
    run = Job(argv=(sandbox.python, "-m", "envferry", "--version"), needs_tool=True)
    assert sandbox.run(run).stdout.startswith("envferry")


def test_there_is_no_network(sandbox: Sandbox) -> None:
    devices = shell(sandbox, "cat /proc/net/dev").splitlines()[2:]
    assert [line.split(":")[0].strip() for line in devices] == ["lo"]
    with pytest.raises(ToolFailed, match="Network is unreachable"):
        sandbox.run(Job(argv=(sandbox.python, "-c", TALK), needs_tool=True))


def test_only_writable_mounts_are_written(sandbox: Sandbox, tmp_path: Path) -> None:
    read, write = tmp_path / "read, only", tmp_path / "write"
    read.mkdir()
    write.mkdir()
    (read / "file").write_text("here")
    mounts = (
        Mount(source=read, target="/a/read"),
        Mount(source=write, target="/a/write", writable=True),
    )
    assert shell(sandbox, "cat /a/read/file; touch /a/write/new /tmp/x", *mounts) == "here"
    assert (write / "new").stat().st_uid == os.getuid()
    for place in ("/a/read/x", "/x", "/usr/x", "/etc/x", "/a/x"):
        with pytest.raises(ToolFailed, match="Read-only file system"):
            shell(sandbox, f"touch {place}", *mounts)


def test_a_mount_that_is_missing_is_an_error(sandbox: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match="nowhere") as caught:
        shell(sandbox, "true", Mount(source=tmp_path / "nowhere", target="/x"))
    assert not (tmp_path / "nowhere").exists()
    if sandbox.name != "bwrap":
        assert f"{sandbox.name} could not make a container: " in caught.value.message


@pytest.mark.parametrize("show", [False, True])
def test_what_a_job_says_is_not_the_engines_doing(sandbox: Sandbox, show: bool) -> None:
    """docker and podman end with 125 when they cannot make a container; jobs may, too."""
    for said in ("", "docker: no", "Error: no"):
        job = Job(argv=("/bin/sh", "-c", f"echo '{said}' >&2; echo out; exit 125"))
        finished = sandbox.run(job, check=False, show=show)
        assert (finished.returncode, finished.stdout) == (125, "out\n")


def test_a_job_ends_as_its_program_does(sandbox: Sandbox) -> None:
    job = Job(argv=("/bin/sh", "-c", "echo out; echo 'why not' >&2; exit 7"))
    finished = sandbox.run(job, check=False)
    assert (finished.returncode, finished.stdout, finished.stderr) == (7, "out\n", "why not\n")
    with pytest.raises(ToolFailed, match="why not"):
        sandbox.run(job)
    # Nobody is there to type.
    assert sandbox.run(Job(argv=("/bin/cat",))).stdout == ""


def test_another_user_may_run_it(sandbox: Sandbox, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    mount = Mount(source=tmp_path, target="/out", writable=True)
    job = Job(argv=("/bin/sh", "-c", "id -u; touch /out/x"), mounts=(mount,), user=4321)
    # Without root, an engine has no other user whose files this one could remove.
    may_choose = os.getuid() == 0 or sandbox.name == "bwrap"
    asked, usual = sandbox.run(job).stdout, shell(sandbox, "id -u")
    assert asked == ("4321\n" if may_choose else usual)
    (tmp_path / "x").unlink()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_tool(
    sandbox: Sandbox, request: pytest.FixtureRequest, number: int
) -> None:
    marker = f"sleep 1{os.getpid()}{number}"
    argv = [sys.executable, "-c", LONG_JOB, sandbox.name, f"{marker} & {marker}"]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as tool:
        wait_until(lambda: len(processes_with(marker)) >= 2, "the job runs")
        tool.send_signal(number)
    wait_until(lambda: not processes_with(marker), "the job has ended")
    if number == signal.SIGKILL and sandbox.name != "bwrap":
        # What is killed removes nothing: the engine does, when the container has ended.
        request.getfixturevalue(sandbox.name).wait_for_removal()


def test_an_engine_that_is_not_there_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoSandbox) as caught:
        choose_sandbox(Engine.AUTO)
    for engine in ("docker", "podman", "bubblewrap"):
        assert f"{engine} is not installed" in caught.value.message


def test_auto_takes_what_works(caplog: pytest.LogCaptureFixture) -> None:
    require("bwrap", Path("/usr/bin/bwrap").exists())
    with caplog.at_level("INFO"):
        chosen = choose_sandbox(Engine.AUTO)
    assert f"{chosen.name} works" in caplog.text


def test_an_image_that_is_missing_or_foreign_is_named(image_engine: ImageEngine) -> None:
    engine = Engine(image_engine.name)
    with pytest.raises(NoSandbox, match=f"{engine.value} has no image nobody/has:this") as caught:
        open_sandbox(engine, "nobody/has:this")
    assert f"{engine.value} build -t" in caught.value.hint
    with pytest.raises(NoSandbox, match="has no /opt/envferry/bin/python"):
        open_sandbox(engine, BASE_IMAGE)


def processes_with(text: str) -> list[int]:
    """Return the processes whose command line holds a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if words.startswith(text):
            found.append(int(path.parent.name))
    return found
