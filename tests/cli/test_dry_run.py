"""`--dry-run` says what a command would do, and not a byte or a time on the disk is another."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from docs.generate import commands
from envferry.cli.main import envferry, run
from envferry.names import current_platform
from tests.support.packed import pack, random_bytes
from tests.support.tiny_channel import make_channel, python_packages

if TYPE_CHECKING:
    from envferry.models import Artifact

WRITES = {
    *(
        "apply",
        "build",
        "cache prune",
        "export",
        "fetch",
        "follow",
        "import",
        "install",
        "lock",
        "mirror",
    ),
    *("init", "pack", "prune", "push", "release", "remove", "rollback", "tag"),
    *("revoke", "trust add", "trust revoke-key", "trust sign", "trust threshold", "trust update"),
}
WRITE_AT_ONCE = {
    "audit update": "one file that is named; an older database replaces none",
    "cache verify": "removes damaged downloads only, which are downloaded again",
    "channel create": "overwrites nothing",
    "completion": "writes to stdout",
    "image": "one file that is named",
    "keygen": "overwrites nothing",
    "man": "pages that are written again by any version",
    "tool": "one file that is named",
    "verify": "writes with --repair only, and without it says what that would repair",
}
"""Commands without `--dry-run` that write all the same, and why."""
READ = {
    *("audit database", "audit refs", "cache ls", "changed", "check", "checks", "config", "diff"),
    *("doctor", "du", "find", "fleet", "history", "lint", "list", "ls", "run", "serve", "shell"),
    *("show", "stats", "status", "trust show", "why"),
}
GROUPS = {"envferry", "audit", "cache", "channel", "trust"}
PLATFORM = current_platform()


class Project:
    """A folder with two artifacts, the older one pushed and both installed."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self.capsys = home, capsys
        self.old, self.new = (
            pack(home / "dist", {"tool": random_bytes(seed, 100_000)}) for seed in (1, 2)
        )

    def say(self, *words: str | Path) -> str:
        """Run a command that must succeed, and return what it says."""
        assert run([str(word) for word in words]) == 0, self.capsys.readouterr().err
        return self.capsys.readouterr().out

    def ask(self, *words: str | Path) -> Any:
        """Run a command with `--dry-run --json`, for people too, and look for what it changed."""
        before = dict(self.files())
        assert self.say(*words, "--dry-run")
        answer = json.loads(self.say(*words, "--dry-run", "--json"))
        assert dict(self.files()) == before
        for one in answer if isinstance(answer, list) else [answer]:
            assert one["dry_run"] is True
        return answer

    def files(self) -> Any:
        """Yield all that is there, with its times; the index of packages is a cache."""
        # What channels have is fetched to say what would be locked: the cache may keep it.
        cache = (self.home / "cache", self.home / "cache/repodata")
        for path in sorted(self.home.rglob("*")):
            if path in cache or cache[1] in path.parents:
                continue
            facts = path.lstat()
            data = path.read_bytes() if path.is_file() else b""
            yield str(path), (facts.st_mode, facts.st_mtime_ns, data)

    def push(self, artifact: Artifact, *tags: str) -> None:
        """Push an artifact for real."""
        self.say("push", artifact.archive_path, *(f"--tag={tag}" for tag in tags))


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Project:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENVFERRY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ENVFERRY_ENVS_DIR", str(tmp_path / "envs"))
    monkeypatch.setenv("ENVFERRY_REGISTRY", str(tmp_path / "registry"))
    (tmp_path / "registry").mkdir()
    return Project(tmp_path, capsys)


def test_every_command_that_writes_knows_it() -> None:
    found = {
        context.command_path.removeprefix("envferry ")
        for context in commands(envferry, "envferry")
        if any("--dry-run" in one.opts for one in context.command.params)
    }
    assert found == WRITES
    known = {
        context.command_path.removeprefix("envferry ") for context in commands(envferry, "envferry")
    }
    assert known - GROUPS == WRITES | WRITE_AT_ONCE.keys() | READ, "a new command: does it write?"


