"""What envferry starts runs nothing of the current directory, of a home, or of the caller's."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envferry.archive.reader import FileSource
from envferry.base.isolated import isolated
from envferry.errors import ToolFailed
from envferry.install.stage import InstallOptions, install_artifact
from envferry.lock.conda.index_channel import index_channel
from envferry.models import Checks
from envferry.pack.existing_env import describe_env
from envferry.process import find_program, our_module, run
from envferry.progress import Silent
from tests.support.archives import small_archive
from tests.support.installing import manifest_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from envferry.install.records.installation import Installation

ENVFERRY = Path(sys.executable).with_name("envferry")
SOURCES = Path(__file__).parents[2] / "pipeline/envferry"
TRAP = "raise SystemExit('imported from where nothing may be imported')\n"
PASSED_ON = {"HOME", "LC_ALL", "PATH", "PWD", "PYTHONDONTWRITEBYTECODE", "PYTHONNOUSERSITE",
             "TMPDIR"}  # fmt: skip
"""PWD is the shell's own."""


@pytest.fixture
def hostile_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the current directory one that holds modules and programs of somebody else."""
    place = tmp_path / "hostile"
    (place / "envferry").mkdir(parents=True)
    for name in ("envferry/__init__", "yaml", "click", "msgspec", "rattler", "numpy", "json"):
        (place / f"{name}.py").write_text(TRAP)
    for name in ("bwrap", "git", "nvidia-smi", "docker", "podman", "sh"):
        (place / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran-{name}\n")
        (place / name).chmod(0o755)
    monkeypatch.chdir(place)
    return place


def install_with(
    checks: Checks, tmp_path: Path, more: Mapping[str, bytes] | None = None
) -> Installation:
    """Install a small environment whose python is this one."""
    python = f'#!/bin/sh\nexec {sys.executable} "$@"\n'.encode()
    path = tmp_path / "1.tar.zst"
    files = {"bin/python": python, "bin/tool": python, **(more or {})}
    written = small_archive(path, files)
    manifest = manifest_of(tmp_path / "unused.tar.zst", b"1", id=written.index.id,
                           archive=written.facts, checks=checks)  # fmt: skip
    options = InstallOptions(envs_dir=Path(tempfile.mkdtemp(dir=tmp_path)))
    with FileSource(path) as source:
        return install_artifact(source, manifest, options=options, progress=Silent())


def test_checks_import_nothing_of_the_current_directory(tmp_path: Path, hostile_dir: Path) -> None:
    """Files beside an archive on a disk are nobody's: none of them was signed."""
    install_with(Checks(imports=("json",), commands=('tool -c "import json"',)), tmp_path)
    (hostile_dir / "only_here.py").write_text("")
    with pytest.raises(ToolFailed, match="No module named 'only_here'"):
        install_with(Checks(imports=("only_here",)), tmp_path)


