"""Keys and signatures as operators use them: the command line, from keygen to install."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import pytest
import xxhash

from envferry.archive.reader import Archive, FileSource
from envferry.process import run
from tests.support.cli_runner import CliRunner
from tests.support.packing import pack

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "index-password-that-nobody-may-see"


@pytest.fixture
def host(tmp_path: Path) -> CliRunner:
    """A machine with a pair of keys and a registry; it trusts no keys yet."""
    environ = {
        "ENVFERRY_REGISTRY": str(tmp_path / "registry"),
        "ENVFERRY_ENVS_DIR": str(tmp_path / "envs"),
        "ENVFERRY_TRUSTED_DIR": "/dev/null",
    }
    demo_runner = CliRunner(home=tmp_path, cache=tmp_path / "cache", environ=environ)
    demo_runner.run("keygen", "ours")
    return demo_runner


def trust(host: CliRunner) -> None:
    host.environ["ENVFERRY_TRUSTED_DIR"] = str(host.home / "trusted.d")
    (host.home / "trusted.d").mkdir(exist_ok=True)
    (host.home / "trusted.d/ours.pub").write_bytes((host.home / "ours.pub").read_bytes())


def installed(host: CliRunner) -> str:
    return run([host.home / "envs/demo/bin/tool"]).stdout


def test_from_keygen_to_install(host: CliRunner) -> None:
    artifact = pack(host.home / "packed", 1)
    assert (host.home / "ours.key").stat().st_mode & 0o777 == 0o600
    host.run("keygen", "ours", expect=10)
    pushed = host.run("push", artifact.archive_path, "--tag", "stable")
    without_keys = host.run("install", "demo@stable", "--name", "unchecked")
    assert (
        without_keys.stderr.count(f"no trusted keys in {host.environ.get('ENVFERRY_TRUSTED_DIR')}")
        == 1
    )
    trust(host)
    refused = host.run("install", "demo@stable", expect=8)
    assert "not signed by a trusted key" in refused.stderr
    assert not (host.home / "envs/demo").exists()
    pushed = host.run("push", artifact.archive_path, "--tag", "stable", "--sign-key", "ours.key")
    assert artifact.manifest.id in pushed.stdout
    accepted = host.run("install", "demo@stable", "-v")
    assert "is signed by" in accepted.stderr
    assert "no trusted keys" not in accepted.stderr
    assert installed(host) == "version 1\n"
    said = host.run("verify", "demo@stable").stdout
    assert "trusted.d/ours.pub" in said
    assert "built by" in said
    assert "2 materials, by digest" in host.run("show", "demo@stable").stdout
    host.run("fetch", "demo@stable", "-o", "usb")
    file = f"usb/{artifact.archive_path.name}"
    assert "is signed by" in host.run("verify", file).stdout
    host.run("install", file, "--name", "from_usb")


def test_a_usb_disk_that_somebody_changed(host: CliRunner) -> None:
    trust(host)
    artifact = pack(host.home / "packed", 1)
    refused = host.run("install", artifact.archive_path, expect=8)
    assert "not signed at all" in refused.stderr
    host.run("push", artifact.archive_path, "--sign-key", "ours.key")
    host.run("fetch", "demo", "-o", "usb")
    evil = pack(host.home / "evil", 2)
    host.run("keygen", "theirs")
    host.run("push", evil.archive_path, "--sign-key", "theirs.key", "--registry", "elsewhere")
    host.run("fetch", "demo", "-o", "usb", "--registry", "elsewhere", "--trusted-key", "theirs.pub")
    for path in (host.home / "usb").glob("*.tar.zst"):
        code = 0 if artifact.manifest.id in path.name else 8
        host.run("install", path, expect=code)
    assert installed(host) == "version 1\n"


def test_a_frame_that_fools_xxh3(host: CliRunner) -> None:
    """XXH3 is no defence: an index with a matching XXH3 and other bytes must not pass."""
    trust(host)
    artifact = pack(host.home / "packed", 1)
    host.run("push", artifact.archive_path, "--sign-key", "ours.key")
    (path,) = (host.home / "registry").rglob("*.tar.zst")
    with FileSource(path) as source:
        entry = Archive(source).index.frames[0]
    data = bytearray(path.read_bytes())
    data[entry.size // 2] ^= 1
    path.write_bytes(data)
    frame = bytes(data[: entry.size])
    assert xxhash.xxh3_128_hexdigest(frame) != entry.xxh128
    with FileSource(path) as source:
        archive = Archive(source)
        forged = msgspec.structs.replace(entry, xxh128=xxhash.xxh3_128_hexdigest(frame))
        archive.index = msgspec.structs.replace(
            archive.index, frames=(forged, *archive.index.frames[1:])
        )
        with pytest.raises(Exception, match="frame 0"):
            [*archive.read_run([0])]
    host.run("install", "demo", expect=8)


def test_tags_do_not_move_back_on_a_host(host: CliRunner) -> None:
    trust(host)
    old, new = pack(host.home / "packed", 1), pack(host.home / "packed", 2)
    host.run("push", old.archive_path, "--tag", "stable", "--sign-key", "ours.key")
    (tag,) = (host.home / "registry").rglob("stable")
    record = tag.read_bytes()
    host.run("push", new.archive_path, "--tag", "stable", "--sign-key", "ours.key")
    host.run("install", "demo@stable")
    tag.write_bytes(record)
    refused = host.run("install", "demo@stable", expect=8)
    assert "--allow-downgrade" in refused.stderr
    assert installed(host) == "version 2\n"
    host.run("install", "demo@stable", "--allow-downgrade")
    assert installed(host) == "version 1\n"


def test_a_tag_is_moved_with_a_key(host: CliRunner) -> None:
    trust(host)
    artifact = pack(host.home / "packed", 1)
    host.run("push", artifact.archive_path, "--sign-key", "ours.key")
    ref = f"demo@{artifact.manifest.id}"
    host.run("tag", ref, "stable")
    host.run("install", "demo@stable", expect=8)
    host.run("tag", ref, "stable", "--sign-key", "ours.key")
    host.run("install", "demo@stable")
    host.run("tag", ref, "latest", expect=2)


def test_ci_signs_with_a_key_from_its_environment(host: CliRunner) -> None:
    trust(host)
    artifact = pack(host.home / "packed", 1)
    pem = (host.home / "ours.key").read_text()
    environ = {**host.environ, "ENVFERRY_SIGN_KEY": pem}
    ci = CliRunner(home=host.home, cache=host.cache, environ=environ)
    pushed = ci.run("push", artifact.archive_path, "-vv")
    line = pem.splitlines()[1]
    assert line not in pushed.stdout + pushed.stderr
    for path in (host.home / "registry").rglob("*.json"):
        assert line not in path.read_text()
    host.run("install", "demo")
    broken = CliRunner(
        home=host.home, cache=host.cache, environ={**environ, "ENVFERRY_SIGN_KEY": pem[:-40]}
    )
    assert line not in broken.run("push", artifact.archive_path, expect=2).stderr


def test_children_do_not_get_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from envferry.config import child_environ

    monkeypatch.setenv("ENVFERRY_SIGN_KEY", SECRET)
    said = run([sys.executable, "-c", "import os; os.write(1, repr(os.environ).encode())"],
               env=child_environ()).stdout  # fmt: skip
    assert SECRET not in said


@pytest.mark.s3
@pytest.mark.parametrize("verbosity", ["-v", "-vv"])
def test_s3_secrets_are_not_repeated(
    host: CliRunner, s3_url: str, monkeypatch: pytest.MonkeyPatch, verbosity: str
) -> None:
    """Neither in what works nor in what fails, however loud."""
    artifact = pack(host.home / "packed", 1)
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRET)
    outputs = [host.run("push", artifact.archive_path, "--registry", s3_url, verbosity, expect=9)]
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    outputs.append(host.run("push", artifact.archive_path, "--registry", s3_url, verbosity))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    outputs.append(host.run("ls", "--registry", s3_url, verbosity, expect=9))
    for finished in outputs:
        said = finished.stdout + finished.stderr
        assert secret not in said
        assert SECRET not in said


def test_verify_takes_what_it_is_given(host: CliRunner) -> None:
    """A name is an installation, a tag or a file an artifact; an id whichever is there."""
    trust(host)
    artifact = pack(host.home / "packed", 1)
    host.run("push", artifact.archive_path, "--sign-key", "ours.key", "--tag", "stable")
    by_id = f"demo@{artifact.manifest.id}"
    assert "is signed by" in host.run("verify", by_id).stdout
    host.run("install", "demo@stable")
    assert "unchanged since the install" in host.run("verify", "demo").stdout
    assert "unchanged since the install" in host.run("verify", by_id).stdout
    assert "is signed by" in host.run("verify", by_id, "--published").stdout
    assert "is signed by" in host.run("verify", "demo", "--published").stdout
    said = host.run("verify", "demo@nightly", expect=7).stderr
    assert "stable" in said
    (host.home / "trusted.d/ours.pub").unlink()
    (host.home / "trusted.d").rmdir()
    missing = host.run("verify", "demo@stable", expect=2).stderr
    assert "ENVFERRY_TRUSTED_DIR names" in missing
    assert "does not exist" in missing
    host.environ["ENVFERRY_TRUSTED_DIR"] = "/dev/null"
    assert "no trusted keys" in host.run("verify", "demo@stable", expect=2).stderr


@pytest.mark.parametrize("how", ["variable", "file", "option"])
def test_required_signatures_let_nothing_unsigned_in(host: CliRunner, how: str) -> None:
    """At fetch, install (from a registry or a file), mirror, apply, verify: also without keys."""
    artifact = pack(host.home / "packed", 1)
    host.run("push", artifact.archive_path, "--tag", "stable")
    host.run("export", "demo@stable", "disk")
    option = ("--require-signature",) if how == "option" else ()
    variables = {"ENVFERRY_REQUIRE_SIGNATURES": "1"} if how == "variable" else {}
    strict = replace(host, environ={**host.environ, **variables})
    if how == "file":
        strict.environ["ENVFERRY_TRUSTED_DIR"] = str(host.home / "trusted.d")
        (host.home / "require-signatures").touch()
    commands = (
        ("fetch", "demo@stable", "-o", "fetched"),
        ("install", "demo@stable"),
        ("install", artifact.archive_path),
        ("install", "demo@stable", "--dry-run"),
        ("mirror", "registry", "mirrored"),
        ("apply", "disk", "--registry", "applied"),
    )
    for command in commands:
        said = strict.run(*command, *option, expect=2).stderr
        assert "trusts no key" in said
        assert "--trusted-key" in said
        strict.run(*command, *option, "--trusted-key", "ours.pub", expect=8)
    for place in ("fetched", "envs/demo", "mirrored/v1", "applied/v1/envs"):
        assert not list((host.home / place).glob("*")), place
    host.run("push", artifact.archive_path, "--tag", "stable", "--sign-key", "ours.key")
    strict.run("install", "demo@stable", *option, "--trusted-key", "ours.pub")
    assert installed(host) == "version 1\n"


def test_a_directory_without_keys_stops_an_install(host: CliRunner) -> None:
    """As when the last key was taken away because it was stolen."""
    artifact = pack(host.home / "packed", 1)
    host.run("push", artifact.archive_path, "--tag", "stable", "--sign-key", "ours.key")
    trust(host)
    (host.home / "trusted.d/ours.pub").rename(host.home / "trusted.d/ours.PUB")
    for command in (
        ("install", "demo@stable"),
        ("fetch", "demo@stable"),
        ("mirror", "registry", "x"),
    ):
        assert "found ours.PUB" in host.run(*command, expect=2).stderr
    assert not (host.home / "envs/demo").exists()
