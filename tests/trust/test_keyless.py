"""Signatures without keys: what is signed, who is accepted, and what is refused."""

from __future__ import annotations

import base64
import copy
import json
import logging
import sys
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import jsonschema
import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sigstore.dsse import Statement
from sigstore.models import ClientTrustConfig
from sigstore.oidc import IdentityToken
from sigstore.sign import SigningContext

from envferry.artifacts import SIGSTORE, read_proof
from envferry.base.times import rfc3339
from envferry.config import child_environ, identity_environ
from envferry.errors import IntegrityError, PipelineError, SpecError, StoreError, UsageError
from envferry.models import Artifact
from envferry.names import Ref
from envferry.process import run
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.check import check_registry
from envferry.registry.push import push_artifact
from envferry.trust.bundle import BundleKey, TrustBundle
from envferry.trust.identities import Identities, Identity, read_identities
from envferry.trust.keyless import KeylessSigner, load_keyless, verify_identity
from envferry.trust.signing import pem_of
from envferry.trust.sigstore_bundle import claimed_identity, publish_statement
from tests.support.artifacts import PLATFORM, make_artifact
from tests.support.keys import OURS, THEIRS, signer, trusting
from tests.support.sigstore import GITHUB_ISSUER, Sigstore
from tests.support.sigstore_server import WORKFLOW, SigstoreServer, sigstore_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ACME = Identity(identity=WORKFLOW, issuer=GITHUB_ISSUER)
CEP_27 = {
    "type": "object",
    "required": ["_type", "subject", "predicateType"],
    "properties": {
        "_type": {"const": "https://in-toto.io/Statement/v1"},
        "subject": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "digest"],
                "properties": {
                    "name": {"type": "string"},
                    "digest": {
                        "type": "object",
                        "required": ["sha256"],
                        "maxProperties": 1,
                        "additionalProperties": {"type": "string"},
                    },
                },
            },
        },
        "predicateType": {"const": "https://schemas.conda.org/attestations-publish-1.schema.json"},
        "predicate": {
            "anyOf": [
                {"type": "null"},
                {
                    "type": "object",
                    "required": ["targetChannel"],
                    "properties": {
                        "targetChannel": {
                            "type": "string",
                            "minLength": 1,
                            "maxLength": 2083,
                            "pattern": "^[a-z0-9]+://.*[^/]$",
                        }
                    },
                },
            ]
        },
    },
}
"""The schema in CEP 27, and the MUSTs of its text."""


@pytest.fixture(scope="module")
def server() -> Iterator[SigstoreServer]:
    with sigstore_server() as running:
        yield running