def test_checks_import_nothing_of_what_the_caller_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = tmp_path / "modules"
    site = tmp_path / f"home/.local/lib/python3.{sys.version_info[1]}/site-packages"
    for place in (modules, site):
        place.mkdir(parents=True)
        (place / "only_here.py").write_text("")
        (place / "trap.pth").write_text(f"import os; open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(modules))
    monkeypatch.setenv("PYTHONUSERBASE", str(tmp_path / "home/.local"))
    for checks in (
        Checks(imports=("only_here",)),
        Checks(commands=('tool -c "import only_here"',)),
    ):
        with pytest.raises(ToolFailed, match="No module named 'only_here'"):
            install_with(checks, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_checks_have_an_empty_home_and_directory_of_their_own(tmp_path: Path) -> None:
    said = tmp_path / "said"
    look = (
        f'exec >>{said}; for d in "$HOME" "$TMPDIR" "$PWD"; '
        'do echo "$d"; stat -c %a "$d"; ls -A "$d"; touch "$d/file"; done'
    )
    install_with(Checks(commands=(look,)), tmp_path)
    install_with(Checks(commands=(look,)), tmp_path)
    lines = said.read_text().splitlines()
    places, modes = lines[::2], lines[1::2]
    assert len(set(places)) == 6, "two checks share a directory"
    assert set(modes) == {"700"}
    assert not any(Path(place).parent.exists() for place in places), "left behind"


def test_a_failing_check_leaves_no_home_behind(tmp_path: Path) -> None:
    said = tmp_path / "said"
    with pytest.raises(ToolFailed):
        install_with(Checks(commands=(f'echo "$HOME" >{said}; exit 1',)), tmp_path)
    assert not Path(said.read_text().strip()).parent.exists()


def test_checks_get_no_variable_that_is_not_on_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("LD_PRELOAD", "LD_LIBRARY_PATH", "BASH_ENV", "ENV", "PYTHONSTARTUP", "PYTHONHOME",
             "PERL5LIB", "GCONV_PATH", "ENVFERRY_SIGN_KEY", "AWS_SECRET_ACCESS_KEY")  # fmt: skip
    for name in names:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    said = tmp_path / "said"
    install_with(Checks(commands=(f"/usr/bin/env >{said}",)), tmp_path)
    found = dict(line.split("=", 1) for line in said.read_text().splitlines())
    assert set(found) - {"_", "SHLVL", "OLDPWD"} == PASSED_ON
    own, *others = found["PATH"].split(":")
    assert own.endswith("/demo/bin")
    assert others == ["/usr/local/bin", "/usr/bin", "/bin"]


def test_checks_find_what_activation_sets(tmp_path: Path) -> None:
    """Whatever it sets, they stay isolated."""
    said = tmp_path / "said"
    variables = {"MODEL_HOME": "/models/it's $HOME", "GONE": "***unset***", "HOME": str(tmp_path),
                 "LD_LIBRARY_PATH": "/nowhere", "NUL": "a\0b", "LONG": "x" * 200_000,
                 "PYTHONNOUSERSITE": ""}  # fmt: skip
    state = json.dumps({"env_vars": variables, "version": 1}).encode()
    checks = Checks(imports=("json",), commands=(f"/usr/bin/env >{said}",))
    install_with(checks, tmp_path, {"conda-meta/state": state})
    found = dict(line.split("=", 1) for line in said.read_text().splitlines())
    assert found["MODEL_HOME"] == "/models/it's $HOME"
    assert found["LD_LIBRARY_PATH"] == "/nowhere"
    assert found["PYTHONNOUSERSITE"] == "1"
    assert found["HOME"] != str(tmp_path)
    assert found.keys().isdisjoint(("GONE", "NUL", "LONG"))


def test_an_isolated_home_is_closed_whatever_the_umask_is(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with isolated(str(tmp_path)) as around:
            modes = {path.stat().st_mode & 0o777 for path in around.directory.parent.rglob("*")}
            top = around.directory.parent
            assert modes | {top.stat().st_mode & 0o777} == {0o700}
    finally:
        os.umask(before)
    assert not top.exists()


@pytest.mark.parametrize("path", ["", ":", ".:/usr/bin", "/usr/bin:", "bin/../:/usr/bin"])
def test_no_program_is_found_in_the_current_directory(
    path: str, hostile_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", path)
    assert find_program("nvidia-smi") is None
    with pytest.raises(ToolFailed, match="cannot run nvidia-smi"):
        run(["nvidia-smi"])
    if find_program("git"):
        assert "git version" in run(["git", "--version"]).stdout
    assert not list(tmp_path.glob("ran-*"))


def test_doctor_runs_nothing_of_the_current_directory(hostile_dir: Path, tmp_path: Path) -> None:
    """Nor do the programs that it starts: their PATH has no relative entries either."""
    environ = {**os.environ, "PATH": ":.:/usr/bin:/bin", "ENVFERRY_CACHE": str(tmp_path / "cache")}
    words: list[str | Path] = [ENVFERRY, "doctor", "--registry", tmp_path]
    finished = subprocess.run(words, env=environ, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert not list(tmp_path.glob("ran-*"))


def test_workers_import_envferry_and_its_libraries_from_where_we_do(
    hostile_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(hostile_dir))
    index_channel(tmp_path / "channel")
    assert (tmp_path / "channel/noarch/repodata.json").is_file()


def test_a_container_worker_does_not_search_its_working_directory(hostile_dir: Path) -> None:
    argv = our_module("envferry.lock.conda.conda_solver", python=sys.executable)
    assert run([*argv, "--version"], cwd=hostile_dir).stdout.startswith("conda ")


def test_workers_are_started_in_one_way_only() -> None:
    """`python -m` searches the current directory; `our_module` does not."""
    found = {path for path in SOURCES.rglob("*.py") for text in _texts(path) if text == "-m"}
    assert found == set()


def _texts(path: Path) -> Iterator[object]:
    return (
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
    )


def test_python_m_envferry_imports_nothing_of_the_current_directory(hostile_dir: Path) -> None:
    (hostile_dir / "envferry/__init__.py").unlink()
    (hostile_dir / "envferry").rmdir()
    words = [sys.executable, "-m", "envferry", "--version"]
    finished = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")


def test_what_lies_in_a_prefix_is_read_and_never_run(tmp_path: Path) -> None:
    """`import PREFIX` and `pack PREFIX`: whoever made the environment is not whoever packs it."""
    tree = tmp_path / "demo"
    (tree / "bin").mkdir(parents=True)
    (tree / "conda-meta").mkdir()
    (tree / "conda-meta/history").touch()
    for name in ("python", "python3", "conda", "pip"):
        (tree / "bin" / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        (tree / "bin" / name).chmod(0o755)
    environ = {**os.environ, "ENVFERRY_CACHE": str(tmp_path / "cache")}
    for words in (("pack", str(tree), "-o", str(tmp_path / "out")), ("import", str(tree))):
        subprocess.run(
            [ENVFERRY, *words], env=environ, cwd=tmp_path, capture_output=True, check=False
        )
    assert describe_env(tree, prefix=None, name=None, lock_dir=tmp_path).prefix == str(tree)
    assert list((tmp_path / "out").glob("demo-*.tar.zst"))
    assert not (tmp_path / "ran").exists()
