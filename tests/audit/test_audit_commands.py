"""The commands that audit, on a registry and a host."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from envferry.artifacts import SBOM
from envferry.models import PackageFacts
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.push import push_artifact
from envferry.trust.signed_clock import SignedClock
from tests.support.advisories import NOW, encoded, write_records
from tests.support.artifacts import installable_artifact
from tests.support.cli_runner import CliRunner
from tests.support.keys import OURS
from tests.support.published import NUMPY, Made, attach, publish

if TYPE_CHECKING:
    from pathlib import Path

CLEAN = PackageFacts(name="rich", version="13", kind="pypi")
UNSIGNED = "is not signed, and a host that trusts keys refuses it"


@pytest.fixture
def cli(tmp_path: Path) -> CliRunner:
    """A home with a registry of two artifacts, and a database."""
    (tmp_path / "artifacts").mkdir()
    registry = Registry.open(str(tmp_path / "artifacts"))
    runner = CliRunner(
        home=tmp_path,
        cache=tmp_path / "cache",
        environ={"ENVFERRY_TRUSTED_DIR": "/dev/null"},
    )
    publish(registry, tmp_path / "packed", Made(), "stable")
    publish(registry, tmp_path / "packed", Made(name="pure", seed=2, packages=(CLEAN,)), "latest")
    runner.run("audit", "update", write_records(tmp_path / "osv"))
    return runner


def test_an_audit_names_what_it_found_and_fails(cli: CliRunner) -> None:
    done = cli.run("audit", "demo@stable", expect=12)
    assert "CVE-2026-0001  high  numpy 1.26.4 (pypi); fixed in 1.26.5" in done.stdout
    assert "CVE-2023-0286  high  openssl 1.1.1w (conda)" in done.stdout
    assert "2 with known vulnerabilities, 1 clean, 0 unknown" in done.stdout
    assert "as of 2026-11-20" in done.stderr
    assert "the policy does not allow numpy 1.26.4, openssl 1.1.1w" in done.stderr
    assert "clean  rich 13 (pypi)" in cli.run("audit", "pure", "--all").stdout


def test_all_that_is_tagged_as_json(cli: CliRunner) -> None:
    done = cli.run("audit", "--tagged", "--json", "--policy", "critical")
    found = json.loads(done.stdout)
    assert found["database"]["advisories"] == 4
    demo, pure = found["audits"]
    assert demo["tags"] == ["latest", "stable"] or demo["tags"] == ["stable"]
    assert {one["name"]: one["state"] for one in demo["packages"]} == {
        "numpy": "found",
        "openssl": "found",
        "torch": "clean",
    }
    assert pure["packages"][0]["state"] == "clean"


def test_what_an_sbom_lists_inside_packages(cli: CliRunner, tmp_path: Path) -> None:
    registry = Registry.open(str(tmp_path / "artifacts"))
    made = publish(registry, tmp_path / "packed", Made(name="wheel", seed=3, packages=(CLEAN,)))
    inner = {"name": "numpy", "version": "1.26.4", "purl": "pkg:pypi/numpy@1.26.4"}
    outer = {"name": "rich", "version": "13", "purl": "pkg:pypi/rich@13", "components": [inner]}
    attach(registry, made, SBOM, encoded({"bomFormat": "CycloneDX", "components": [outer]}))
    done = cli.run("audit", f"wheel@{made.id}", expect=12)
    assert "numpy 1.26.4 (vendored in rich)" in done.stdout


def test_a_database_that_is_too_old(cli: CliRunner) -> None:
    done = cli.run("audit", "pure", "--max-age", "0", expect=12)
    assert cli.run("audit", "pure", "--max-age", "3000")
    SignedClock(cli.home / "envs", NOW).see("2040-01-01T00:00:00Z", "a tag")
    environ = {"ENVFERRY_ENVS_DIR": str(cli.home / "envs")}
    late = replace(cli, environ={**cli.environ, **environ})
    late.run("audit", "pure", "--max-age", "3000", expect=12)
    assert "and at most 0 days are allowed" in done.stderr
    assert "as of 2026-11-20T10:29:41Z" in cli.run("audit", "database").stdout


def test_a_host_with_a_key_refuses_an_unsigned_database(cli: CliRunner, tmp_path: Path) -> None:
    from envferry.trust.signing import generate_key

    private, public = generate_key()
    (tmp_path / "k.pub").write_bytes(public)
    (tmp_path / "k.key").write_bytes(private)
    key = ("--trusted-key", tmp_path / "k.pub")
    assert "not signed" in cli.run("audit", "pure", *key, expect=8).stderr
    # What will be refused is said where the database is made and sent, for there it can be signed.
    assert UNSIGNED in cli.run("audit", "update", tmp_path / "osv").stderr
    signing = ("audit", "update", tmp_path / "osv", "--sign-key", tmp_path / "k.key")
    assert UNSIGNED not in cli.run(*signing).stderr
    # The artifact is unsigned, which is said only after the database was accepted.
    assert "pure" in cli.run("audit", "pure", *key, expect=8).stderr
    assert OURS.public.id not in cli.run("audit", "database").stdout


def test_a_database_crosses_the_gap(cli: CliRunner, tmp_path: Path) -> None:
    registry = Registry.open(str(tmp_path / "artifacts"))
    artifact = installable_artifact(tmp_path / "whole", {"lib/one": b"1"})
    push_artifact(artifact, registry=registry, tags=("whole",), progress=Silent())
    done = cli.run("export", "demo@whole", tmp_path / "usb", "--advisories")
    carried = tmp_path / "usb/audit/advisories.json.zst"
    assert f"envferry audit update {carried}" in done.stderr
    assert UNSIGNED in done.stderr
    host = CliRunner(home=tmp_path, cache=tmp_path / "other", environ=cli.environ)
    assert "audit update" in host.run("audit", "pure", expect=7).stderr
    host.run("audit", "update", carried)
    host.run("audit", "demo@whole", "--registry", tmp_path / "usb")
    # A second export into the same folder is as welcome.
    cli.run("export", "demo@whole", tmp_path / "usb", "--advisories")
    assert cli.run("check", "--registry", tmp_path / "usb").returncode == 0


def test_find_what_a_vulnerability_affects(cli: CliRunner) -> None:
    for name in ("CVE-2026-0001", "ghsa-aaaa-bbbb-cccc", "PYSEC-2026-1"):
        done = cli.run("find", "--cve", name, "--json")
        assert [(one["name"], one["package"]) for one in json.loads(done.stdout)] == [
            ("demo", NUMPY.name)
        ]
    assert "openssl" in cli.run("find", "--cve", "CVE-2023-0286", "demo").stdout
    assert (
        "holds a package that" in cli.run("find", "--cve", "CVE-2023-0286", "pure", expect=7).stderr
    )
    assert "has no CVE-1999-1" in cli.run("find", "--cve", "CVE-1999-1", expect=7).stderr
    assert "cannot be combined" in cli.run("find", "--cve", "CVE-1", "a", "b", expect=2).stderr
    assert "nothing to find" in cli.run("find", expect=2).stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "nothing to audit"),
        (("--tagged", "demo"), "--tagged cannot be combined"),
    ],
)
def test_wrong_questions(cli: CliRunner, arguments: tuple[str, ...], words: str) -> None:
    assert words in cli.run("audit", "refs", *arguments, expect=2).stderr


def test_nothing_is_installed(cli: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()
    done = cli.run("audit", "--installed", "--envs-dir", tmp_path / "envs", expect=7)
    assert "nothing is installed" in done.stderr