@pytest.fixture(autouse=True)
def obedient(server: SigstoreServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test gets a server that does what it should, and no identity of this machine."""
    server.refuses, server.answers, server.log_delay = "", None, timedelta()
    names = ("SIGSTORE_ID_TOKEN", "GITHUB_ACTIONS", "GITLAB_CI", "BUILDKITE", "CIRCLECI")
    for name in (*names, "ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where is what the tests only read."""
    return tmp_path_factory.mktemp("keyless")


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return make_artifact(tmp_path / "packed", seed=1)


@pytest.fixture(scope="module")
def config(server: SigstoreServer, place: Path) -> Path:
    return server.write_config(place / "config.json")


@pytest.fixture
def ours(server: SigstoreServer, config: Path, tmp_path: Path) -> KeylessSigner:
    return signer_for(server, config, tmp_path / "token")


def signer_for(server: SigstoreServer, config: Path, path: Path, **claims: Any) -> KeylessSigner:
    path.write_text(server.token(**claims))
    return KeylessSigner(token_file=path, trust_config=config)


@pytest.fixture(scope="module")
def accepted(server: SigstoreServer, place: Path) -> Identities:
    return Identities(accepted=(ACME,), trusted_root=server.write_root(place / "root.json"))


@pytest.fixture(scope="module")
def bundle(server: SigstoreServer, config: Path, place: Path) -> bytes:
    """Return a signature of `artifact`: equal seeds give equal bytes."""
    equal = make_artifact(place / "packed", seed=1)
    signer = signer_for(server, config, place / "token")
    return signer.sign(equal.manifest, equal.manifest_path.read_bytes(), "s3://bucket/envs/")


def check(artifact: Artifact, bundle: bytes | None, accepted: Identities) -> str:
    data = artifact.manifest_path.read_bytes()
    return verify_identity(artifact.manifest, data, bundle, accepted).signed_by[0]


def statement_of(bundle: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        base64.b64decode(json.loads(bundle)["dsseEnvelope"]["payload"])
    )
    return found


def test_an_identity_signs(artifact: Artifact, bundle: bytes, accepted: Identities) -> None:
    assert check(artifact, bundle, accepted) == f"{WORKFLOW} ({GITHUB_ISSUER})"
    assert claimed_identity(bundle, "it") == ACME
    both = (Identity(identity="somebody@example.org", issuer="https://accounts.example"), ACME)
    assert check(artifact, bundle, msgspec.structs.replace(accepted, accepted=both))


@pytest.mark.parametrize("length", [100, 127, 128, 255, 256, 300])
def test_an_issuer_of_any_length_is_read(bundle: bytes, length: int) -> None:
    issuer = "https://login.example/".ljust(length, "a")
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    certificate = Sigstore().certify(key, WORKFLOW, issuer=issuer)
    changed = json.loads(bundle)
    raw = base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()
    changed["verificationMaterial"]["certificate"]["rawBytes"] = raw
    found = claimed_identity(json.dumps(changed).encode(), "it")
    assert found == Identity(identity=WORKFLOW, issuer=issuer)


def test_what_is_signed_is_the_statement_of_cep_27(artifact: Artifact, bundle: bytes) -> None:
    statement = statement_of(bundle)
    jsonschema.validate(statement, CEP_27)
    (subject,) = statement["subject"]
    assert subject["name"] == artifact.manifest_path.name
    assert statement["predicate"] == {"targetChannel": "s3://bucket/envs"}
    local = publish_statement(artifact.manifest, b"{}", "/home/me/artifacts")
    jsonschema.validate(json.loads(local), CEP_27)
    assert b"/home" not in local


def test_sigstores_own_program_agrees(
    artifact: Artifact, bundle: bytes, config: Path, tmp_path: Path
) -> None:
    """It finds a bundle beside a file by its name."""
    artifact.manifest_path.with_name(f"{artifact.manifest.stem}.{SIGSTORE}").write_bytes(bundle)
    words: list[str | Path] = [sys.executable, "-m", "sigstore", "--trust-config", config]
    words += ["verify", "identity", "--offline", "--cert-oidc-issuer", GITHUB_ISSUER]
    asked: list[str | Path] = [artifact.manifest_path]
    environ = child_environ(HOME=str(tmp_path))
    found = run([*words, "--cert-identity", WORKFLOW, *asked], env=environ)
    assert "OK" in found.stderr + found.stdout
    other = run([*words, "--cert-identity", "https://evil", *asked], env=environ, check=False)
    assert other.returncode


@pytest.mark.parametrize(
    ("identity", "issuer"),
    [
        ("https://github.com/evil/envs/.github/workflows/release.yml@refs/heads/main", ""),
        (f"{WORKFLOW}/", ""),
        (WORKFLOW.removesuffix("main"), ""),
        ("*", ""),
        ("", "https://gitlab.com"),
        ("", f"{GITHUB_ISSUER}/evil"),
    ],
)
def test_other_identities_and_issuers_are_refused(
    artifact: Artifact, bundle: bytes, accepted: Identities, identity: str, issuer: str
) -> None:
    wanted = Identity(identity=identity or WORKFLOW, issuer=issuer or GITHUB_ISSUER)
    with pytest.raises(IntegrityError) as caught:
        check(artifact, bundle, msgspec.structs.replace(accepted, accepted=(wanted,)))
    assert "another identity signed it" in caught.value.message
    assert str(ACME) in caught.value.message
    assert str(wanted) in caught.value.message
    assert "--sigstore" in caught.value.hint


def test_another_sigstore_vouches_for_nobody(
    artifact: Artifact, bundle: bytes, accepted: Identities, tmp_path: Path
) -> None:
    root = tmp_path / "other.json"
    root.write_text(Sigstore().trusted_root())
    for place in (root, None):  # None: the public one
        with pytest.raises(IntegrityError, match="not signed by a trusted identity"):
            check(artifact, bundle, msgspec.structs.replace(accepted, trusted_root=place))


def test_the_bundle_of_another_artifact(
    ours: KeylessSigner, artifact: Artifact, accepted: Identities, tmp_path: Path
) -> None:
    other = make_artifact(tmp_path / "other", seed=2)
    bundle = ours.sign(other.manifest, other.manifest_path.read_bytes(), "s3://b/e")
    with pytest.raises(IntegrityError, match=r"is about another artifact: .*; expected .* SHA-256"):
        check(artifact, bundle, accepted)


def test_a_signature_after_its_certificate_ended(
    server: SigstoreServer, ours: KeylessSigner, artifact: Artifact, accepted: Identities
) -> None:
    server.log_delay = timedelta(minutes=20)
    data = artifact.manifest_path.read_bytes()
    late = ours.sign(artifact.manifest, data, "s3://bucket/late")
    with pytest.raises(IntegrityError, match="not signed by a trusted identity"):
        check(artifact, late, accepted)


def test_a_bundle_without_any_time(artifact: Artifact, bundle: bytes, accepted: Identities) -> None:
    found = json.loads(bundle)
    del found["verificationMaterial"]["tlogEntries"][0]["inclusionPromise"]
    with pytest.raises(IntegrityError, match="inclusion promise or signed timestamp"):
        check(artifact, json.dumps(found).encode(), accepted)


def _changed(path: str, value: object) -> Any:
    def change(bundle: dict[str, Any]) -> dict[str, Any]:
        found = copy.deepcopy(bundle)
        place: Any = found
        *names, last = path.split(".")
        for name in names:
            place = place[int(name) if name.isdecimal() else name]
        if value is None:
            del place[last]
        else:
            place[last] = value
        return found

    return change


ENTRY = "verificationMaterial.tlogEntries.0"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{ENTRY}.inclusionProof.rootHash", "AAAA"),
        (f"{ENTRY}.inclusionProof", None),
        (f"{ENTRY}.integratedTime", "1700000000"),
        (f"{ENTRY}.canonicalizedBody", base64.b64encode(b"{}").decode()),
        (f"{ENTRY}.logId.keyId", "AAAA"),
        (f"{ENTRY}.kindVersion.kind", "hashedrekord"),
        ("verificationMaterial.tlogEntries", []),
        ("dsseEnvelope.signatures.0.sig", base64.b64encode(b"x" * 70).decode()),
        ("dsseEnvelope.signatures", []),
        ("dsseEnvelope.payload", base64.b64encode(b"{}").decode()),
        ("dsseEnvelope.payload", "!"),
        ("dsseEnvelope.payloadType", "text/plain"),
        ("dsseEnvelope", None),
        ("verificationMaterial.certificate.rawBytes", "AAAA"),
        ("verificationMaterial.certificate", None),
        ("verificationMaterial", {}),
        ("mediaType", "application/vnd.dev.sigstore.bundle+json;version=0.1"),
        ("mediaType", "text/html"),
    ],
)
def test_a_changed_bundle(
    artifact: Artifact, bundle: bytes, accepted: Identities, path: str, value: object
) -> None:
    changed = json.dumps(_changed(path, value)(json.loads(bundle))).encode()
    with pytest.raises(IntegrityError) as caught:
        check(artifact, changed, accepted)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"<html>", "damaged"),
        (b"[" * 100_000, "damaged"),
        (b"[]", "damaged"),
        (b'{"mediaType": "' + b"x" * (1 << 20) + b'"}', "bytes, expected at most"),
    ],
)
def test_what_is_no_bundle(
    artifact: Artifact, accepted: Identities, data: bytes, words: str
) -> None:
    with pytest.raises(IntegrityError, match=words):
        check(artifact, data, accepted)


