"""The provenance, verified by in-toto's own library and by the rules of slsa-verifier.

https://github.com/slsa-framework/slsa-verifier: signature, subject, predicate, builder.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementProto
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey

from envferry.models import FileProvenance, Lock, LockedPackage, Publisher, SpecOptions
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.trust.materials import list_materials
from tests.support.artifacts import PLATFORM, make_artifact
from tests.support.keys import OURS, THEIRS, new_key, signer

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.models import Manifest
    from envferry.trust.signing import SigningKey


class Rejected(Exception):
    """What slsa-verifier would refuse."""


class Published:
    """An artifact that was pushed and signed, as files of a directory."""

    def __init__(self, home: Path) -> None:
        (home / "registry").mkdir()
        registry = Registry.open(str(home / "registry"))
        signing = Registry(registry.store, signer(OURS, THEIRS))
        artifact = make_artifact(home / "packed")
        signing.publish(artifact, progress=Silent())
        self.manifest: Manifest = artifact.manifest
        folder = home / f"registry/v1/envs/demo/{PLATFORM}/{self.manifest.id}"
        self.envelope: dict[str, Any] = json.loads((folder / "attestation.json").read_bytes())
        self.archive_digest = {"blake3": self.manifest.archive.blake3}


def public(key: SigningKey) -> SSlibKey:
    """Return a key as securesystemslib has it."""
    raw = key.public.key.public_bytes_raw().hex()
    return SSlibKey(key.public.id, "ed25519", "ed25519", {"public": raw})


def verify(
    envelope: dict[str, Any],
    digest: dict[str, str],
    builder: str,
    *keys: SigningKey,
    least: int = 1,
) -> Provenance:
    """Verify as slsa-verifier does; return the predicate."""
    opened = Envelope.from_dict(json.loads(json.dumps(envelope)))
    opened.verify([public(key) for key in keys], least)
    if opened.payload_type != "application/vnd.in-toto+json":
        raise Rejected(opened.payload_type)
    proto = json_format.Parse(opened.payload, StatementProto())
    statement = Statement.copy_from_pb(proto)
    statement.validate()
    if not any(dict(one.digest).items() >= digest.items() for one in proto.subject):
        message = "no subject has the digest"
        raise Rejected(message)
    if proto.predicate_type != "https://slsa.dev/provenance/v1":
        raise Rejected(proto.predicate_type)
    predicate = json_format.MessageToDict(proto.predicate)
    provenance = json_format.ParseDict(predicate, Provenance())
    if provenance.run_details.builder.id != builder:
        raise Rejected(provenance.run_details.builder.id)
    for one in provenance.build_definition.resolved_dependencies:
        ResourceDescriptor.copy_from_pb(one).validate()
    return provenance


@pytest.fixture
def published(tmp_path: Path) -> Published:
    return Published(tmp_path)


BUILDER = "urn:envferry:builder:ci@builder"


def test_in_totos_library_accepts_what_we_sign(published: Published) -> None:
    found = verify(published.envelope, published.archive_digest, BUILDER, OURS, THEIRS, least=2)
    assert found.build_definition.build_type == "urn:envferry:build:1"
    parameters = json_format.MessageToDict(found.build_definition.external_parameters)
    assert (parameters["name"], parameters["platform"]) == ("demo", PLATFORM)
    lock, *packages = found.build_definition.resolved_dependencies
    assert dict(lock.digest) == {"blake3": published.manifest.lock_digest}
    assert packages
    assert found.run_details.metadata.finished_on.ToJsonString() == "2026-01-02T03:04:05Z"


def test_slsas_rules_refuse_what_is_wrong(published: Published) -> None:
    envelope, digest = published.envelope, published.archive_digest
    stranger = new_key()
    with pytest.raises(VerificationError):
        verify(envelope, digest, BUILDER, stranger)
    with pytest.raises(VerificationError):
        verify(envelope, digest, BUILDER, OURS, stranger, least=2)
    with pytest.raises(Rejected, match="no subject"):
        verify(envelope, {"blake3": "0" * 64}, BUILDER, OURS)
    with pytest.raises(Rejected, match="ci@builder"):
        verify(envelope, digest, "urn:envferry:builder:other", OURS)
    changed = {**envelope, "payload": base64.b64encode(b"{}").decode()}
    with pytest.raises(VerificationError):
        verify(changed, digest, BUILDER, OURS)


def test_who_published_the_inputs_is_in_the_provenance(tmp_path: Path) -> None:
    def pip(name: str) -> LockedPackage:
        url = f"https://files.example/{name}-1-py3-none-any.whl"
        return LockedPackage(
            manager="pip", name=name, version="1", platform=PLATFORM, url=url, sha256="a" * 64
        )

    publisher = Publisher(kind="GitHub", repository="org/known", workflow="release.yml")
    lock = Lock(
        path=tmp_path / "demo.conda-lock.yml",
        name="demo",
        packages=(pip("known"), pip("silent"), pip("unasked"), pip("older")),
        content_hashes={},
        spec_digest="",
        options=SpecOptions(),
        digest="",
        provenance={
            PLATFORM: {
                "known": FileProvenance(publishers=(publisher,)),
                "silent": FileProvenance(),
                "unasked": FileProvenance(unasked=True),
            }
        },
    )
    found = {one.name: one for one in list_materials(make_artifact(tmp_path).manifest, lock)}
    assert found["known"].annotations == {"publishers": ("GitHub org/known (release.yml)",)}
    assert found["silent"].annotations == {"publishers": ()}
    assert found["unasked"].annotations == found["older"].annotations == {}
