"""Programs in an environment without conda: run and shell, kernels and modulefiles."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from envferry.base.env_variables import UNSET
from envferry.errors import TargetOccupied
from envferry.install.activation import roll_back
from envferry.install.programs.integrations import NONE, kernel_path, tcl_word
from envferry.install.records.env_home import EnvHome
from envferry.install.remove import remove_whole
from tests.conftest import require
from tests.support.archives import small_archive
from tests.support.artifacts import installable_artifact
from tests.support.cli_runner import CliRunner
from tests.support.installing import install
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

ODD = "a 'b' \"c\" $HOME `d` \\ {connection} [e]; \u00e9\nnext"
PYTHON = b'#!/bin/sh\nprintf "%s\\n" "$@" "$CONDA_PREFIX" "$GREETING" "$SCRIPTED"\n'
CONTENTS = {
    "bin/python": PYTHON,
    "bin/tool": b"#!/bin/sh\necho tool\n",
    "conda-meta/state": json.dumps({"env_vars": {"GREETING": ODD, "GONE": UNSET}}).encode(),
    "etc/conda/activate.d/set.sh": b'set -- changed\nexport SCRIPTED="$CONDA_PREFIX"\n',
    "lib/python3.12/site-packages/ipykernel_launcher.py": b"",
}
needs_tcl = pytest.mark.skipif(shutil.which("tclsh") is None, reason="needs tclsh")


@pytest.fixture
def demo(tmp_path: Path, envs: Path) -> EnvHome:
    """Return an environment with variables, a script of a package and a kernel."""
    small_archive(tmp_path / "demo.tar.zst", CONTENTS)
    install(tmp_path / "demo.tar.zst", envs)
    return EnvHome.of(envs, "demo")


def update(tmp_path: Path, home: EnvHome, **options: Any) -> str:
    """Install a version without ipykernel; return its id."""
    contents = {path: data for path, data in CONTENTS.items() if "ipykernel" not in path}
    small_archive(tmp_path / "plain.tar.zst", contents)
    return install(tmp_path / "plain.tar.zst", home.envs_dir, **options).id


def runner(tmp_path: Path, home: EnvHome, **environ: str) -> CliRunner:
    environ = {"ENVFERRY_ENVS_DIR": str(home.envs_dir), **environ}
    return CliRunner(home=tmp_path, cache=tmp_path / "cache", environ=environ)


def test_run_is_activated(tmp_path: Path, demo: EnvHome) -> None:
    cli = runner(
        tmp_path, demo, GONE="set outside", CONDA_PREFIX="/other", PATH="/other/bin:/usr/bin:/bin"
    )
    script = (
        'printf "%s|" "$0" "$1" "$GREETING" "${GONE-unset}" "$SCRIPTED" "$CONDA_PREFIX" "$PATH"'
    )
    told = cli.run("run", "demo", "--", "sh", "-c", script, "-x", "a b").stdout
    prefix = str(demo.link)
    assert told.split("|")[:6] == ["-x", "a b", ODD, "unset", prefix, prefix]
    assert told.split("|")[6] == f"{prefix}/bin:/usr/bin:/bin"
    assert cli.run("run", "demo", "tool").stdout == "tool\n"


def test_run_passes_exit_codes_on(tmp_path: Path, demo: EnvHome) -> None:
    argv, environ = runner(tmp_path, demo).command("run", "demo", "--", "sh", "-c")
    for script, code in (("exit 42", 42), ("kill -TERM $$", -signal.SIGTERM)):
        assert subprocess.run([*argv, script], env=environ, check=False).returncode == code
    finished = subprocess.run(
        [*argv[:-2], "no-such-program"], env=environ, capture_output=True, check=False
    )
    assert finished.returncode == 127


def test_run_is_replaced_by_the_program(tmp_path: Path, demo: EnvHome) -> None:
    ready = tmp_path / "ready"
    say = f"echo $$ >{ready}.new; mv {ready}.new {ready}"
    script = f"trap 'exit 7' INT; {say}; while :; do sleep 0.05; done"
    argv, environ = runner(tmp_path, demo).command("run", "demo", "--", "sh", "-c", script)
    with subprocess.Popen(argv, env=environ) as child:
        wait_until(ready.exists, "the program runs")
        assert int(ready.read_text()) == child.pid
        child.send_signal(signal.SIGINT)
        assert child.wait() == 7


def test_a_broken_pipe_ends_the_program(tmp_path: Path, demo: EnvHome) -> None:
    argv, environ = runner(tmp_path, demo).command("run", "demo", "--", "yes")
    with subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"y\n"
        child.stdout.close()
        assert child.wait() == -signal.SIGPIPE


def test_run_where_the_path_is_another(tmp_path: Path, envs: Path) -> None:
    small_archive(tmp_path / "demo.tar.zst", CONTENTS)
    install(tmp_path / "demo.tar.zst", envs, prefix="/opt/elsewhere/demo")
    cli = runner(tmp_path, EnvHome.of(envs, "demo"))
    assert "is installed for /opt/elsewhere/demo" in cli.run("run", "demo", "x", expect=11).stderr
    assert "gone is not installed" in cli.run("run", "gone", "x", expect=7).stderr
    cli.run("run", "demo", expect=2)


BASE = """\
export PATH="/usr/bin:/bin:/mine"
PS1="> "
export CONDA_PREFIX=/base CONDA_DEFAULT_ENV=base GREETING=theirs MINE=yes
export PATH="/base/bin:$PATH"
"""
"""What `conda init` and people write: base is active, and the path is another."""
FISH_BASE = """\
set -gx PATH /base/bin /usr/bin /bin /mine
function fish_prompt; printf '> '; end
set -gx CONDA_PREFIX /base
set -gx CONDA_DEFAULT_ENV base
set -gx GREETING theirs
set -gx MINE yes
"""
RC_FILES = {
    "bash": {".bashrc": BASE},
    "zsh": {".zshenv": "ZDOTDIR=$HOME/z\n", "z/.zshrc": BASE},
    "zsh in its home": {".zshrc": BASE},
    "fish": {".config/fish/config.fish": FISH_BASE},
}
SAY = 'python --version a; echo "$MINE=$PATH=$CONDA_DEFAULT_ENV=$_envferry_start$ZDOTDIR"; exit 5\n'


@pytest.mark.parametrize("shell", RC_FILES)
def test_shell_comes_after_the_users_own_files(tmp_path: Path, demo: EnvHome, shell: str) -> None:
    program = shutil.which(shell.partition(" ")[0])
    require(shell.partition(" ")[0], program)
    for name, text in RC_FILES[shell].items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    cli = runner(tmp_path, demo, HOME=str(tmp_path), SHELL=str(program), TERM="dumb")
    code, said = on_a_terminal(*cli.command("shell", "demo"), typed=SAY)
    assert code == 5, said
    assert f"--version\na\n{demo.link}\n{ODD}\n{demo.link}\n" in said
    (line,) = re.findall(r"^yes=(.*)$", said, re.MULTILINE)
    path, name, rest = line.split("=")
    folders = path.replace(" ", ":").split(":")
    assert folders[0] == f"{demo.link}/bin"
    assert "/mine" in folders
    assert (name, rest) == ("demo", str(tmp_path / "z") if shell == "zsh" else "")
    assert "(demo) >" in said


def on_a_terminal(
    argv: Sequence[str], environ: Mapping[str, str], *, typed: str
) -> tuple[int, str]:
    """Run a program as people do; return its exit code and what the terminal showed."""
    ours, theirs = pty.openpty()
    argv = ["setsid", "--ctty", *argv]
    with subprocess.Popen(argv, env=environ, stdin=theirs, stdout=theirs, stderr=theirs) as child:
        os.close(theirs)
        os.write(ours, typed.encode())
        said = b""
        while True:
            try:
                said += os.read(ours, 4096)
            except OSError:  # the terminal is closed
                break
        code = child.wait()
    os.close(ours)
    return code, said.decode().replace("\r", "")


def run_kernel(path: Path) -> list[str]:
    """Start what a kernel spec says, as Jupyter does."""
    argv = [
        word.replace("{connection_file}", "/c.json")
        for word in json.loads(path.read_bytes())["argv"]
    ]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split("\n", 4)


def test_a_kernel_starts_activated_and_follows(tmp_path: Path, demo: EnvHome) -> None:
    kernels = tmp_path / "kernels"
    file = kernel_path(demo, str(kernels))
    first = demo.current_id()
    install(tmp_path / "demo.tar.zst", demo.envs_dir, kernel_dir=kernels)
    told = run_kernel(file)
    launcher = f"{demo.link}/lib/python3.12/site-packages/ipykernel_launcher.py"
    assert told[:4] == [launcher, "-f", "/c.json", str(demo.link)]
    assert told[4] == f"{ODD}\n{demo.link}\n"
    spec = json.loads(file.read_bytes())
    assert (spec["display_name"], spec["language"]) == (f"demo ({first})", "python")
    update(tmp_path, demo)
    assert not file.parent.exists(), "that version has no ipykernel"
    roll_back(demo, None)
    assert json.loads(file.read_bytes())["metadata"]["envferry"]["id"] == first
    remove_whole(demo, assume_unused=True)
    assert list(kernels.iterdir()) == []


def test_a_modulefile_follows_and_goes(tmp_path: Path, demo: EnvHome) -> None:
    modules = tmp_path / "modules"
    first = demo.current_id()
    assert first
    install(tmp_path / "demo.tar.zst", demo.envs_dir, modulefile_dir=modules)
    assert (modules / "demo").read_text().startswith("#%Module1.0\n")
    assert f"({first})" in (modules / "demo").read_text()
    second = update(tmp_path, demo)
    assert f"({second})" in (modules / "demo").read_text()
    roll_back(demo, None)
    assert f"({first})" in (modules / "demo").read_text()
    moved = tmp_path / "moved"
    # What a killed command was writing goes; what others have under such a name stays.
    unfinished = [modules / f".demo.abcdef0{number}" for number in range(2)]
    unfinished[0].write_bytes((modules / "demo").read_bytes())
    unfinished[1].touch()
    (modules / ".demo.settings").write_text("# of this site\n")
    install(tmp_path / "demo.tar.zst", demo.envs_dir, modulefile_dir=moved)
    assert [path.name for path in modules.iterdir()] == [".demo.settings"]
    assert not (modules / "demo").exists()
    assert (moved / "demo").exists()
    install(tmp_path / "demo.tar.zst", demo.envs_dir, modulefile_dir=NONE)
    assert not (moved / "demo").exists()


TCL = """
proc unknown {args} { foreach word $args { puts [string map {"\\n" "\\\\n"} $word] }; puts "" }
proc source-sh {args} { unknown source-sh {*}$args }
fconfigure stdout -encoding utf-8
source -encoding utf-8 [lindex $argv 0]
"""


@needs_tcl
def test_a_modulefile_is_tcl(tmp_path: Path, demo: EnvHome) -> None:
    modules = tmp_path / "modules"
    install(tmp_path / "demo.tar.zst", demo.envs_dir, modulefile_dir=modules)
    script = tmp_path / "read.tcl"
    script.write_text(TCL)
    finished = subprocess.run(
        ["tclsh", script, modules / "demo"], capture_output=True, text=True, check=True
    )
    commands = [tuple(text.split("\n")) for text in finished.stdout.strip().split("\n\n")]
    assert ("prepend-path", "PATH", f"{demo.link}/bin") in commands
    assert ("setenv", "CONDA_PREFIX", str(demo.link)) in commands
    assert ("setenv", "GREETING", ODD.replace("\n", "\\n")) in commands
    assert ("unsetenv", "GONE") in commands
    assert ("source-sh", "bash", f"{demo.link}/etc/conda/activate.d/set.sh") in commands


def test_words_of_tcl() -> None:
    """Lmod takes the bytes of UTF-8 for letters."""
    assert tcl_word("a\u00e9b \u65e5 \U0001f600") == r'"a\u00e9b \u65e5 \U0001f600"'
    assert tcl_word('a "b" $c [d] {e}\n\\') == r'"a \"b\" \$c \[d\] \{e\}\n\\"'


def test_files_of_others_are_left_alone(tmp_path: Path, demo: EnvHome) -> None:
    modules, kernels = tmp_path / "modules", tmp_path / "kernels"
    modules.mkdir()
    (modules / "demo").write_text("#%Module1.0\n")
    other = kernel_path(demo, str(kernels))
    other.parent.mkdir(parents=True)
    other.write_text('{"metadata": {"envferry": {"name": "demo", "envs_dir": "/elsewhere"}}}')
    told: list[dict[str, Any]] = [{"modulefile_dir": modules}, {"kernel_dir": kernels}]
    for options in told:
        with pytest.raises(TargetOccupied, match="does not belong to demo"):
            install(tmp_path / "demo.tar.zst", demo.envs_dir, **options)
    assert (modules / "demo").read_text() == "#%Module1.0\n"
    assert "/elsewhere" in other.read_text()
    own = tmp_path / "own"
    install(tmp_path / "demo.tar.zst", demo.envs_dir, modulefile_dir=own)
    (own / "demo").write_text("somebody's\n")
    remove_whole(demo, assume_unused=True)
    assert (own / "demo").read_text() == "somebody's\n"


def test_options_and_settings_of_install(tmp_path: Path, demo: EnvHome) -> None:
    remove_whole(demo, assume_unused=True)
    modules, kernels = tmp_path / "modules", tmp_path / "kernels"
    archive = installable_artifact(tmp_path / "dist", CONTENTS).archive_path
    cli = runner(tmp_path, demo, ENVFERRY_MODULEFILE_DIR=str(modules))
    shown = cli.run("install", archive, "--kernel", kernels).stdout
    assert shown.splitlines()[-1] == "conda_env: demo"
    assert (modules / "demo").is_file()
    assert kernel_path(demo, str(kernels)).is_file()
    cli.run("install", archive, "--kernel=none")
    assert not kernel_path(demo, str(kernels)).exists()
    told = runner(tmp_path, demo).run("install", archive, "--modulefile", expect=2)
    assert "--modulefile names no directory" in told.stderr
