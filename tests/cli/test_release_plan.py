"""`release --plan`: what a release would fetch, build, pack and send, and a host would read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from envferry.base.durations import KEPT, Duration, Durations
from envferry.cli.main import run
from tests.support.packed import pack, random_bytes
from tests.support.tiny_channel import TinyPackage, make_channel

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.models import Artifact

BIG, SMALL = 300_000, 100_000
SLACK = 5_000
"""Headers, directories, index and seek table of an archive, in bytes, at most."""
SPEC = "name: demo\nchannels: [{channel}]\ndependencies: [big, small=2.0{more}]\n"


class Project:
    """A locked spec of two packages, of which the registry has an older version."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self.capsys = home, capsys
        packages = [("big", "1.0"), ("small", "2.0"), ("fresh", "1.0")]
        channel = [TinyPackage(name=name, version=version) for name, version in packages]
        make_channel(home / "channel", channel)
        (home / "specs").mkdir()
        self.write_spec("")

    def write_spec(self, more: str) -> None:
        """Write the spec with more packages, and lock it."""
        text = SPEC.format(channel=self.home / "channel", more=more)
        (self.home / "specs/demo.yml").write_text(text)
        assert run(["lock", "demo", "-q"]) == 0, self.capsys.readouterr().err
        self.capsys.readouterr()

    def push(self, **seeds: int) -> Artifact:
        """Publish a version whose packages are of these seeds."""
        sizes = {"big": BIG, "small": SMALL}
        content = {name: random_bytes(seed, sizes[name]) for name, seed in seeds.items()}
        artifact = pack(self.home / "dist", content)
        assert run(["push", str(artifact.archive_path), "-q"]) == 0
        self.capsys.readouterr()
        return artifact

    def plan(self, *words: str) -> dict[str, Any]:
        """Ask for a plan, as JSON, and return its stages by name; nothing is written."""
        before = sorted(self.home.rglob("*"))
        assert run(["release", "demo", "--plan", "--json", *words]) == 0
        assert sorted(self.home.rglob("*")) == before
        (found,) = json.loads(self.capsys.readouterr().out)
        assert found["dry_run"] is True
        return {stage["stage"]: stage for stage in found["stages"]}


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Project:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENVFERRY_CACHE", str(tmp_path / "cache"))
    return Project(tmp_path, capsys)


def test_a_first_release_is_unknown_but_for_its_downloads(project: Project) -> None:
    stages = project.plan()
    assert list(stages) == ["fetch", "build", "pack", "send"]
    files = (project.home / "channel").rglob("*.conda")
    size = sum(path.stat().st_size for path in files if path.name[:5] in ("big-1", "small"))
    assert (stages["fetch"]["bytes"], stages["fetch"]["is_exact"]) == (size, True)
    for name in ("build", "pack", "send"):
        assert stages[name]["bytes"] is None
        assert stages[name]["seconds"] is None


def test_a_second_release_sends_what_changed(project: Project) -> None:
    project.push(big=1, small=2)
    stages = project.plan()
    for name in ("pack", "send"):
        assert SMALL < stages[name]["bytes"] < SMALL + SLACK
        assert BIG + SMALL < stages[name]["of_bytes"] < BIG + SMALL + SLACK
    assert stages["pack"]["seconds"] is None, "nothing was ever packed here"
    assert stages["pack"]["what"].startswith("1 of 2 packages changed since ")
    assert stages["build"]["bytes"] > BIG + SMALL


def test_a_package_that_is_new_counts_as_its_download(project: Project) -> None:
    project.push(big=1, small=2)
    before = project.plan()["send"]["bytes"]
    project.write_spec(", fresh")
    (download,) = (project.home / "channel").rglob("fresh-1.0-0.conda")
    stages = project.plan()
    assert stages["send"]["bytes"] == before + download.stat().st_size
    assert stages["pack"]["what"].startswith("2 of 3 packages changed since ")


def test_what_a_host_will_read(project: Project) -> None:
    older = project.push(small=7)
    project.push(big=1, small=2)
    stages = project.plan("--have", f"demo@{older.manifest.id}")
    assert f"demo@{older.manifest.id}" in stages["read"]["what"]
    assert stages["read"]["bytes"] > SMALL
    assert stages["read"]["seconds"] is None, "a host's disk and network are its own"
    assert run(["release", "demo", "--plan", "--have", "demo@nowhere"]) == 7
    assert run(["release", "demo", "--have", "demo"]) == 2


def test_seconds_come_from_earlier_runs(project: Project) -> None:
    project.push(big=1, small=2)
    durations = Durations(project.home / "cache/durations.jsonl")
    for seconds in (1.0, 2.0, 30.0):
        durations.keep(Duration(stage="pack", name="demo", seconds=seconds, size=1_000_000))
        durations.keep(Duration(stage="build", name="demo", seconds=seconds * 2))
    stages = project.plan()
    assert stages["build"]["seconds"] == 4.0
    assert stages["pack"]["seconds"] == pytest.approx(2.0 * stages["build"]["bytes"] / 1e6)
    run(["release", "demo", "--plan"])
    shown = project.capsys.readouterr().out
    assert "~4.0 s" in shown
    assert "send" in shown
    assert shown.splitlines()[2].endswith("kB  unknown"), "nothing was ever fetched"


def test_a_push_notes_how_long_it_took(project: Project) -> None:
    project.push(big=1, small=2)
    (noted,) = Durations(project.home / "cache/durations.jsonl").read()
    assert (noted.stage, noted.name) == ("send", "demo")
    assert noted.size > BIG + SMALL
    assert project.plan()["send"]["seconds"] > 0


def test_durations_are_few_and_forgive(tmp_path: Path) -> None:
    durations = Durations(tmp_path / "cache/durations.jsonl")
    assert durations.estimate("pack", "demo", 5) is None
    for number in range(KEPT + 5):
        durations.keep(Duration(stage="pack", name="other", seconds=number, size=1000))
    assert len(durations.read()) == KEPT
    assert durations.estimate("pack", "demo", 10) == pytest.approx((KEPT + 3) / 100)
    assert durations.estimate("pack", "demo", 0) == 0.0
    assert durations.estimate("build", "demo") is None
    with durations.path.open("ab") as stream:
        stream.write(b'{"torn": \n\xff\xfe\n[]\n')
    assert len(durations.read()) == KEPT
    durations.path.unlink()
    durations.path.mkdir()
    durations.keep(Duration(stage="pack", name="demo", seconds=1))
    assert durations.read() == []
