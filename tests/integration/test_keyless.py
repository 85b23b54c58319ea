"""Signatures without keys as people use them: from a CI job to a host, in every kind of store."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import envferry
from envferry.artifacts import SIGSTORE
from envferry.stores.oci.documents import INDEX, MANIFEST
from tests.support.cli_runner import CliRunner
from tests.support.packing import pack
from tests.support.sigstore import GITHUB_ISSUER
from tests.support.sigstore_server import WORKFLOW, SigstoreServer, sigstore_server
from tests.support.tiny_specs import published, tiny_specs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.oci_registry import OciServer

WHO = ("--identity", WORKFLOW, "--issuer", GITHUB_ISSUER)
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"


@pytest.fixture(scope="module")
def server() -> Iterator[SigstoreServer]:
    with sigstore_server() as running:
        yield running


@pytest.fixture
def job(server: SigstoreServer, tmp_path: Path) -> CliRunner:
    """A job of a CI service: it has a token, and no key."""
    environ = {
        "ENVFERRY_REGISTRY": str(tmp_path / "registry"),
        "ENVFERRY_ENVS_DIR": str(tmp_path / "envs"),
        "ENVFERRY_TRUSTED_DIR": "/dev/null",
        "ENVFERRY_SIGSTORE_CONFIG": str(server.write_config(tmp_path / "config.json")),
        "SIGSTORE_ID_TOKEN": server.token(),
    }
    server.write_root(tmp_path / "root.json")
    return CliRunner(home=tmp_path, cache=tmp_path / "cache", environ=environ)


def trust_identity(host: CliRunner, server: SigstoreServer, identity: str = WORKFLOW) -> None:
    place = host.home / "etc/identities.d"
    place.mkdir(parents=True, exist_ok=True)
    host.environ["ENVFERRY_TRUSTED_DIR"] = str(host.home / "etc/trusted.d")
    (place / "ci.toml").write_text(f'identity = "{identity}"\nissuer = "{GITHUB_ISSUER}"\n')
    server.write_root(place / "trusted_root.json")


def test_from_a_job_to_a_host(server: SigstoreServer, job: CliRunner) -> None:
    artifact = pack(job.home / "packed", 1)
    archive = artifact.archive_path
    refused = job.run("push", archive, "--identity-token", "token", expect=2)
    assert "--sigstore" in refused.stderr
    job.run("push", archive, "--tag", "stable", "--sigstore")
    shown = job.run("show", "demo@stable").stdout
    assert f"{WORKFLOW} ({GITHUB_ISSUER})" in shown
    root = ("--trusted-root", "root.json")
    verified = job.run("verify", "demo@stable", *WHO, *root).stdout
    assert f"is signed by {WORKFLOW} ({GITHUB_ISSUER})" in verified
    job.run("check", *WHO, *root)
    stranger = ("--identity", f"{WORKFLOW}2", "--issuer", GITHUB_ISSUER, *root)
    for command in (("verify", "demo@stable"), ("check",), ("install", "demo@stable")):
        job.run(*command, *stranger, expect=8)
    job.run("fetch", "demo@stable", "-o", "usb", *stranger, expect=8)
    assert not (job.home / "envs/demo").exists()
    for words in (("--identity", WORKFLOW), ("--issuer", "x"), root):
        job.run("verify", "demo@stable", *words, expect=2)
    trust_identity(job, server)
    installed = json.loads(job.run("install", "demo@stable", "--json").stdout)
    assert installed["origin"]["signed_by"] == [f"{WORKFLOW} ({GITHUB_ISSUER})"]
    job.run("status")
    trust_identity(job, server, "https://example.org/another")
    job.run("status", expect=8)
    unsigned = pack(job.home / "packed", 2)
    job.run("push", unsigned.archive_path, "--tag", "unsigned")
    refused = job.run("install", "demo@unsigned", expect=8)
    assert "has no Sigstore bundle" in refused.stderr
    assert "hint: ask the person who pushed it" in refused.stderr


@pytest.mark.parametrize("workers", [(), ("--workers", "1")], ids=["here", "by a worker"])
def test_a_release_of_two_specs(
    server: SigstoreServer, job: CliRunner, tiny_channel: Path, workers: tuple[str, ...]
) -> None:
    """Workers have no token: the job signs what they pushed before a tag leads to it."""
    specs = tiny_specs(job.home, ("one", "two"), str(tiny_channel))
    job.run("release", "one", "two", "--tag", "stable", "--sigstore", *workers)
    root = ("--trusted-root", "root.json")
    for name in ("one", "two"):
        shown = job.run("verify", f"{name}@stable", *WHO, *root).stdout
        assert f"is signed by {WORKFLOW} ({GITHUB_ISSUER})" in shown
    job.run("check", *WHO, *root)
    assert published(specs) == ["one", "two"]


def test_required_signatures_are_those_of_keys(server: SigstoreServer, job: CliRunner) -> None:
    """A tag that no key signed could be moved back: identities alone do not fulfil the demand."""
    job.run("push", pack(job.home / "packed", 1).archive_path, "--sigstore")
    trust_identity(job, server)
    refused = job.run("install", "demo", "--require-signature", expect=2)
    assert "trusts no keys" in refused.stderr


def test_a_bundle_goes_wherever_its_artifact_goes(server: SigstoreServer, job: CliRunner) -> None:
    first = pack(job.home / "packed", 1)
    job.run("push", first.archive_path, "--sigstore")
    signed = next((job.home / "registry").rglob(SIGSTORE)).read_bytes()
    trust_identity(job, server)
    job.run("mirror", "registry", "mirrored")
    job.run("export", "demo", "disk")
    job.run("apply", "disk", "--registry", "applied")
    job.run("fetch", "demo", "-o", "files")
    for place in ("mirrored", "disk", "applied"):
        (found,) = (job.home / place).rglob(f"v1/envs/**/{SIGSTORE}")
        assert found.read_bytes() == signed
    beside = job.home / f"files/{first.manifest.stem}.{SIGSTORE}"
    assert beside.read_bytes() == signed
    archive = beside.with_name(first.archive_path.name)
    job.run("install", archive, "--name", "from-file")
    unsigned = replace(job, environ={**job.environ, "SIGSTORE_ID_TOKEN": ""})
    unsigned.run("push", archive, "--registry", "again")
    (found,) = (job.home / "again").rglob(SIGSTORE)
    assert found.read_bytes() == signed
    beside.write_bytes(signed.replace(b"a", b"b"))
    job.run("install", archive, "--name", "changed", expect=8)
    second = pack(job.home / "packed", 2)
    job.run("push", second.archive_path, "--sigstore")
    job.run("export", "demo", "more", "--since", f"demo@{first.manifest.id}")
    assert list((job.home / "more").rglob(f"v1/deltas/**/{SIGSTORE}"))
    job.run("apply", "more", "--registry", "applied")
    assert len(list((job.home / "applied").rglob(f"v1/envs/**/{SIGSTORE}"))) == 2
    job.run("tag", f"demo@{second.manifest.id}", "latest", "--registry", "applied")
    job.run("prune", "--registry", "applied", "--keep-tagged", "--hours", "0", "--delete")
    (kept,) = (job.home / "applied").rglob(f"v1/envs/**/{SIGSTORE}")
    assert second.manifest.id in str(kept)


def test_what_cannot_be_signed_is_not_released(server: SigstoreServer, job: CliRunner) -> None:
    archive = pack(job.home / "packed", 1).archive_path
    nobody = replace(job, environ={**job.environ, "SIGSTORE_ID_TOKEN": ""})
    refused = nobody.run("push", archive, "--sigstore", expect=2)
    assert "no identity to sign with" in refused.stderr
    assert "id-token: write" in refused.stderr
    for who in ("fulcio", "rekor"):
        server.refuses = who
        try:
            refused = job.run("push", archive, "--sigstore", expect=9)
        finally:
            server.refuses = ""
        assert "the Sigstore did not sign" in refused.stderr
        assert "403" in refused.stderr
        assert job.environ["SIGSTORE_ID_TOKEN"] not in refused.stderr
    assert not list((job.home / "registry").rglob("*.json"))


def test_a_host_without_the_library(server: SigstoreServer, job: CliRunner) -> None:
    """It has all that is installed here but sigstore."""
    job.run("push", pack(job.home / "packed", 1).archive_path, "--sigstore")
    trust_identity(job, server)
    packages = job.home / "packages"
    packages.mkdir()
    (found,) = {Path(place) for place in sys.path if place.endswith("site-packages")}
    for path in found.iterdir():
        if path.name != "sigstore":
            (packages / path.name).symlink_to(path)
    sources = Path(envferry.__file__).parents[1]
    environ = {**os.environ, **job.environ, "PYTHONPATH": f"{sources}:{packages}"}
    for words in (("install", "demo"), ("push", "x.tar.zst", "--sigstore")):
        finished = subprocess.run(
            [sys.executable, "-S", "-m", "envferry", *words],
            cwd=job.home,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 2, finished.stderr
        assert "needs the library sigstore, which is not installed" in finished.stderr
        assert 'hint: run `pip install "envferry[sigstore]"`' in finished.stderr
    assert not (job.home / "envs/demo").exists()


@pytest.mark.oci
def test_an_oci_registry_lists_it_with_the_image(
    job: CliRunner, oci_server: OciServer, oci_url: str
) -> None:
    artifact = pack(job.home / "packed", 1)
    job.run("push", artifact.archive_path, "--sigstore", "--registry", oci_url)
    root = ("--trusted-root", "root.json")
    job.run("verify", "demo@latest", *WHO, *root, "--registry", oci_url)
    job.run("mirror", oci_url, "mirrored")
    (path,) = (job.home / "mirrored").rglob(SIGSTORE)
    payload = json.loads(path.read_bytes())["dsseEnvelope"]["payload"]
    assert json.loads(base64.b64decode(payload))["predicate"] == {"targetChannel": oci_url}
    repository = f"{oci_url.removeprefix(f'oci://{oci_server.host}/')}/demo"
    tag = f"_f.linux-64-{artifact.manifest.id}.{SIGSTORE}"
    request = urllib.request.Request(
        f"{oci_server.url}/v2/{repository}/manifests/{tag}", headers={"Accept": MANIFEST}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        manifest = json.load(response)
    assert manifest["artifactType"] == BUNDLE_TYPE
    assert manifest["layers"][0]["mediaType"] == BUNDLE_TYPE
    image = manifest["subject"]["digest"].replace(":", "-")
    request = urllib.request.Request(
        f"{oci_server.url}/v2/{repository}/manifests/{image}", headers={"Accept": INDEX}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        listed = json.load(response)["manifests"]
    assert BUNDLE_TYPE in [one["artifactType"] for one in listed]