def test_no_bundle_at_all(artifact: Artifact, accepted: Identities) -> None:
    with pytest.raises(IntegrityError, match="has no Sigstore bundle; expected one by"):
        check(artifact, None, accepted)


@pytest.mark.parametrize(
    "change",
    [
        {"predicateType": "https://slsa.dev/provenance/v1", "predicate": {}},
        {"subject": "twice"},
        {"subject": "renamed"},
        {"predicate": {"channel": "s3://elsewhere"}},
    ],
    ids=str,
)
def test_another_statement_by_the_same_identity(
    server: SigstoreServer,
    config: Path,
    artifact: Artifact,
    accepted: Identities,
    change: dict[str, Any],
) -> None:
    """Who signs one thing is not taken to have said another."""
    data = artifact.manifest_path.read_bytes()
    said = json.loads(publish_statement(artifact.manifest, data, "s3://b"))
    subject = said["subject"][0]
    subjects = {"twice": [subject, subject], "renamed": [{**subject, "name": "manifest.json"}]}
    said |= {**change, "subject": subjects.get(change.get("subject", ""), [subject])}
    context = SigningContext.from_trust_config(ClientTrustConfig.from_json(config.read_text()))
    with context.signer(IdentityToken(server.token())) as library:
        bundle = library.sign_dsse(Statement(json.dumps(said).encode())).to_json()
    with pytest.raises(IntegrityError) as caught:
        check(artifact, bundle.encode(), accepted)
    assert "not signed by a trusted identity" not in caught.value.message


