"""The commands of the trust bundle, from the first key to a host that refuses."""

from __future__ import annotations

import json
import os
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest

from envferry.base.times import rfc3339
from envferry.cli.main import run
from envferry.process import find_program
from envferry.trust.signed_clock import SignedClock
from tests.conftest import require
from tests.support.artifacts import PLATFORM, installable_artifact

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.models import Artifact


class Site:
    """A folder with keys, a registry and an artifact; commands run in it."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self.capsys = home, capsys
        for name in ("root", "root2", "ci"):
            self.say("keygen", name)
        self.artifact: Artifact = installable_artifact(home / "packed", {"lib/one": b"1"})

    def say(self, *words: object, expect: int = 0) -> str:
        """Run a command; return what it said."""
        assert run([str(word) for word in words]) == expect, self.capsys.readouterr().err
        said = self.capsys.readouterr()
        return said.out + said.err

    def key_id(self, name: str) -> str:
        from envferry.trust.signing import parse_public_key

        return parse_public_key((self.home / f"{name}.pub").read_bytes(), name).id

    def make_bundle(self) -> None:
        """Make a bundle: one root, and a key for CI."""
        self.say("trust", "add", "root.pub", "--role", "root", "--sign-key", "root.key")
        roles = ("--role", "release", "--role", "tag")
        self.say("trust", "add", "ci.pub", *roles, "--name", "CI", "--sign-key", "root.key")

    def trust_root(self) -> None:
        """Let the host trust the root key."""
        os.environ["ENVFERRY_TRUSTED_DIR"] = str(self.home / "etc/trusted.d")
        (self.home / "etc/trusted.d").mkdir(parents=True)
        (self.home / "etc/trusted.d/root.pub").write_bytes((self.home / "root.pub").read_bytes())


@pytest.fixture
def site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Site:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENVFERRY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ENVFERRY_ENVS_DIR", str(tmp_path / "envs"))
    monkeypatch.setenv("ENVFERRY_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("ENVFERRY_TRUSTED_DIR", "/dev/null")
    (tmp_path / "registry").mkdir()
    return Site(tmp_path, capsys)


def test_from_the_first_key_to_a_revoked_artifact(site: Site) -> None:
    site.make_bundle()
    site.say("push", site.artifact.archive_path, "--sign-key", "ci.key", "--tag", "stable")
    site.trust_root()
    fetched = ("fetch", "demo@stable", "-o", "out", "--platform", PLATFORM)
    assert "not signed by a trusted key" in site.say(*fetched, expect=8)
    site.say("trust", "update", "trust.json")
    site.say(*fetched)
    id_ = site.artifact.manifest.id
    said = ("revoke", "demo@stable", "--platform", PLATFORM, "--sign-key", "root.key")
    assert f"demo@{id_} ({PLATFORM}) is revoked" in site.say(*said, "--why", "wrong CUDA")
    site.say("fetch", f"demo@{id_}", "-o", "again", "--platform", PLATFORM)
    assert "version 3, before 2" in site.say("trust", "update", "trust.json")
    assert "was revoked" in site.say(
        "fetch", f"demo@{id_}", "-o", "no", "--platform", PLATFORM, expect=8
    )
    assert "wrong CUDA" in site.say("verify", f"demo@{id_}", "--platform", PLATFORM, expect=8)
    shown = json.loads(site.say("trust", "show", "--json"))
    assert [one["why"] for one in shown["revoked_artifacts"]] == ["wrong CUDA"]
    assert "CI: release, tag" in site.say("trust", "show")


def test_an_installed_artifact_that_is_revoked_is_not_as_it_should_be(site: Site) -> None:
    site.make_bundle()
    site.trust_root()
    site.say("trust", "update", "trust.json")
    site.say("push", site.artifact.archive_path, "--sign-key", "ci.key", "--tag", "stable")
    site.say("install", "demo@stable", "--no-check")
    site.say("status")
    arguments = ("--why", "stolen", "--sign-key", "root.key", "--platform", PLATFORM)
    site.say("revoke", "demo@stable", *arguments)
    site.say("trust", "update", "trust.json")
    assert "it was revoked: stolen" in site.say("status", expect=8)


def test_another_name_does_not_hide_that_an_artifact_is_revoked(site: Site) -> None:
    require("mksquashfs", find_program("mksquashfs"))
    site.make_bundle()
    site.trust_root()
    site.say("trust", "update", "trust.json")
    site.say("push", site.artifact.archive_path, "--sign-key", "ci.key", "--tag", "stable")
    site.say("install", "demo@stable", "--no-check", "--name", "other")
    signed = ("--sign-key", "ci.key")
    site.say("image", "demo@stable", "other.squashfs", "--name", "other", *signed)
    site.say("verify", "other.squashfs")
    arguments = ("--why", "stolen", "--sign-key", "root.key", "--platform", PLATFORM)
    site.say("revoke", "demo@stable", *arguments)
    site.say("trust", "update", "trust.json")
    assert "it was revoked: stolen" in site.say("status", expect=8)
    assert "stolen" in site.say("verify", "other.squashfs", expect=8)
    assert "stolen" in site.say("install", "other.squashfs", "--mount", expect=8)


def test_a_clock_that_was_put_back_does_not_bring_a_key_back_for_any_command(site: Site) -> None:
    site.say("trust", "add", "root.pub", "--role", "root", "--sign-key", "root.key")
    end = ("--expires", rfc3339(datetime.now(timezone.utc) + timedelta(days=1)))
    roles = ("--role", "release", "--role", "tag", "--role", "database")
    site.say("trust", "add", "ci.pub", *roles, *end, "--sign-key", "root.key")
    site.trust_root()
    site.say("trust", "update", "trust.json")
    site.say("push", site.artifact.archive_path, "--sign-key", "ci.key", "--tag", "stable")
    commands = (
        ("fetch", "demo@stable", "-o", "out", "--platform", PLATFORM),
        ("verify", "demo@stable", "--platform", PLATFORM),
        ("mirror", site.home / "registry", site.home / "mirror"),
        ("export", "demo@stable", "usb", "--platform", PLATFORM),
        ("install", "demo@stable", "--dry-run"),
    )
    for words in commands:
        site.say(*words)
    later = datetime.now(timezone.utc) + timedelta(days=2)
    SignedClock(site.home / "envs", datetime.now(timezone.utc)).see(rfc3339(later), "a tag")
    for words in commands:
        assert "not signed by a trusted key" in site.say(*words, expect=8), words


def test_a_root_key_that_ended_signs_no_bundle_when_the_clock_goes_back(site: Site) -> None:
    end = ("--expires", rfc3339(datetime.now(timezone.utc) + timedelta(days=1)))
    site.say("trust", "add", "root2.pub", "--role", "root", "--sign-key", "root2.key")
    site.say("trust", "add", "root.pub", "--role", "root", *end, "--sign-key", "root2.key")
    site.trust_root()
    site.say("trust", "update", "trust.json", "--trusted-key", "root2.pub")
    site.say("trust", "add", "ci.pub", "--role", "release", "--sign-key", "root.key")
    later = datetime.now(timezone.utc) + timedelta(days=2)
    SignedClock(site.home / "envs", datetime.now(timezone.utc)).see(rfc3339(later), "a tag")
    said = site.say("trust", "update", "trust.json", expect=8)
    assert "signed by 0 root keys that are valid now" in said


def test_a_bundle_is_carried(site: Site) -> None:
    site.make_bundle()
    site.trust_root()
    site.say("trust", "update", "trust.json")
    site.say("push", site.artifact.archive_path, "--sign-key", "ci.key", "--tag", "stable")
    said = site.say("export", "demo@stable", "usb", "--platform", PLATFORM)
    assert "envferry trust update usb" in said
    (site.home / "etc/trust.json").unlink()
    site.say("trust", "update", "usb")
    site.say("check", "--registry", "usb")


def test_rotation_of_the_root_key(site: Site) -> None:
    site.make_bundle()
    site.trust_root()
    site.say("trust", "update", "trust.json")
    site.say("trust", "add", "root2.pub", "--role", "root", "--sign-key", "root.key")
    both = ("--sign-key", "root.key", "--sign-key", "root2.key")
    site.say("trust", "revoke-key", site.key_id("root"), "--why", "rotated", *both)
    assert "version 4, before 2" in site.say("trust", "update", "trust.json")
    alone = ("trust", "threshold", "release", "1", "--sign-key")
    assert "none of the keys that sign" in site.say(*alone, "ci.key", expect=2)
    site.say(*alone, "root2.key")
    site.say("trust", "update", "trust.json")


def test_two_root_keys_sign_one_after_the_other(site: Site) -> None:
    site.make_bundle()
    site.say("trust", "add", "root2.pub", "--role", "root", "--sign-key", "root.key")
    site.say("trust", "threshold", "root", "2", "--sign-key", "root.key")
    site.trust_root()
    assert "asks for 2" in site.say("trust", "update", "trust.json", expect=8)
    assert "signed by 2 keys" in site.say("trust", "sign", "--sign-key", "root2.key")
    site.say("trust", "update", "trust.json")


def test_a_host_whose_keys_have_all_ended_trusts_nobody(site: Site) -> None:
    """Without a key a host accepts everything; ended keys are not the same as none."""
    root = ("trust", "add", "root.pub", "--role", "root", "--sign-key", "root.key")
    site.say(*root, "--expires", "2090-01-01T00:00:00Z")
    site.trust_root()
    site.say("trust", "update", "trust.json")
    site.say("push", site.artifact.archive_path)
    seen = site.home / "envs/.envferry/.tags/newest-time.json"
    seen.parent.mkdir(parents=True)
    seen.write_text('{"record": "a tag", "schema": 1, "time": "2091-01-01T00:00:00Z"}')
    assert "no key of trust bundle 1 is valid now" in site.say("install", "demo", expect=2)


def test_a_bundle_that_is_damaged_or_ends_is_not_no_bundle(site: Site) -> None:
    ends = ("--expires", "2001-01-01T00:00:00Z")
    site.make_bundle()
    site.trust_root()
    site.say("trust", "update", "trust.json")
    site.say("push", site.artifact.archive_path, "--tag", "stable")
    roles = ("--role", "release", "--role", "tag")
    site.say("trust", "add", "ci.pub", *roles, *ends, "--sign-key", "root.key")
    site.say("trust", "update", "trust.json")
    said = site.say("fetch", "demo@stable", "-o", "out", "--platform", PLATFORM, expect=8)
    assert "not signed" in said
    text = (site.home / "etc/trust.json").read_text()
    (site.home / "etc/trust.json").write_text(text[:-30])
    said = site.say("fetch", "demo@stable", "-o", "out", "--platform", PLATFORM, expect=8)
    assert "damaged" in said
    (site.home / "etc/trust.json").unlink()
    (site.home / "etc/trust.json").mkdir()
    assert "is not a file" in site.say("fetch", "demo@stable", "-o", "out", expect=2)


def test_tags_get_an_end(site: Site) -> None:
    site.say("push", site.artifact.archive_path, "--sign-key", "ci.key", "--tag-expires", "30")
    (path,) = site.home.glob("registry/v1/tags/demo/*/latest")
    first = json.loads(path.read_bytes())
    assert first["time"] < first["expires"]
    place = ("demo@latest", "latest", "--platform", PLATFORM, "--sign-key", "ci.key")
    site.say("tag", *place, "--tag-expires", "60")
    second = json.loads(path.read_bytes())
    assert second["expires"] > first["expires"]
    assert second["counter"] == first["counter"] + 1
    said = site.say("tag", *place[:-2], "--tag-expires", "9", expect=2)
    assert "only signed tags expire" in said


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("add", "ci.pub", "--role", "release", "--sign-key", "root.key"), 2, "would not work"),
        (("add", "ci.pub", "--role", "root"), 2, "no key is given"),
        (("add", "ci.key", "--role", "root", "--sign-key", "root.key"), 2, "public key in PEM"),
        (("add", "ci.pub", "--role", "boss", "--sign-key", "root.key"), 2, "boss"),
        (
            ("add", "ci.pub", "--role", "root", "--expires", "soon", "--sign-key", "root.key"),
            2,
            "soon",
        ),
        (("revoke-key", "0123", "--why", "x", "--sign-key", "root.key"), 7, "does not exist"),
        (("sign", "--sign-key", "root.key"), 7, "does not exist"),
        (("update", "nothing.json"), 7, "does not exist"),
        (("show",), 7, "every key in trusted.d may sign everything"),
    ],
)
def test_wrong_words(site: Site, words: tuple[str, ...], code: int, said: str) -> None:
    assert said in site.say("trust", *words, expect=code)
    assert not (site.home / "trust.json").exists()
