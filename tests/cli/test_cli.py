"""The command line: errors in words, exit codes, nothing loaded that is not needed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from envferry.cli.main import run
from envferry.cli.shared.failures import explain

ENVFERRY = Path(sys.executable).with_name("envferry")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["bogus"], 2, "`bogus` is not a command of envferry"),
        (["install"], 2, "Missing argument"),
        (["install", "demo", "--bogus"], 2, "No such option"),
        (["install", "a b"], 2, "is not a valid environment name"),
        (["install", "demo@.x"], 2, "is not a valid tag or id"),
        (["install", "nowhere/demo.tar.zst"], 7, "does not exist"),
        (["ls", "--registry", "ftp://x"], 2, "ftp"),
        (["show", "demo", "--registry", "file:///nowhere/at/all"], 7, "nowhere/at/all"),
        (["pack", "torch-2.8"], 7, "torch-2.8 is not built"),
        (["pack", "specs/torch-2.8.yml"], 7, "torch-2.8 is not built"),
        (["pack", "./torch-2.8"], 7, "the folder does not exist"),
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


def test_a_cache_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVFERRY_CACHE", str(tmp_path / "cache"))
    for place, is_named in (("cache/builds/x.lock", True), ("cache", True), ("else", False)):
        error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / place))
        failure = explain(error)
        assert (failure.exit_code, "ENVFERRY_CACHE" in failure.hint) == (11, is_named)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "today")
    assert explain(error).exit_code == 11


def test_help_loads_no_command() -> None:
    script = (
        "import sys; from envferry.cli.main import run; run(['--help']); "
        "print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(done.stderr.splitlines())
    assert "envferry.cli.main" in loaded
    assert not {name for name in loaded if name.startswith(("envferry.install", "rich"))}


def test_errors_are_json_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["show", "demo", "--json"]) == 7
    printed = capsys.readouterr()
    error = json.loads(printed.out)["error"]
    assert error["exit_code"] == 7
    assert f"error: {error['message']}\nhint: {error['hint']}\n" == printed.err
    assert run(["show", "--json"]) == 2
    assert "Missing argument" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_an_argument_that_is_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ls", "--registry", "x\udce9"]) == 2
    assert "'x\\udce9' is not UTF-8" in capsys.readouterr().err


def test_the_current_folder_is_gone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert run(["ls"]) == 11
    assert "error: the current folder was removed\nhint: `cd`" in capsys.readouterr().err


def test_a_file_where_a_folder_should_be(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert run(["fetch", "demo", "-o", str(tmp_path / "file")]) == 11
    assert f"a file is where a folder is expected ({tmp_path}/file)" in capsys.readouterr().err


@pytest.mark.parametrize(("closed", "said"), [("<&-", "[]\n"), (">&-", ""), ("2>&-", "[]\n")])
def test_without_a_stream(tmp_path: Path, closed: str, said: str) -> None:
    """As under some schedulers: what is opened first must not get what is said there."""
    (tmp_path / "artifacts").mkdir()
    done = subprocess.run(
        ["sh", "-c", f"{ENVFERRY} ls --json {closed}"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (said, "")


def test_the_reader_went_away(tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [ENVFERRY, "ls"], cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (130, b"")


@pytest.mark.parametrize(
    ("number", "how", "code"),
    [
        (signal.SIGINT, "default", 130),
        (signal.SIGTERM, "default", 130),
        (signal.SIGHUP, "default", 130),
        (signal.SIGHUP, "ignore", 0),
    ],
)
def test_signals(tmp_path: Path, number: signal.Signals, how: str, code: int) -> None:
    """A terminal that is closed is as Ctrl-C, but not where `nohup` was said."""
    reader, writer = os.pipe()
    command = ["env", f"--{how}-signal={number.name[3:]}"]
    command += [str(ENVFERRY), "import", f"/dev/fd/{reader}", "--name", "demo"]
    with subprocess.Popen(
        command, cwd=tmp_path, pass_fds=[reader], stderr=subprocess.PIPE, text=True
    ) as child:
        os.close(reader)
        os.write(writer, b"numpy\n" * 50_000)  # more than a pipe holds: it is reading now
        child.send_signal(number)
        os.close(writer)
        _, said = child.communicate(timeout=600)
    assert child.returncode == code, said
    assert (said == "\nerror: interrupted\n") == bool(code)


@pytest.mark.parametrize("command", ["lock", "lint", "build", "import"])
def test_a_host_without_the_extra_is_told_its_name(tmp_path: Path, command: str) -> None:
    """A host has what `install` needs; commands of a build machine say what is missing there."""
    (tmp_path / "demo.yml").write_text("name: demo\nchannels: [c]\ndependencies: [python]\n")
    without = "import sys; sys.modules.update(dict.fromkeys(('yaml', 'rattler', 'conda_pack')))"
    code = f"{without}; from envferry.cli.main import main; main()"
    argv = [sys.executable, "-c", code, command, "demo.yml"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "which is not installed" in done.stderr
    assert "envferry[build]" in done.stderr
    assert "Traceback" not in done.stderr


ONLY_BASE = """
import sys
from importlib import metadata
from pathlib import Path
from packaging.requirements import Requirement
left = [one for one in metadata.requires("envferry") if "extra ==" not in one]
base = {"envferry"}
while left:
    name = Requirement(left.pop()).name.lower()
    if name not in base:
        base.add(name)
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        left += [one for one in needs if "extra ==" not in one]
owners = metadata.packages_distributions().items()
others = {top for top, names in owners if not {name.lower() for name in names} & base}

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in others:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from envferry.cli.main import COMMANDS, run
codes = [run(words.split()) for words in sys.argv[1:]]
codes += [run([name, "--help"]) for name in COMMANDS]
sys.exit(max(codes))
"""
"""Runs commands where only the libraries are that a training host has."""


def test_hosts_without_any_extra_have_all_help(tmp_path: Path) -> None:
    """The bare command, completion, man pages and `--help` load no library of a build machine."""
    words = ["", f"man {tmp_path}", "completion bash", "config", f"list --envs-dir {tmp_path}"]
    argv = [sys.executable, "-c", ONLY_BASE, *words]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "training host " in done.stdout
    assert (tmp_path / "man1/envferry-lock.1").is_file()