@pytest.mark.parametrize("content", [None, "nonsense", "{}", "\udcff", "[]"])
def test_a_trusted_root_that_is_none(
    artifact: Artifact, bundle: bytes, tmp_path: Path, content: str | None
) -> None:
    root = tmp_path / "none.json"
    if content is not None:
        root.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(SpecError, match=r"none\.json") as caught:
        check(artifact, bundle, Identities(accepted=(ACME,), trusted_root=root))
    assert caught.value.hint


# Signing


def opened(tmp_path: Path, keyless: KeylessSigner | None, **fields: Any) -> Registry:
    registry = Registry.open(str(tmp_path / "registry"), **fields)
    return msgspec.structs.replace(registry, keyless=keyless)


def push(artifact: Artifact, registry: Registry) -> bool:
    pushed = push_artifact(artifact, registry=registry, tags=("stable",), progress=Silent())
    return pushed.uploaded


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_push_signs_and_hosts_check(
    server: SigstoreServer,
    ours: KeylessSigner,
    artifact: Artifact,
    accepted: Identities,
    tmp_path: Path,
) -> None:
    logged = len(server.entries)
    assert push(artifact, opened(tmp_path, ours))
    assert len(server.entries) == logged + 1
    host = opened(tmp_path, None, trust=replace(trusting(), identities=accepted))
    manifest = host.manifest("demo", PLATFORM, host.resolve(Ref.parse("demo@stable"), PLATFORM))
    assert host.trust
    assert host.trust.signers_of(manifest) == (str(ACME),)
    assert check_registry(host, read_bytes=True, progress=Silent()).broken == 0
    statement = statement_of((tmp_path / "registry").rglob(SIGSTORE).__next__().read_bytes())
    assert statement["predicate"] is None


def test_an_unsigned_artifact_is_refused_where_identities_are_trusted(
    artifact: Artifact, accepted: Identities, tmp_path: Path
) -> None:
    push(artifact, opened(tmp_path, None))
    host = opened(tmp_path, None, trust=replace(trusting(), identities=accepted))
    with pytest.raises(IntegrityError, match="has no Sigstore bundle"):
        host.manifest("demo", PLATFORM, artifact.manifest.id)
    (finding,) = check_registry(host, read_bytes=False, progress=Silent()).findings
    assert finding.key.endswith(SIGSTORE)
    assert "--sigstore" in finding.mend


def test_a_host_with_both_asks_for_both(
    ours: KeylessSigner, artifact: Artifact, accepted: Identities, tmp_path: Path
) -> None:
    """Neither a stolen key nor a taken-over workflow is enough."""
    both = replace(trusting(OURS), identities=accepted)
    for name, keyless, keys, words in (
        ("key", None, (OURS,), "has no Sigstore bundle"),
        ("identity", ours, (), "not signed by a trusted key"),
        ("stranger", ours, (THEIRS,), "not signed by a trusted key"),
    ):
        place = tmp_path / name
        push(artifact, opened(place, keyless, signer=signer(*keys) if keys else None))
        with pytest.raises(IntegrityError, match=words):
            opened(place, None, trust=both).manifest("demo", PLATFORM, artifact.manifest.id)
    push(artifact, opened(tmp_path, ours, signer=signer(OURS)))
    host = opened(tmp_path, None, trust=both)
    manifest = host.manifest("demo", PLATFORM, host.resolve(Ref.parse("demo@stable"), PLATFORM))
    assert both.signers_of(manifest) == (OURS.public.id, str(ACME))


