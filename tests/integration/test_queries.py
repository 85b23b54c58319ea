"""show, diff and why, as people run them, on artifacts and on a real environment."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.cli_runner import CliRunner
from tests.support.packing import pack

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def host(tmp_path: Path) -> CliRunner:
    """A machine with a registry of two versions, the second one signed."""
    environ = {
        "ENVFERRY_REGISTRY": str(tmp_path / "registry"),
        "ENVFERRY_ENVS_DIR": str(tmp_path / "envs"),
        "ENVFERRY_TRUSTED_DIR": "/dev/null",
    }
    demo_runner = CliRunner(home=tmp_path, cache=tmp_path / "cache", environ=environ)
    demo_runner.run("keygen", "ours")
    first, second = (pack(tmp_path / "packed", version) for version in (1, 2))
    demo_runner.run("push", first.archive_path, "--tag", "old")
    demo_runner.run("push", second.archive_path, "--sign-key", "ours.key", "--tag", "new")
    return demo_runner


def answer(host: CliRunner, *words: str | Path) -> Any:
    return json.loads(host.run(*words, "--json").stdout)


def test_diff_says_what_an_update_reads_to_the_byte(host: CliRunner) -> None:
    found = answer(host, "diff", "demo@old", "demo@new")
    host.run("install", "demo@old")
    plan = answer(host, "install", "demo@new", "--dry-run")
    assert found["update"]["bytes"] == plan["fetch_bytes"]
    assert found["update"]["frames"] == plan["frames"]
    assert found["archive_after"] == plan["archive_bytes"]
    said = host.run("diff", "demo@old", "demo@new").stdout
    assert f"reads {plan['fetch_bytes']:,} of {plan['archive_bytes']:,} bytes" in said
    host.run("diff", "demo@old", "demo@nothing", expect=7)
    host.run("diff", "demo", "demo@new", expect=7)


def test_diff_of_files_and_of_locks(host: CliRunner) -> None:
    one, two = sorted((host.home / "packed").glob("*.tar.zst"))
    assert answer(host, "diff", one, two)["before"] == one.name.removesuffix(".tar.zst")
    assert answer(host, "diff", one, one)["packages"] == []
    assert "git" in host.run("diff", "demo@old", "demo@new", "--locks", expect=7).stderr


def test_show_says_who_built_it_and_when_it_came(host: CliRunner) -> None:
    new, old = answer(host, "show", "demo@new"), answer(host, "show", "demo@old")
    assert new["tags"] == ["latest", "new"]
    assert new["published"] >= old["published"] > "2020"
    assert old["provenance"] is None
    assert len(new["provenance"]["key_ids"]) == 1
    assert "@" in new["provenance"]["who"]
    said = host.run("show", "demo@new").stdout
    assert "built by" in said
    assert new["provenance"]["key_ids"][0] in said
    assert "not signed" in host.run("show", "demo@old").stdout


def test_names_and_licences_cannot_drive_a_terminal(host: CliRunner) -> None:
    """Whoever writes into the bucket writes names: no cursor moves, no window titles."""
    evil = "\x1b[2J\x1b]0;owned\x07\r\x9b1A"
    (path,) = (host.home / "registry").glob("v1/tags/*/*/old")
    id_ = json.loads(path.read_text())["id"]
    (manifest_path,) = (host.home / "registry").rglob(f"{id_}/manifest.json")
    manifest = json.loads(manifest_path.read_text())
    package = {"name": f"num{evil}py", "version": evil, "kind": "pypi", "license": f"MIT{evil}"}
    manifest |= {"packages": [package], "image": evil, "tools": {evil: "1"}}
    manifest_path.write_text(json.dumps(manifest))
    for words in (("show", "demo@old"), ("ls",), ("diff", "demo@old", "demo@new"), ("check",)):
        argv, environ = host.command(*words)
        run = subprocess.run(argv, env=environ, cwd=host.home, capture_output=True, check=False)
        said = (run.stdout + run.stderr).decode()
        assert not {"\x1b", "\x07", "\r", "\x9b"} & set(said), words
    manifest_path.write_text(json.dumps({"name": evil}))
    assert "\x1b" not in host.run("show", "demo@old", expect=8).stderr


@pytest.mark.container
def test_a_real_environment(demo_runner: CliRunner, archive: Path) -> None:
    """By the SBOM, and without one by the lock: the same answer."""
    said = demo_runner.run("why", archive, "mdurl").stdout
    assert "markdown-it-py" in said
    assert "rich" in said
    tree = answer(demo_runner, "why", archive, "mdurl")
    sbom = next(archive.parent.glob("*.sbom.cdx.json"))
    away = sbom.rename(archive.parent / "away")
    try:
        assert answer(demo_runner, "why", archive, "mdurl") == tree
    finally:
        away.rename(sbom)
    assert "mdurl" in demo_runner.run("why", archive, "mdurll", expect=7).stderr
    shown = demo_runner.run("show", archive).stdout
    assert "licences" in shown
    assert "BSD-3-Clause" in shown


def test_check_and_prune_on_the_command_line(host: CliRunner) -> None:
    """Nothing goes without --delete; what is broken ends with 8 and says what to do."""
    extra = pack(host.home / "packed", 3)
    host.run("push", extra.archive_path, "--sign-key", "ours.key", "--tag", "new")
    plan = answer(host, "prune", "--keep-tagged", "--hours", "0")
    gone = [one["id"] for one in plan["artifacts"] if one["goes"]]
    assert not plan["deleted"]
    assert len(gone) == 1
    assert plan["bytes"] > 50_000
    assert len(answer(host, "ls")) == 3
    assert "--delete" in host.run("prune", "--keep-tagged", "--hours", "0").stdout
    assert "published less than 24 h ago" in host.run("prune", "--keep-tagged").stdout
    assert "nothing to remove" in host.run("prune", "--keep-within", "8w").stdout
    host.run("prune", "--keep-within", "soon", expect=2)
    assert answer(host, "prune", "--keep-tagged", "--hours", "0", "--delete")["deleted"]
    assert len(answer(host, "ls")) == 2
    host.run("show", f"demo@{gone[0]}", expect=7)
    assert answer(host, "check", "--bytes")["findings"] == []
    next((host.home / "registry").rglob("conda-lock.yml")).unlink()
    failed = host.run("check", expect=8)
    assert "conda-lock.yml is missing" in failed.stdout
    assert "fix: `envferry push demo-" in failed.stdout
    assert "hint:" in failed.stderr
