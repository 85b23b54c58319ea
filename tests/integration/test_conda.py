"""A conda of the machine's own, from 4.3 on: says what was built, and installs our locks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import zstandard
from msgspec.structs import replace

from envferry.engines.selection import Engine, open_sandbox
from envferry.errors import SpecError
from envferry.lock.lock_options import LockOptions
from envferry.lock.stage import lock_spec
from envferry.process import run
from envferry.progress import Silent
from envferry.specs.reading import read_spec
from tests.conftest import require
from tests.support.builds import BuildRunner
from tests.support.tiny_channel import TinyPackage, add_packages, make_channel

pytestmark = pytest.mark.container

TINY = (
    TinyPackage(name="base-files", version="1.0", build="h0_0", files=(("share/base", "base"),)),
    TinyPackage(
        name="tool", version="2.5.1", build="h1_3", depends=("base-files",),
        files=(("bin/tool", "#!/bin/sh\n"), ("share/größe", "x")),
    ),
)  # fmt: skip


def as_tar_bz2(package: Path) -> Path:
    """Write a `.conda` package in the older form, the only one that conda 4.3 knows."""
    target = package.with_name(f"{package.stem}.tar.bz2")
    with zipfile.ZipFile(package) as outer, tarfile.open(target, "w:bz2") as archive:
        for name in outer.namelist():
            if not name.endswith(".tar.zst"):
                continue
            with (
                zstandard.ZstdDecompressor().stream_reader(outer.open(name)) as stream,
                tarfile.open(fileobj=stream, mode="r|") as inner,
            ):
                for member in inner:
                    archive.addfile(member, inner.extractfile(member))
    return target


def conda(*words: str | Path, envs: Path | None = None) -> str:
    """Run the machine's conda and return what it says."""
    program = shutil.which("conda")
    require("conda", program)
    environ = {**os.environ, **({"CONDA_ENVS_PATH": str(envs)} if envs else {})}
    argv = [str(program), *map(str, words)]
    return subprocess.run(argv, env=environ, capture_output=True, text=True, check=True).stdout


def require_version(*oldest: int) -> Path:
    """Return the machine's conda; skip the test when it is older."""
    program = shutil.which("conda")
    require("conda", program)
    says = run([str(program), "--version"])
    numbers = (says.stdout or says.stderr).split()[-1].split(".")
    if tuple(int(number) for number in numbers[:3] if number.isdigit()) < oldest:
        pytest.skip(f"conda is {'.'.join(numbers)}, needed is {'.'.join(map(str, oldest))}")
    return Path(str(program))


def test_conda_solves_as_our_solver_does(tmp_path: Path) -> None:
    solver = require_version(4, 8, 2)
    channel = make_channel(tmp_path / "channel", TINY)
    spec = tmp_path / "tools.yml"
    spec.write_text(f"channels: ['{channel}']\ndependencies: [tool]\n")
    locks = [
        lock_spec(
            read_spec(spec),
            options=LockOptions(platforms=("linux-64",), solver=by, upgrade=True),
            progress=Silent(),
        )
        for by in (None, solver)
    ]
    # Of a channel's index, conda-lock hands on less than a build would write into conda-meta.
    ours, theirs = ([replace(item, record={}) for item in lock.packages] for lock in locks)
    assert ours == theirs
    assert {item.name for item in locks[0].packages} == {"base-files", "tool"}

    spec.write_text(f"channels: ['{channel}']\ndependencies: [tool=9]\n")
    options = LockOptions(platforms=("linux-64",), solver=solver)
    with pytest.raises(SpecError, match="tool=9"):
        lock_spec(read_spec(spec), options=options, progress=Silent())


def test_conda_finds_nothing_altered(tmp_path: Path) -> None:
    require_version(26)
    require("bwrap", shutil.which("bwrap"))
    channel = make_channel(tmp_path / "channel", TINY)
    runner = BuildRunner(home=tmp_path, sandbox=open_sandbox(Engine.BWRAP))
    files = [channel / item.subdir / f"{item.stem}.conda" for item in TINY]
    tree = Path(runner.build(files).tree)
    health = [shutil.which("conda") or "", "doctor", "-p", str(tree), "altered-files"]
    assert "no packages with altered files" in run(health).stdout
    with (tree / "bin/tool").open("a") as stream:
        stream.write("exit 1\n")
    assert "tool-2.5.1-h1_3: 1" in run(health, check=False).stdout


def test_conda_lists_what_was_built(tmp_path: Path) -> None:
    require("conda", shutil.which("conda"))
    require("bwrap", shutil.which("bwrap"))
    channel = make_channel(tmp_path / "channel", TINY)
    files = [as_tar_bz2(channel / item.subdir / f"{item.stem}.conda") for item in TINY]
    runner = BuildRunner(home=tmp_path, sandbox=open_sandbox(Engine.BWRAP))
    tree = Path(runner.build(files).tree)

    listed = conda("list", "-p", tree)
    rows = [line.split()[:3] for line in listed.splitlines() if not line.startswith("#")]
    assert rows == [["base-files", "1.0", "h0_0"], ["tool", "2.5.1", "h1_3"]]

    explicit = conda("list", "-p", tree, "--explicit").splitlines()
    assert "@EXPLICIT" in explicit
    assert {line for line in explicit if "://" in line} == {file.as_uri() for file in files}

    # conda 4.3 says names, later ones say what there is to say.
    found = json.loads(conda("list", "-p", tree, "--json"))
    names = {item if isinstance(item, str) else item["dist_name"] for item in found}
    assert {name.rpartition("::")[2] for name in names} == {item.stem for item in TINY}

    environments = conda("info", "--envs", envs=tree.parent)
    assert any(str(tree) in line for line in environments.splitlines())


def test_conda_lock_installs_our_locks(tmp_path: Path) -> None:
    """`conda-lock install` by the machine's conda, and again by a lock that it rendered."""
    program = shutil.which("conda")
    require("conda", program)
    channel = make_channel(tmp_path / "channel", TINY)
    for item in TINY:
        package = channel / item.subdir / f"{item.stem}.conda"
        as_tar_bz2(package)
        package.unlink()
    add_packages(channel, ())
    spec = tmp_path / "tools.yml"
    spec.write_text(f"channels: ['{channel}']\ndependencies: [tool]\n")
    options = LockOptions(platforms=("linux-64",))
    lock = lock_spec(read_spec(spec), options=options, progress=Silent())
    assert all(item.url.endswith(".tar.bz2") for item in lock.packages)

    conda_lock = Path(sys.executable).with_name("conda-lock")
    environ = {**os.environ, "HOME": str(tmp_path), "CONDA_PKGS_DIRS": str(tmp_path / "pkgs")}
    run([conda_lock, "render", "-k", "explicit", "-p", "linux-64", lock.path], cwd=tmp_path)
    for number, file in enumerate((lock.path, tmp_path / "conda-linux-64.lock")):
        prefix = tmp_path / f"installed{number}"
        words = ("install", "--conda", str(program), "-p", prefix, file)
        run([conda_lock, *words], cwd=tmp_path, env=environ)
        assert (prefix / "share/größe").read_text() == "x"
        assert os.access(prefix / "bin/tool", os.X_OK)
        records = {path.stem for path in (prefix / "conda-meta").glob("*.json")}
        assert records == {item.stem for item in TINY}