def test_keys_for_tags_and_identities_for_artifacts(
    ours: KeylessSigner, artifact: Artifact, accepted: Identities, tmp_path: Path
) -> None:
    """With a trust bundle that has no key for releases, none is needed in CI; ended ones count."""
    now = datetime.now(timezone.utc)
    tagger = BundleKey(name="tagger", pem=pem_of(OURS.public.key).decode(), roles=("tag",))
    push(artifact, opened(tmp_path, ours))
    opened(tmp_path, None, signer=signer(OURS)).move_tag(
        "demo", PLATFORM, "stable", artifact.manifest.id
    )
    bundle = TrustBundle(version=1, created=rfc3339(now), keys=(tagger,))
    trust = replace(trusting(OURS), identities=accepted, bundle=bundle)
    host = opened(tmp_path, None, trust=trust)
    host.manifest("demo", PLATFORM, host.resolve(Ref.parse("demo@stable"), PLATFORM))
    ended = msgspec.structs.replace(
        tagger, roles=("release",), expires=rfc3339(now - timedelta(days=1))
    )
    stricter = msgspec.structs.replace(bundle, keys=(tagger, ended))
    host = opened(tmp_path, None, trust=replace(trust, bundle=stricter))
    with pytest.raises(IntegrityError, match="not signed by a trusted key"):
        host.manifest("demo", PLATFORM, artifact.manifest.id)