def test_trust(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVFERRY_TRUSTED_DIR", str(tmp_path / "host/trusted.d"))
    for name in ("root", "next"):
        project.say("keygen", name)
    bundle, key = tmp_path / "trust.json", ("--sign-key", "root.key")
    add = ("trust", "add", "root.pub", "--role", "root", "--role", "release", *key)
    assert project.ask(*add) == {"file": "trust.json", "version": 1, "dry_run": True}
    assert not bundle.exists()
    project.say(*add)
    assert project.ask("trust", "add", "next.pub", "--role", "root", *key)["version"] == 2
    project.say("trust", "add", "next.pub", "--role", "root", *key)
    assert project.ask("trust", "threshold", "root", "2", *key)["version"] == 3
    assert project.ask("trust", "sign", "--sign-key", "next.key")["version"] == 2
    (one, other) = json.loads(project.say("trust", "show", bundle, "--json"))["keys"]
    assert {one["name"], other["name"]} == {"root", "next"}
    revoked = f"demo@{project.old.manifest.id}"
    assert project.ask("revoke", revoked, "--why", "stolen", *key)["version"] == 3
    assert project.ask("trust", "update", bundle, "--trusted-key", "root.pub")["version"] == 2
    assert not (tmp_path / "host").exists()
    assert run(["trust", "update", str(bundle), "--dry-run"]) == 8, "what it would refuse"


def test_push_and_tag(project: Project) -> None:
    (answer,) = project.ask("push", project.old.archive_path, "--tag", "stable")
    assert (answer["uploaded"], answer["tags"]) == (True, ["stable", "latest"])
    project.push(project.old)
    (answer,) = project.ask("push", project.old.archive_path)
    assert answer["uploaded"] is False
    old = project.old.manifest.id
    assert project.ask("tag", "demo", "stable")["id"] == old
    assert f"demo@stable would point to {old}, now nothing" in project.say(
        "tag", "demo", "stable", "--dry-run"
    )
    assert run(["tag", "demo", "a/b", "--dry-run"]) == 2


def test_fetch(project: Project, tmp_path: Path) -> None:
    project.push(project.old)
    disk = tmp_path / "disk"
    answer = project.ask("fetch", "demo", "-o", disk)
    assert not disk.exists()
    assert answer["present"] is False
    assert project.say("fetch", "demo", "-o", disk) == f"{answer['archive']}\n"
    assert project.ask("fetch", "demo", "-o", disk)["present"] is True
    assert run(["fetch", "demo@none", "--dry-run"]) == 7


def test_rollback_and_remove(project: Project) -> None:
    old, new = project.old.manifest.id, project.new.manifest.id
    assert project.ask("install", project.old.archive_path)["id"] == old
    assert run(["rollback", "demo", "--dry-run"]) == 7
    project.say("install", project.old.archive_path)
    project.say("install", project.new.archive_path)
    assert project.ask("rollback", "demo")["id"] == old
    assert project.ask("remove", "demo", "--keep", "1")["removed"] == [old]
    assert project.ask("remove", f"demo@{old}")["removed"] == [old]
    assert run(["remove", f"demo@{new}", "--dry-run"]) == 10, "what a removal would refuse"
    assert set(project.ask("remove", "demo", "--all")["removed"]) == {old, new}
    assert (
        project.say("remove", "demo", "--keep", "1")
        == f"removed demo@{old}\nkept    demo@{new}: current\n"
    )


def test_export_apply_and_mirror(project: Project, tmp_path: Path) -> None:
    project.push(project.old, "stable")
    disk, site = tmp_path / "disk", tmp_path / "site"
    answer = project.ask("export", "demo@stable", disk)
    assert not disk.exists()
    made = json.loads(project.say("export", "demo@stable", disk, "--json"))
    for name in ("artifacts", "carried_bytes", "archive_bytes", "since", "directory"):
        assert answer[name] == made[name]
    site.mkdir()
    answer = project.ask("apply", disk, "--registry", site)
    assert (answer["copied"], answer["present"]) == ([project.old.manifest.stem], 0)
    assert project.ask("mirror", "registry", site)["copied"] == [project.old.manifest.stem]
    said = project.say("apply", disk, "--registry", site)
    assert f"{site}: 1 artifact added, 0 already present" in said
    project.push(project.new)
    delta = project.ask("export", "demo", tmp_path / "more", "--since", "demo@stable")
    made = json.loads(
        project.say("export", "demo", tmp_path / "more", "--since", "demo@stable", "--json")
    )
    assert delta["carried_bytes"] == made["carried_bytes"] != made["archive_bytes"]
    answer = project.ask("apply", tmp_path / "more", "--registry", site)
    assert answer["rebuilt"] == [project.new.manifest.stem]


def test_import(project: Project, tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("numpy==1.26.4\n")
    answer = project.ask("import", "requirements.txt", "-n", "demo", "--python", "3.11")
    project.say("import", "requirements.txt", "-n", "demo", "--python", "3.11")
    spec = tmp_path / "specs/demo.yml"
    assert spec.read_text() == answer["text"]
    spec.write_text("another\n")
    assert run(["import", "requirements.txt", "-n", "demo", "--dry-run"]) == 10
    assert project.ask("import", "requirements.txt", "-n", "demo", "-y")["pip"] == 1


def test_lock_build_and_release(project: Project, tmp_path: Path) -> None:
    channel = make_channel(tmp_path / "channel", python_packages(PLATFORM))
    spec = tmp_path / "specs/demo.yml"
    spec.parent.mkdir()
    spec.write_text(f"channels: ['{channel}']\ndependencies: [python=3.10]\n")
    (answer,) = project.ask("lock", "-f", "specs/demo.yml", "--platform", PLATFORM)
    lock = spec.with_name("demo.conda-lock.yml")
    assert not lock.exists()
    (made,) = json.loads(project.say("lock", "demo", "--platform", PLATFORM, "--json"))
    assert {**answer, "dry_run": None} == {**made, "dry_run": None}
    answer = project.ask("build", "demo")
    assert answer["prefix"] == "/opt/conda/envs/demo"
    assert (answer["conda"], answer["pip"]) == (made["platforms"][PLATFORM], 0)
    assert len(answer["downloads"]) == answer["conda"]
    (answer,) = project.ask("release", "demo", "--tag", "stable")
    assert (answer["build"], answer["id"], answer["tags"]) == (True, None, ["stable", "latest"])
    assert run(["release", "demo", "other", "--dry-run"]) == 7
    assert run(["lock"]) == 2


def test_pack(project: Project, tmp_path: Path) -> None:
    assert run(["pack", "demo", "--dry-run"]) == 7
    (tmp_path / "found/conda-meta").mkdir(parents=True)
    answer = project.ask("pack", "./found", "-n", "demo", "-p", "/opt/conda/envs/demo")
    assert answer["archive"] == f"dist/demo-{PLATFORM}-ID.tar.zst"


def test_prunes(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "cache/downloads/sha256/ab" / ("ab" * 32)
    folder.mkdir(parents=True)
    (folder / "a-1.0-0.conda").write_bytes(b"a" * 1000)
    (tmp_path / "cache/builds/demo-x.partial").mkdir(parents=True)
    os.utime(folder / "a-1.0-0.conda", (0, 0))
    (tmp_path / "cache/downloads/.lock").touch()
    answer = project.ask("cache", "prune")
    assert answer["downloads"] == {"files": 1, "size": 1000}
    made = json.loads(project.say("cache", "prune", "--json"))
    assert {**made, "dry_run": True} == answer
    assert not folder.exists()
    project.push(project.old)
    assert run(["prune", "--delete", "--dry-run"]) == 2


@pytest.mark.parametrize(("typed", "code", "is_there"), [(b"n\n", 130, True), (b"y\n", 0, False)])
def test_who_removes_all_is_asked_at_a_terminal(
    project: Project, typed: bytes, code: int, is_there: bool
) -> None:
    project.say("install", project.old.archive_path)
    ours, theirs = pty.openpty()
    command = [str(Path(sys.executable).with_name("envferry")), "remove", "demo", "--all"]
    with subprocess.Popen(
        command, stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, close_fds=True
    ) as child:
        os.close(theirs)
        os.write(ours, typed)
        child.communicate(timeout=60)
    os.close(ours)
    assert child.returncode == code
    assert (project.home / "envs/demo").exists() is is_there


def test_nobody_is_asked_without_a_terminal_or_with_yes(project: Project) -> None:
    for words in ((), ("-y",)):
        project.say("install", project.old.archive_path)
        assert project.say("remove", "demo", "--all", *words)
        assert not (project.home / "envs/demo").exists()


def test_short_names_are_those_of_conda() -> None:
    wanted = {
        "-n": "--name",
        "-p": "--prefix",
        "-c": "--channel",
        "-f": "--file",
        "-y": "--yes",
        "-o": "--output",
        "-q": "--quiet",
        "-v": "--verbose",
        "-h": "--help",
    }
    for context in commands(envferry, "envferry"):
        for one in context.command.params:
            assert isinstance(one, click.Parameter)
            for short, long in wanted.items():
                assert (short in one.opts) == (long in one.opts), (context.command_path, one.opts)
