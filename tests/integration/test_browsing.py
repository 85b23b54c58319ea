"""ls, find and serve as people call them, on a directory and on S3."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import urllib.request
from typing import TYPE_CHECKING

import pytest
from starlette.testclient import TestClient

from envferry.index import MatchSpec, RegistryIndex, queries, registry_index
from envferry.registry import Registry
from envferry.registry.inventory import Folder
from envferry.registry.removal import remove_artifact
from envferry.web.app import make_app
from envferry.web.site import RegistryView
from tests.support.artifacts import PLATFORM
from tests.support.cli_runner import CliRunner
from tests.support.packing import pack
from tests.support.published import NUMPY, Made, publish

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def runner(tmp_path: Path) -> CliRunner:
    """A folder with a registry of two environments."""
    environ = {"ENVFERRY_REGISTRY": str(tmp_path / "registry")}
    runner = CliRunner(home=tmp_path, cache=tmp_path / "cache", environ=environ)
    registry = Registry.open(str(tmp_path / "registry"))
    publish(registry, tmp_path / "packed", Made(version="1.0"), "stable")
    publish(registry, tmp_path / "packed", Made(seed=2, version="2.0", packages=(NUMPY,)))
    publish(registry, tmp_path / "packed", Made(name="other", seed=3))
    return runner


def test_ls(runner: CliRunner) -> None:
    lines = runner.run("ls").stdout.splitlines()
    assert lines[0].split() == [
        *("NAME", "ID", "PLATFORM", "VERSION", "TAGS", "PACKAGES", "SIZE", "PUBLISHED", "SIGNED")
    ]
    assert [line.split()[0] for line in lines[1:]] == ["demo", "demo", "other"]
    (entry,) = json.loads(runner.run("ls", "--tag", "stable", "--json").stdout)
    assert (entry["version"], entry["tags"], entry["attested"]) == ("1.0", ["stable"], False)
    assert len(runner.run("ls", "demo").stdout.splitlines()) == 3
    nothing = runner.run("ls", "dmeo", expect=7)
    assert (
        nothing.stdout,
        "holds no environment dmeo\nhint: did you mean demo?" in nothing.stderr,
    ) == (
        "",
        True,
    )
    assert (
        json.loads(runner.run("ls", "none", "--json", expect=7).stdout)["error"]["exit_code"] == 7
    )
    assert runner.run("ls", "demo", "--tag", "none", "--json").stdout == "[]\n"
    assert "no environment none" in runner.run("find", "torch", "none", expect=7).stderr
    assert "list all with" in runner.run("ls", "--platform", "osx-64").stdout
    (runner.home / "empty").mkdir()
    assert "envferry push" in runner.run("ls", "--registry", "empty").stdout
    assert "envferry push" in runner.run("ls", "demo", "--registry", "empty", expect=7).stderr
    assert "cannot be listed" in runner.run("ls", "--registry", "https://x/y", expect=9).stderr


def test_ls_shows_what_is_damaged(runner: CliRunner) -> None:
    path = next((runner.home / "registry").rglob("other/**/manifest.json"))
    path.write_bytes(b"{")
    finished = runner.run("ls")
    assert "damaged" in finished.stdout
    assert "1 artifact damaged: run `envferry check`" in finished.stderr
    finished = runner.run("find", "no-such-package", expect=7)
    assert "1 artifact damaged and not searched" in finished.stderr
    assert len(json.loads(runner.run("ls", "--json").stdout)) == 3


def test_find(runner: CliRunner) -> None:
    found = json.loads(runner.run("find", "numpy<2", "--json").stdout)
    assert [one["name"] for one in found] == ["demo", "demo", "other"]
    assert "demo@" in runner.run("find", "torch>=2.8", "demo", "--tagged").stdout
    nothing = runner.run("find", "numpy>=2", expect=7)
    assert "available versions: 1.26.4" in nothing.stderr
    assert "hint: " in nothing.stderr
    assert "'*nump*'" in runner.run("find", "nump", expect=7).stderr
    argv, environ = runner.command("find", "nump", "--json")
    quiet = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
    assert (quiet.returncode, json.loads(quiet.stdout)) == (7, [])
    assert "is not a valid version condition" in runner.run("find", "numpy>>1", expect=2).stderr


def test_serve(runner: CliRunner) -> None:
    argv, environ = runner.command("serve", "--port", "0", "--json")
    with subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        document = child.stdout.readline()
        while not document.endswith("}\n"):
            document += child.stdout.readline()
        url = json.loads(document)["url"]
        with urllib.request.urlopen(f"{url}envs/demo.json") as answer:
            assert len(json.load(answer)["entries"]) == 2
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 0


def test_the_pages_say_what_an_update_reads(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The same bytes as `diff` says, of real archives."""
    environ = {"ENVFERRY_REGISTRY": str(tmp_path / "registry")}
    runner = CliRunner(home=tmp_path, cache=tmp_path / "cache", environ=environ)
    for version, tag in ((1, "old"), (2, "new")):
        runner.run("push", pack(tmp_path / "packed", version).archive_path, "--tag", tag)
    said = json.loads(runner.run("diff", "demo@old", "demo@new", "--json").stdout)
    index = RegistryIndex.open(Registry.open(str(tmp_path / "registry")), tmp_path / "cache")
    index.refresh()
    request.addfinalizer(index.close)
    place = f"demo/{said['after'].removeprefix('demo-').rpartition('-')[0]}"
    with TestClient(make_app(RegistryView(index))) as client:
        found = client.get(f"/diff.json?old={place}/old&new={place}/new").json()
        assert found["update"] == said["update"]
        assert found["changes"] == said["packages"]
        page = client.get(f"/diff/?old={place}/old&new={place}/new").text
    assert "A host that has the first one reads" in page


def test_serve_at_a_taken_port(runner: CliRunner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "--port 0" in runner.run("serve", "--port", port, expect=10).stderr
    assert (
        "is not an address of this machine"
        in runner.run("serve", "--host", "no.such.host.invalid", expect=2).stderr
    )


@pytest.mark.s3
def test_an_index_of_a_bucket(
    s3_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Folders and ETags of S3: what is new is seen, what is gone disappears, tags move."""
    monkeypatch.setattr(registry_index, "SMALL", 0)
    registry = Registry.open(s3_url)
    index = RegistryIndex.open(registry, tmp_path / "cache")
    request.addfinalizer(index.close)
    index.refresh()
    assert index.ask(queries.entries()) == ()
    first = publish(registry, tmp_path / "packed", Made(version="1.0"), "stable").id
    index.refresh()
    second = publish(registry, tmp_path / "packed", Made(seed=2, packages=(NUMPY,)), "stable").id
    index.refresh()
    assert {one.id: one.tags for one in index.ask(queries.entries())} == {
        first: (),
        second: ("stable",),
    }
    (match,) = index.ask(queries.find(MatchSpec.parse("torch")))
    assert match.id == first
    remove_artifact(registry, Folder("demo", PLATFORM, first), 0)
    index.refresh()
    assert [one.id for one in index.ask(queries.entries())] == [second]