def test_tags_are_for_keys(
    ours: KeylessSigner,
    artifact: Artifact,
    accepted: Identities,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    push(artifact, opened(tmp_path, ours))
    host = opened(tmp_path, None, trust=replace(trusting(), identities=accepted))
    with caplog.at_level(logging.WARNING):
        host.resolve(Ref.parse("demo@stable"), PLATFORM)
    assert "the tag demo@stable" in caplog.text
    assert "signature not verified (no trusted keys" in caplog.text


@pytest.mark.parametrize("who", ["fulcio", "rekor"])
def test_what_a_sigstore_refuses_to_sign_is_not_sent(
    server: SigstoreServer, ours: KeylessSigner, artifact: Artifact, tmp_path: Path, who: str
) -> None:
    server.refuses = who
    with pytest.raises(StoreError, match=r"the Sigstore did not sign: .*403") as caught:
        push(artifact, opened(tmp_path, ours))
    assert "push again" in caught.value.hint
    assert files_in(tmp_path / "registry") == []


@pytest.mark.parametrize("answer", [b"<html>", b"{}"])
def test_a_sigstore_that_answers_nonsense(
    server: SigstoreServer, ours: KeylessSigner, artifact: Artifact, tmp_path: Path, answer: bytes
) -> None:
    server.answers = answer
    with pytest.raises(StoreError, match="the Sigstore did not sign"):
        push(artifact, opened(tmp_path, ours))
    assert files_in(tmp_path / "registry") == []


def test_a_sigstore_that_cannot_be_reached(
    server: SigstoreServer, artifact: Artifact, tmp_path: Path
) -> None:
    gone = SigstoreServer(sigstore=server.sigstore, url="http://127.0.0.1:9")
    config = gone.write_config(tmp_path / "gone.json")
    with pytest.raises(StoreError, match=r"did not sign.*(refused|127)"):
        push(artifact, opened(tmp_path, signer_for(server, config, tmp_path / "token")))
    assert files_in(tmp_path / "registry") == []


def test_nobody_says_who_signs(
    server: SigstoreServer, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVFERRY_SIGSTORE_CONFIG", str(config))
    past = datetime.now(timezone.utc) - timedelta(hours=1)
    tokens = {
        "expired": server.token(exp=past).encode(),
        "other": server.token(aud="another service").encode(),
        "none": b"not a token",
        "bytes": b"\xff\xfe",
    }
    for name, data in tokens.items():
        (tmp_path / name).write_bytes(data)
    cases: list[Path | None] = [None, tmp_path / "missing", *(tmp_path / name for name in tokens)]
    for place in cases:
        with pytest.raises(UsageError) as caught:
            load_keyless(place)
        assert "id-token: write" in caught.value.hint
        assert server.token()[:20] not in caught.value.message


def test_where_ci_says_who_signs(
    server: SigstoreServer, config: Path, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = artifact.manifest_path.read_bytes()

    def claimed() -> Identity:
        signer = load_keyless(None)
        return claimed_identity(signer.sign(artifact.manifest, data, "s3://b"), "it")

    monkeypatch.setenv("ENVFERRY_SIGSTORE_CONFIG", str(config))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", f"{server.url}/token?version=2")
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "the-job")
    assert claimed() == ACME
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "another")
    with pytest.raises(UsageError, match=r"no identity to sign with: .*403"):
        claimed()
    project = "https://gitlab.com/acme/envs//.gitlab-ci.yml@refs/heads/main"
    token = server.token(project, "https://gitlab.com")
    monkeypatch.setenv("SIGSTORE_ID_TOKEN", token)
    assert claimed() == Identity(identity=project, issuer="https://gitlab.com")
    assert token in identity_environ().values()
    assert token not in child_environ().values()
    assert "the-job" not in child_environ().values()


@pytest.mark.parametrize("content", ["{}", None])
def test_a_configuration_that_is_none(
    server: SigstoreServer, tmp_path: Path, content: str | None
) -> None:
    config = tmp_path / "config.json"
    if content is not None:
        config.write_text(content)
    with pytest.raises(SpecError, match=r"config\.json"):
        signer_for(server, config, tmp_path / "token").require_identity()


def test_a_push_that_is_repeated_signs_once(
    server: SigstoreServer,
    ours: KeylessSigner,
    artifact: Artifact,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    push(artifact, opened(tmp_path, None))
    assert push(artifact, opened(tmp_path, ours))
    logged = len(server.entries)
    (path,) = (tmp_path / "registry").rglob(SIGSTORE)
    before = path.read_bytes()
    with caplog.at_level(logging.WARNING):
        assert not push(artifact, opened(tmp_path, ours))
    assert f"has a signature of {ACME} already, which is kept" in caplog.text
    assert (path.read_bytes(), len(server.entries)) == (before, logged)
    path.write_bytes(b"damaged")
    assert push(artifact, opened(tmp_path, ours))
    assert claimed_identity(path.read_bytes(), "it") == ACME


def test_a_bundle_that_came_along_is_of_the_published_manifest(
    ours: KeylessSigner, artifact: Artifact, tmp_path: Path
) -> None:
    """One id may have been built twice: what is signed is one of the two manifests."""
    push(artifact, opened(tmp_path, None))
    other = tmp_path / "other"
    other.mkdir()
    for path in artifact.directory.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    data = artifact.manifest_path.read_bytes().replace(b"\n", b"\n ", 1)
    manifest = Artifact(directory=other, manifest=artifact.manifest)
    manifest.manifest_path.write_bytes(data)
    bundle = ours.sign(artifact.manifest, data, "s3://b")
    manifest.manifest_path.with_name(f"{artifact.manifest.stem}.{SIGSTORE}").write_bytes(bundle)
    with pytest.raises(IntegrityError, match="a different manifest than the signed one"):
        push(manifest, opened(tmp_path, None))
    assert SIGSTORE not in files_in(tmp_path / "registry")


def test_a_damaged_bundle_beside_an_archive_is_not_published(
    artifact: Artifact, tmp_path: Path
) -> None:
    path = artifact.manifest_path.with_name(f"{artifact.manifest.stem}.{SIGSTORE}")
    path.write_bytes(b"{}")
    assert read_proof(artifact.archive_path).sigstore == b"{}"
    with pytest.raises(IntegrityError, match="is damaged"):
        push(artifact, opened(tmp_path, None))
    assert files_in(tmp_path / "registry") == []


# Who is trusted


def test_identities_are_read_from_a_directory(tmp_path: Path) -> None:
    assert not read_identities(tmp_path / "none")
    place = tmp_path / "identities.d"
    place.mkdir()
    with pytest.raises(UsageError, match="names no identity"):
        read_identities(place)
    (place / "ci.toml").write_text(f'identity = "{WORKFLOW}"\nissuer = "{GITHUB_ISSUER}"\n')
    assert read_identities(place) == Identities(accepted=(ACME,))
    (place / "trusted_root.json").write_text("{}")
    assert read_identities(place).trusted_root == place / "trusted_root.json"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"identity = ",
        b'identity = "a"',
        b'identity = "a"\nissuer = 1',
        b'identity = ""\nissuer = "b"',
        b'identity = "a"\nissuer = "b"\npattern = "c"',
        b"#" * 70_000,
    ],
    ids=lambda content: content[:30].decode(errors="replace"),
)
def test_a_damaged_identity_is_not_passed_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "good.toml").write_text(f'identity = "{WORKFLOW}"\nissuer = "{GITHUB_ISSUER}"\n')
    (tmp_path / "other.toml").write_bytes(content)
    with pytest.raises(PipelineError, match="other"):
        read_identities(tmp_path)


def test_identities_that_everybody_may_change_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "identities.d"
    place.mkdir()
    for name in ("ci.toml", "trusted_root.json"):
        path = place / name
        path.write_text(f'identity = "{WORKFLOW}"\nissuer = "{GITHUB_ISSUER}"\n')
        path.chmod(0o666)
        with pytest.raises(UsageError, match="is writable by every user"):
            read_identities(place)
        path.chmod(0o644)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="cannot read the trusted identities"):
        read_identities(tmp_path / "link")
