"""Other clients of a registry that envferry has pushed to: oras, umoci, and what cosign reads."""

from __future__ import annotations

import json
import shutil
import urllib.request
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from oras.client import OrasClient
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey

from envferry.names import current_platform
from envferry.process import run
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.prune import RetentionPolicy, Scope, carry_out, plan_prune
from tests.conftest import require
from tests.support.cli_runner import CliRunner
from tests.support.packed import pack, random_bytes

if TYPE_CHECKING:
    from envferry.models import Artifact
    from tests.support.oci_registry import OciServer

pytestmark = pytest.mark.oci
PLATFORM = current_platform()
DSSE = "application/vnd.dsse.envelope.v1+json"
MANIFESTS = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """An environment of two packages."""
    return pack(tmp_path / "packed", {"a": random_bytes(1, 200_000), "b": random_bytes(2, 100_000)})


@pytest.fixture
def host(oci_url: str, tmp_path: Path) -> CliRunner:
    """A machine with two pairs of keys."""
    environ = {"ENVFERRY_REGISTRY": oci_url, "ENVFERRY_TRUSTED_DIR": "/dev/null"}
    host = CliRunner(home=tmp_path, cache=tmp_path / "cache", environ=environ)
    host.run("keygen", "ours")
    host.run("keygen", "theirs")
    return host


def get(server: OciServer, repository: str, what: str) -> tuple[str, bytes]:
    """Return the digest and the bytes of a manifest or a blob, as any client asks for them."""
    asked = urllib.request.Request(f"{server.url}/v2/{repository}/{what}")
    asked.add_header("Accept", MANIFESTS)
    with urllib.request.urlopen(asked, timeout=20) as answer:
        return answer.headers["Docker-Content-Digest"], answer.read()


def verify_as_cosign(server: OciServer, repository: str, image: str, key: Path) -> dict[str, Any]:
    """Return the statement that `cosign verify-attestation --key --insecure-ignore-tlog` accepts.

    These are its steps (pkg/cosign/verify.go and verifiers.go): the tag of the image's digest, an
    envelope in each layer, DSSE with the key, then a subject that is the image.
    """
    digest, _ = get(server, repository, f"manifests/{image}")
    _, found = get(server, repository, f"manifests/{digest.replace(':', '-')}.att")
    (layer,) = json.loads(found)["layers"]
    assert layer["mediaType"] == DSSE
    assert layer["annotations"]["dev.cosignproject.cosign/signature"] == ""
    _, data = get(server, repository, f"blobs/{layer['digest']}")
    envelope = Envelope.from_dict(json.loads(data))
    assert envelope.payload_type == "application/vnd.in-toto+json"
    public = SSlibKey.from_crypto(load_pem_public_key(key.read_bytes()))
    # cosign's verifier has no key id, so it tries each signature.
    for signature in envelope.signatures.values():
        signature.keyid = public.keyid
        trial = Envelope(envelope.payload, envelope.payload_type, {public.keyid: signature})
        try:
            trial.verify([public], 1)
            break
        except VerificationError:
            continue
    else:
        msg = "no signature of that key"
        raise VerificationError(msg)
    statement: dict[str, Any] = json.loads(envelope.payload)
    assert statement["predicateType"] == layer["annotations"]["predicateType"]
    subjects = [one["digest"].get("sha256") for one in statement["subject"]]
    assert digest.removeprefix("sha256:") in subjects
    return statement


@pytest.mark.parametrize("layers", [1, 4])
def test_an_attestation_is_what_cosign_looks_for(
    host: CliRunner, oci_server: OciServer, oci_url: str, artifact: Artifact, layers: int
) -> None:
    """With our key, in its form, about the image; replaced and removed with ours."""
    push = ("push", artifact.archive_path, "--layers", str(layers))
    host.run(*push, "--sign-key", "ours.key")
    repository = f"{oci_url.partition('//')[2].partition('/')[2]}/demo"
    image = f"{PLATFORM}-{artifact.manifest.id}"
    where = (oci_server, repository, image)
    statement = verify_as_cosign(*where, host.home / "ours.pub")
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    with pytest.raises(VerificationError):
        verify_as_cosign(*where, host.home / "theirs.pub")
    host.run(*push, "--sign-key", "theirs.key", "--trusted-key", "ours.pub")
    assert verify_as_cosign(*where, host.home / "theirs.pub") == statement
    host.run("verify", "demo@latest", "--trusted-key", "ours.pub")

    second = pack(host.home / "second", {"a": random_bytes(3, 200_000)})
    host.run("push", second.archive_path, "--sign-key", "ours.key", "--trusted-key", "theirs.pub")
    registry = Registry.open(oci_url)
    policy = RetentionPolicy(keep_tagged=True, under_way=timedelta(0))
    now = datetime.now(timezone.utc) + timedelta(seconds=5)
    carry_out(registry, plan_prune(registry, Scope(), policy, now), progress=Silent())
    _, listed = get(oci_server, repository, "tags/list")
    kept, _ = get(oci_server, repository, f"manifests/{PLATFORM}-{second.manifest.id}")
    found = [tag for tag in json.loads(listed)["tags"] if tag.endswith(".att")]
    assert found == [f"{kept.replace(':', '-')}.att"]


def test_oras_pulls_the_archive_under_its_name(
    host: CliRunner, oci_server: OciServer, oci_url: str, artifact: Artifact
) -> None:
    host.run("push", artifact.archive_path)
    client = OrasClient(hostname=oci_server.host, insecure=True)
    place = f"{oci_url.removeprefix('oci://')}/demo"
    image = f"{PLATFORM}-{artifact.manifest.id}"
    for tag in (image, f"_f.{image}.archive"):
        out = host.home / tag
        (pulled,) = client.pull(target=f"{place}:{tag}", outdir=str(out))
        assert Path(pulled).name == artifact.archive_path.name
        assert Path(pulled).read_bytes() == artifact.archive_path.read_bytes()
    tag = f"_f.{image}.conda-lock.yml"
    (pulled,) = client.pull(target=f"{place}:{tag}", outdir=str(host.home / "lock"))
    assert Path(pulled).name == "conda-lock.yml"


def test_a_tool_that_knows_gzip_alone(host: CliRunner, artifact: Artifact) -> None:
    """As docs/oci.md says: skopeo makes a copy that umoci unpacks."""
    require("oci", shutil.which("skopeo") and shutil.which("umoci"))
    host.run("push", artifact.archive_path, "--tag", "stable")
    host.run("export", "demo@stable", "layout", "--oci", "--tag", "stable")
    layout, copy, bundle = (host.home / name for name in ("layout", "gzip", "bundle"))
    run(("skopeo", "copy", "--dest-compress-format", "gzip", f"oci:{layout}:demo:stable",
         f"oci:{copy}:demo"))  # fmt: skip
    run(("umoci", "unpack", "--rootless", "--image", f"{copy}:demo", bundle))
    assert (bundle / "rootfs/lib/a.bin").read_bytes() == random_bytes(1, 200_000)
