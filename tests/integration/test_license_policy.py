"""Licences that may not be shipped: named by lint, refused by release, whoever builds."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.support.advisories import write_records
from tests.support.tiny_specs import make_tiny_channel, tiny_specs

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.cli_runner import CliRunner


@pytest.fixture
def runner(tmp_path: Path) -> CliRunner:
    channel = make_tiny_channel(tmp_path / "channel", ["one"])
    return tiny_specs(tmp_path, ["one"], str(channel))


def with_policy(runner: CliRunner, path: Path) -> CliRunner:
    """Return a runner whose site has a policy."""
    return replace(runner, environ={**runner.environ, "ENVFERRY_LICENSE_POLICY": str(path)})


def policy(home: Path, text: str) -> Path:
    path = home / "licenses.toml"
    path.write_text(f"[licenses]\n{text}\n")
    return path


def test_a_release_without_advisories_goes_by_licences(runner: CliRunner, tmp_path: Path) -> None:
    site = with_policy(runner, policy(tmp_path, 'unknown = "deny"'))
    said = site.run("release", "one", expect=12)
    assert "the policy does not allow libone 1.0 (no licence" in said.stderr
    assert not (tmp_path / "registry").exists() or not list(tmp_path.glob("registry/v1/tags/*"))
    policy(tmp_path, 'deny = ["AGPL-3.0-only"]')
    site.run("release", "one")
    # What is there already gets no other tag.
    policy(tmp_path, 'unknown = "deny"')
    site.run("release", "one", "--tag", "stable", expect=12)
    assert not list(tmp_path.glob("registry/v1/tags/one/*/stable"))


@pytest.mark.parametrize("words", [("--workers", "1"), ("--workers", "1", "--atomic")])
def test_what_workers_built_is_held_against_the_policies(
    runner: CliRunner, tmp_path: Path, words: tuple[str, ...]
) -> None:
    strict = policy(tmp_path, 'unknown = "deny"')
    audit = tmp_path / "audit.toml"
    audit.write_text('[licenses]\nunknown = "deny"\n')
    runner.run("audit", "update", write_records(tmp_path / "osv"))
    said = runner.run("release", "one", *words, "--audit", audit, "--json", expect=12)
    assert "does not allow" in said.stderr + said.stdout
    with_policy(runner, strict).run("release", "one", *words, expect=12)
    assert not list(tmp_path.glob("registry/v1/tags/one/*/*"))
    runner.run("release", "one", *words)


def test_lint_and_lock_name_licences(runner: CliRunner, tmp_path: Path) -> None:
    strict = policy(tmp_path, 'unknown = "deny"')
    (found,) = json.loads(runner.run("lint", "one", "--license-policy", strict, "--json").stdout)
    assert (found["code"], found["line"] > 0) == ("S115", True)
    assert "no licence, which is not an SPDX expression" in found["what"]
    runner.run("lint", "one", "--license-policy", strict, "--strict", expect=3)
    assert json.loads(runner.run("lint", "one", "--json").stdout) == []
    assert "S115" in with_policy(runner, strict).run("lock", "one").stderr
    (tmp_path / "nothing.toml").write_text("")
    nothing = tmp_path / "nothing.toml"
    said = runner.run("lint", "one", "--license-policy", nothing, expect=3)
    assert "has no rules for licences" in said.stderr
    said = runner.run("lint", "one", "--license-policy", tmp_path / "none.toml", expect=7)
    assert "does not exist" in said.stderr
