"""The whole way on real parts: what was built runs where it was carried to."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envferry.engines.bubblewrap import Bubblewrap
from envferry.engines.port import Job, Mount
from tests.conftest import require
from tests.support.wheels import make_wheel

if TYPE_CHECKING:
    from demo.seaweed import S3Server
    from tests.support.cli_runner import CliRunner

pytestmark = [pytest.mark.container, pytest.mark.network]

BUILT = "/opt/conda/envs/demo"
PROOF = "import sys, numpy, rich; print(sys.prefix, numpy.arange(6).sum())"


def install(archive: Path, demo_runner: CliRunner, envs: Path, *options: str) -> str:
    """Install an archive file through the command line."""
    return demo_runner.run("install", archive, "--envs-dir", envs, *options).stdout


def files_holding(text: str, tree: Path) -> set[str]:
    """Return the files below a tree that hold a text."""
    return {
        str(path.relative_to(tree))
        for path in tree.rglob("*")
        if path.is_file() and not path.is_symlink() and text.encode() in path.read_bytes()
    }


def contents(tree: Path) -> dict[str, object]:
    """Return mode and content of everything below a directory."""
    return {
        str(path.relative_to(tree)): (
            path.lstat().st_mode,
            path.readlink() if path.is_symlink() else path.is_file() and path.read_bytes(),
        )
        for path in tree.rglob("*")
    }


def test_from_s3_to_an_offline_host(
    archive: Path, demo_runner: CliRunner, s3_server: S3Server, tmp_path: Path
) -> None:
    registry = f"s3://{s3_server.bucket}/demo"
    online = replace(demo_runner, environ={**s3_server.environ, "ENVFERRY_REGISTRY": registry})
    pushed = json.loads(online.run("push", archive, "--tag", "stable", "--json").stdout)
    (entry,) = json.loads(online.run("ls", "--json").stdout)
    assert entry["id"] == pushed[0]["id"]
    assert set(entry["tags"]) == {"latest", "stable"}
    fetched = online.run("fetch", "demo@stable", "-o", tmp_path / "usb").stdout.strip()
    assert Path(fetched).read_bytes() == archive.read_bytes()
    online.run("install", "demo@stable", "--envs-dir", tmp_path / "s3" / "envs")
    envs = tmp_path / "envs"
    install(Path(fetched), demo_runner, envs, "--prefix", BUILT)
    host = Bubblewrap()
    mounts = (Mount(source=envs, target="/opt/conda/envs"),)
    proof = host.run(Job(argv=(f"{BUILT}/bin/python", "-c", PROOF), mounts=mounts))
    assert proof.stdout == f"{BUILT} 15\n"
    script = host.run(Job(argv=(f"{BUILT}/bin/pygmentize", "-V"), mounts=mounts))
    assert "Pygments" in script.stdout


def test_the_manual_procedure_still_works(
    archive: Path, demo_runner: CliRunner, tmp_path: Path
) -> None:
    require("zstd", shutil.which("zstd"))
    tree = tmp_path / "by-hand"
    tree.mkdir()
    subprocess.run(["tar", "--zstd", "-xf", archive, "-C", tree], check=True, umask=0o022)
    install(archive, demo_runner, tmp_path / "envs", "--prefix", BUILT, "--no-check")
    assert contents(tree) == contents((tmp_path / "envs/demo").resolve())
    # Longer than the built prefix, but conda's placeholders have room; and it runs itself.
    assert len(str(tree)) > len(BUILT)
    subprocess.run([tree / "bin/python", tree / "bin/conda-unpack"], check=True)
    script = subprocess.run([tree / "bin/pygmentize", "-V"], capture_output=True, check=True)
    assert b"Pygments" in script.stdout
    assert files_holding(BUILT, tree) == set()
    install(archive, demo_runner, tmp_path / "moved", "--prefix", str(tree), "--no-check")
    assert contents(tree) == contents((tmp_path / "moved/demo").resolve())


@pytest.mark.parametrize("depth", [0, 8])
def test_installed_elsewhere_nothing_remembers_the_old_place(
    archive: Path, demo_runner: CliRunner, tmp_path: Path, depth: int
) -> None:
    envs = tmp_path.joinpath(*["a-rather-long-name"] * depth)
    envs.mkdir(parents=True, exist_ok=True)
    install(archive, demo_runner, envs)
    tree = envs / "demo"
    python = str(tree / "bin/python")
    proven = subprocess.run([python, "-c", PROOF], capture_output=True, text=True, check=True)
    assert proven.stdout == f"{tree} 15\n"
    script = subprocess.run([tree / "bin/pygmentize", "-V"], capture_output=True, check=True)
    assert b"Pygments" in script.stdout
    assert files_holding(BUILT, tree.resolve()) == set()
    config = "import sysconfig; print(sysconfig.get_config_var('prefix'))"
    seen = subprocess.run([python, "-c", config], capture_output=True, check=True)
    assert seen.stdout.decode().strip() == str(tree)


def test_conda_metadata_tells_the_truth(
    archive: Path, demo_runner: CliRunner, tmp_path: Path
) -> None:
    install(archive, demo_runner, tmp_path)
    tree = tmp_path / "demo"
    noted: dict[str, str] = {}
    for path in tree.glob("conda-meta/*.json"):
        record = json.loads(path.read_text())
        missing = [file for file in record["files"] if not (tree / file).exists()]
        assert missing == []
        assert record["link"]["source"] == ""
        entries = record["paths_data"]["paths"]
        noted |= {e["_path"]: e["sha256_in_prefix"] for e in entries if "sha256_in_prefix" in e}
    # `conda doctor` compares these.
    assert any(file.endswith("/os.py") for file in noted)
    for file, digest in noted.items():
        assert hashlib.sha256((tree / file).read_bytes()).hexdigest() == digest, file
    check = [str(tree / "bin/python"), "-m", "pip", "check"]
    assert subprocess.run(check, capture_output=True, check=False).returncode == 0
    listed = subprocess.run(
        [tree / "bin/python", "-m", "pip", "list", "--format", "json"],
        capture_output=True,
        check=True,
    )
    names = {item["name"].lower() for item in json.loads(listed.stdout)}
    assert {"numpy", "pygments", "rich", "msgspec", "pip"} <= names


def test_show_and_json(archive: Path, demo_runner: CliRunner) -> None:
    manifest = json.loads(demo_runner.run("show", archive, "--json").stdout)
    assert {item["name"]: item["kind"] for item in manifest["packages"]}["rich"] == "pypi"
    assert manifest["schema"] == 1
    text = demo_runner.run("show", archive).stdout
    assert "numpy" in text
    assert manifest["id"] in text


def test_a_build_has_no_network(demo_runner: CliRunner) -> None:
    spec = (demo_runner.home / "specs/demo.yml").read_text()
    script = "python -c \"import urllib.request as r; r.urlopen('http://127.0.0.1:1')\""
    demo_runner.write_spec("talker", spec.replace("pygmentize -V", script))
    shutil.copy(
        demo_runner.home / "specs/demo.conda-lock.yml",
        demo_runner.home / "specs/talker.conda-lock.yml",
    )
    error = demo_runner.run("build", "talker", "--offline", expect=4).stderr
    assert "failed in the new environment" in error
    assert "hint: " in error


def test_a_wheel_that_overwrites_conda_files_is_named(
    demo_runner: CliRunner, tmp_path: Path
) -> None:
    files = {"pygments/__init__.py": "hello = 1"}
    make_wheel(tmp_path, "intruder-1.0-py3-none-any", files=files)
    spec = (demo_runner.home / "specs/demo.yml").read_text()
    spec = spec.replace("- rich\n", f"- --find-links {tmp_path}\n      - intruder\n")
    demo_runner.write_spec("clobber", spec.replace("numpy, rich, msgspec", "numpy"))
    demo_runner.run("lock", "clobber", "--channel", "channel")
    error = demo_runner.run("build", "clobber", expect=3).stderr
    assert "intruder 1.0 (pip) overwrites" in error
    assert "of pygments (conda)" in error


def test_an_edited_spec_makes_its_lock_stale(demo_runner: CliRunner) -> None:
    spec = (demo_runner.home / "specs/demo.yml").read_text()
    path = demo_runner.write_spec("stale", spec)
    shutil.copy(
        demo_runner.home / "specs/demo.conda-lock.yml",
        demo_runner.home / "specs/stale.conda-lock.yml",
    )
    demo_runner.run("lock", "stale", "--check")
    path.write_text(spec.replace("- msgspec\n", "- msgspec\n      - attrs\n"))
    for command in (["lock", "stale", "--check"], ["build", "stale"], ["release", "stale"]):
        assert "envferry lock stale" in demo_runner.run(*command, expect=5).stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_nothing_running(
    demo_runner: CliRunner, tmp_path: Path, number: signal.Signals
) -> None:
    other = replace(demo_runner, cache=tmp_path / "cache")
    shutil.copytree(demo_runner.cache / "downloads", other.cache / "downloads")
    argv, environ = other.command("build", "demo", "--offline")
    with subprocess.Popen(argv, cwd=other.home, env=environ, stderr=subprocess.PIPE) as child:
        time.sleep(3)
        child.send_signal(number)
        _, error = child.communicate()
    assert child.returncode == 130, error
    assert b"interrupted" in error
    assert not list(other.cache.glob("builds/*/built.json"))
    mounts = Path("/proc/self/mounts").read_text()
    assert str(other.cache) not in mounts
    other.run("build", "demo", "--offline")


def test_errors_before_anything_is_done(
    archive: Path, demo_runner: CliRunner, tmp_path: Path
) -> None:
    """Each in its own words, with its own exit code and a hint."""
    damaged = tmp_path / archive.name
    for path in archive.parent.glob(f"{archive.name.removesuffix('.tar.zst')}*"):
        shutil.copy(path, tmp_path)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 8
    damaged.write_bytes(data)
    demo_runner.write_spec("list", "- a\n- b\n")
    unknown = "name: unknown\nchannels: [x]\ndependencies: [no-such-package-anywhere]\n"
    demo_runner.write_spec("unknown", unknown)
    (tmp_path / "envs/demo").mkdir(parents=True)
    nowhere = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "a"}
    nowhere |= {"AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    offline = replace(demo_runner, environ=nowhere)
    cases = (
        (demo_runner, 2, ("install", "not/../a name.tar")),
        (demo_runner, 3, ("lock", "list")),
        (demo_runner, 3, ("lock", "unknown", "--channel", "channel")),
        (demo_runner, 7, ("lock", "nope")),
        (demo_runner, 7, ("build", "nope")),
        (demo_runner, 7, ("pack", "nope")),
        (demo_runner, 7, ("install", "/nowhere/demo.tar.zst")),
        (demo_runner, 7, ("install", "demo", "--registry", str(tmp_path / "no-registry"))),
        (demo_runner, 8, ("install", str(damaged), "--envs-dir", str(tmp_path / "envs2"))),
        (demo_runner, 8, ("push", str(damaged))),
        (offline, 9, ("ls", "--registry", "s3://bucket/x")),
        (demo_runner, 10, ("install", str(archive), "--envs-dir", str(tmp_path / "envs"))),
    )
    for runner, code, arguments in cases:
        assert "hint: " in runner.run(*arguments, expect=code).stderr, arguments
    assert list((tmp_path / "envs/demo").iterdir()) == []
    assert not (tmp_path / "envs2/demo").exists()


def test_no_engine_no_build(demo_runner: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    alone = replace(demo_runner, environ={"PATH": str(tmp_path / "bin")})
    error = alone.run("build", "demo", expect=6).stderr
    assert "bubblewrap is not installed" in error
    assert "docker is not installed" in error


def test_doctor_runs_anywhere(demo_runner: CliRunner) -> None:
    findings = json.loads(demo_runner.run("doctor", "--json").stdout)
    assert findings["sandbox bwrap"] == "works"
    assert sys.version.split()[0] in findings["envferry"]
