"""Keys, attestations and signed tags; each row of docs/security.md names a test here."""

from __future__ import annotations

import base64
import logging
import os
import re
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from envferry.artifacts import read_artifact, read_proof
from envferry.base.json import from_json, to_json
from envferry.config import Settings
from envferry.errors import IntegrityError, NotFound, SpecError, UsageError
from envferry.models import Artifact, Manifest
from envferry.names import Ref
from envferry.process import find_program, run
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.fetch import fetch_artifact
from envferry.registry.push import push_artifact
from envferry.trust import host_keys
from envferry.trust.attestations import require_enough, verify_attestation
from envferry.trust.host_keys import load_trust
from envferry.trust.host_trust import Trust
from envferry.trust.signed_tags import SignedTagRecord
from envferry.trust.signing import (
    Envelope,
    Signature,
    SigningKey,
    generate_key,
    parse_public_key,
    parse_signing_key,
    pre_authentication_encoding,
    read_trusted_keys,
    signers,
)
from tests.conftest import require
from tests.support.artifacts import PLATFORM, make_artifact
from tests.support.keys import OURS, THEIRS, new_key, signer, trusting
from tests.support.store_suite import NOBODY

STABLE = Ref.parse("demo@stable")


class Bucket:
    """A registry in a directory, seen by those who push and those who install."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.url = str(tmp_path / "bucket")
        self.envs_dir = tmp_path / "envs"

    def push(
        self, seed: int, *keys: SigningKey, trust: Trust | None = None, tag: str = "stable"
    ) -> Artifact:
        """Push the artifact of a seed, signed by these keys if there are any."""
        artifact = make_artifact(self.tmp_path / "packed", seed=seed)
        registry = Registry.open(self.url, signer=signer(*keys) if keys else None, trust=trust)
        push_artifact(artifact, registry=registry, tags=(tag,), progress=Silent())
        return artifact

    def ask(self, ref: Ref = STABLE, *, trust: Trust | None = None) -> Manifest:
        """Ask for a ref as a host does that trusts our key."""
        registry = Registry.open(self.url, trust=trust or trusting(OURS, envs_dir=self.envs_dir))
        return registry.manifest(ref.name, PLATFORM, registry.resolve(ref, PLATFORM))

    def file(self, pattern: str) -> Path:
        """Return the one file of that name."""
        (path,) = Path(self.url).rglob(pattern)
        return path


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket(tmp_path)


def rewrite_manifest(path: Path, **changes: object) -> None:
    manifest = from_json(path.read_bytes(), Manifest, str(path))
    path.write_bytes(to_json(msgspec.structs.replace(manifest, **changes)))


def envelope_of(path: Path) -> Envelope:
    return msgspec.json.decode(path.read_bytes(), type=Envelope)


def test_signed_and_trusted(bucket: Bucket) -> None:
    artifact = bucket.push(1, OURS)
    assert bucket.ask() == artifact.manifest
    assert bucket.ask(Ref.parse(f"demo@{artifact.manifest.id}")) == artifact.manifest


def test_the_statement_names_what_is_signed(bucket: Bucket) -> None:
    artifact = bucket.push(1, OURS)
    envelope = envelope_of(bucket.file("attestation.json"))
    assert envelope.payload_type == "application/vnd.in-toto+json"
    statement = msgspec.json.decode(envelope.body)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    facts = artifact.manifest.archive
    assert [one["digest"]["blake3"] for one in statement["subject"]][:2] == [
        facts.blake3,
        facts.index_blake3,
    ]
    build = statement["predicate"]["buildDefinition"]
    assert build["resolvedDependencies"][0]["digest"]["blake3"] == artifact.manifest.lock_digest
    assert [one["name"] for one in build["resolvedDependencies"]] == ["conda-lock.yml", "numpy"]
    run_details = statement["predicate"]["runDetails"]
    assert run_details["builder"]["id"].endswith("ci@builder")
    assert run_details["metadata"] == {"finishedOn": "2026-01-02T03:04:05Z"}


def test_openssl_agrees(bucket: Bucket, tmp_path: Path) -> None:
    """A second implementation checks our signature with nothing but the standard."""
    openssl = find_program("openssl")
    require("openssl", openssl)
    private, public = generate_key()
    bucket.push(1, parse_signing_key(private, "key"))
    envelope = envelope_of(bucket.file("attestation.json"))
    for name, data in {
        "key.pub": public,
        "message": envelope.message,
        "sig": base64.b64decode(envelope.signatures[0].sig),
    }.items():
        (tmp_path / name).write_bytes(data)
    argv = [str(openssl), "pkeyutl", "-verify", "-pubin", "-inkey", "key.pub", "-rawin"]
    assert run([*argv, "-in", "message", "-sigfile", "sig"], cwd=tmp_path).returncode == 0


def test_the_encoding_of_the_specification() -> None:
    """The example of DSSE's protocol.md."""
    encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_unsigned(bucket: Bucket) -> None:
    bucket.push(1)
    with pytest.raises(IntegrityError, match="not signed at all") as caught:
        bucket.ask()
    assert OURS.public.id in caught.value.message
    assert "--sign-key" in caught.value.hint


def test_an_artifact_without_attestation_under_a_signed_tag(bucket: Bucket) -> None:
    bucket.push(1, OURS)
    bucket.file("attestation.json").unlink()
    with pytest.raises(IntegrityError, match=r"artifact demo-.* is not signed"):
        bucket.ask()


def test_signed_by_a_stranger(bucket: Bucket) -> None:
    bucket.push(1, THEIRS)
    with pytest.raises(IntegrityError, match=f"signed only by {THEIRS.public.id}"):
        bucket.ask()


def test_a_stranger_who_borrows_our_key_id(bucket: Bucket) -> None:
    bucket.push(1, THEIRS)
    for path in (bucket.file("attestation.json"), bucket.file("stable")):
        text = path.read_text().replace(THEIRS.public.id, OURS.public.id)
        path.write_text(text)
    with pytest.raises(IntegrityError, match="not signed by a trusted key"):
        bucket.ask()


@pytest.mark.parametrize(
    "changes",
    [{"prefix": "/tmp/evil"}, {"lock_digest": "0" * 64}, {"version": "9"}, {"tools": {}}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_changed_manifest(bucket: Bucket, changes: dict[str, object]) -> None:
    bucket.push(1, OURS)
    rewrite_manifest(bucket.file("manifest.json"), **changes)
    with pytest.raises(IntegrityError, match="BLAKE3 of manifest"):
        bucket.ask()


def test_another_artifacts_attestation(bucket: Bucket) -> None:
    first = bucket.push(1, OURS)
    second = bucket.push(2, OURS)
    attestations = {path.parent.name: path for path in Path(bucket.url).rglob("attestation.json")}
    shutil.copy(attestations[first.manifest.id], attestations[second.manifest.id])
    with pytest.raises(IntegrityError, match=r"signed is None|BLAKE3 of"):
        bucket.ask()


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"payloadType": 1}'])
def test_a_damaged_attestation(bucket: Bucket, data: bytes) -> None:
    bucket.push(1, OURS)
    bucket.file("attestation.json").write_bytes(data)
    with pytest.raises(IntegrityError, match="attestation of demo"):
        bucket.ask()


@pytest.mark.parametrize("part", ["payload", "signatures", "payload_type"])
def test_a_changed_envelope(bucket: Bucket, part: str) -> None:
    bucket.push(1, OURS)
    path = bucket.file("attestation.json")
    envelope = envelope_of(path)
    changed: object = "AAAA" if part == "payload" else "text/plain"
    if part == "signatures":
        changed = (Signature(OURS.public.id, "not base64!"), Signature(OURS.public.id, "AAAA"))
    path.write_bytes(to_json(msgspec.structs.replace(envelope, **{part: changed})))
    with pytest.raises(IntegrityError, match="not signed by a trusted key"):
        bucket.ask()


def test_a_tag_moved_back_to_an_old_signed_record(bucket: Bucket) -> None:
    """Rollback: each piece is signed, only the host's memory tells."""
    old = bucket.push(1, OURS)
    tag = bucket.file("stable")
    old_record = tag.read_bytes()
    new = bucket.push(2, OURS)
    assert bucket.ask() == new.manifest
    tag.write_bytes(old_record)
    with pytest.raises(IntegrityError, match="an old record was put back") as caught:
        bucket.ask()
    assert "--allow-downgrade" in caught.value.hint
    allowed = trusting(OURS, envs_dir=bucket.envs_dir, back=True)
    assert bucket.ask(trust=allowed) == old.manifest
    assert bucket.ask() == old.manifest


def test_a_second_record_with_the_same_count(bucket: Bucket) -> None:
    """A tag that was deleted starts at 1 again: that is no new move to those who saw it."""
    bucket.push(1, OURS)
    bucket.ask()
    bucket.file("stable").unlink()
    bucket.push(2, OURS)
    with pytest.raises(IntegrityError, match=r"\(move 1\).*has seen"):
        bucket.ask()


def test_a_tag_that_points_to_a_signed_artifact_but_is_not_signed(bucket: Bucket) -> None:
    old = bucket.push(1, OURS)
    bucket.push(2, OURS)
    bucket.file("stable").write_bytes(to_json({"id": old.manifest.id, "counter": 9, "schema": 1}))
    with pytest.raises(IntegrityError, match=r"tag demo@stable .* is not signed"):
        bucket.ask()


@pytest.mark.parametrize("field", ["id", "counter"])
def test_a_changed_tag_record(bucket: Bucket, field: str) -> None:
    old = bucket.push(1, OURS)
    bucket.push(2, OURS)
    path = bucket.file("stable")
    record = from_json(path.read_bytes(), SignedTagRecord, "tag")
    value: object = old.manifest.id if field == "id" else 99
    path.write_bytes(to_json(msgspec.structs.replace(record, **{field: value})))
    with pytest.raises(IntegrityError, match="tag demo@stable"):
        bucket.ask()


@pytest.mark.parametrize("place", ["demo/linux-64/stable", "demo/linux-aarch64/latest"])
def test_a_signed_record_under_another_name(bucket: Bucket, place: str) -> None:
    """`nightly` was never meant to be `stable`."""
    bucket.push(1, OURS, tag="nightly")
    target = Path(bucket.url, "v1/tags", place)
    target.parent.mkdir(exist_ok=True)
    shutil.copy(bucket.file("nightly"), target)
    registry = Registry.open(bucket.url, trust=trusting(OURS))
    _, _, _, name, platform, tag = ("", *target.parts[-5:])
    with pytest.raises(IntegrityError, match="not signed"):
        registry.resolve(Ref(name=name, version=tag), platform)


def test_a_signed_tag_is_not_moved_without_a_key(bucket: Bucket) -> None:
    first = bucket.push(1, OURS)
    with pytest.raises(UsageError, match="demo@stable is a signed tag"):
        bucket.push(2)
    assert bucket.ask() == first.manifest


def test_pushing_again_with_a_key_signs_what_is_there(bucket: Bucket) -> None:
    artifact = bucket.push(1)
    bucket.push(1, OURS)
    assert bucket.ask() == artifact.manifest
    before = bucket.file("attestation.json").read_bytes()
    bucket.push(1, OURS)
    assert bucket.file("attestation.json").read_bytes() == before
    assert from_json(bucket.file("stable").read_bytes(), SignedTagRecord, "tag").counter == 1


def test_several_signatures(bucket: Bucket) -> None:
    """Two keys at once, or one beside another that is known; either is enough for a host."""
    bucket.push(1, OURS, THEIRS)
    assert len(envelope_of(bucket.file("attestation.json")).signatures) == 2
    third = new_key()
    bucket.push(1, third, trust=trusting(OURS))
    assert len(envelope_of(bucket.file("attestation.json")).signatures) == 3
    for key in (OURS, THEIRS, third):
        assert bucket.ask(Ref.parse(f"demo@{bucket.file('manifest.json').parent.name}"),
                          trust=trusting(key))  # fmt: skip


def test_nobody_signs_what_a_stranger_says_of_the_build(bucket: Bucket) -> None:
    bucket.push(1, THEIRS)
    with pytest.raises(IntegrityError, match="signed by unknown keys"):
        bucket.push(1, OURS)


def test_signatures_travel_with_the_files(bucket: Bucket, tmp_path: Path) -> None:
    """Fetched to a disk, and pushed from there to another registry, without the key."""
    artifact = bucket.push(1, OURS)
    registry = Registry.open(bucket.url)
    fetched = fetch_artifact(
        STABLE, registry=registry, directory=tmp_path / "usb", platform=PLATFORM, progress=Silent()
    )
    proof = read_proof(fetched.archive_path)
    keys = (OURS.public,)
    verified = verify_attestation(artifact.manifest, proof.manifest_data, proof.attestation, keys)
    assert verified.signed_by == (f"{OURS.public.id} (test key)",)
    assert verified.who == "ci@builder"
    other = Registry.open(str(tmp_path / "other"), trust=trusting(OURS))
    push_artifact(read_artifact(fetched.archive_path), registry=Registry.open(other.url), tags=(),
                  progress=Silent())  # fmt: skip
    assert other.manifest("demo", PLATFORM, artifact.manifest.id) == artifact.manifest


@pytest.mark.parametrize("change", ["manifest", "attestation gone", "attestation forged"])
def test_a_changed_usb_disk(bucket: Bucket, tmp_path: Path, change: str) -> None:
    artifact = bucket.push(1, OURS)
    fetch_artifact(STABLE, registry=Registry.open(bucket.url), directory=tmp_path / "usb",
                   platform=PLATFORM, progress=Silent())  # fmt: skip
    stem = artifact.manifest.stem
    if change == "manifest":
        rewrite_manifest(tmp_path / f"usb/{stem}.manifest.json", prefix="/tmp/evil")
    elif change == "attestation gone":
        (tmp_path / f"usb/{stem}.attestation.json").unlink()
    else:
        bucket_2 = Bucket(tmp_path / "second")
        bucket_2.push(1, THEIRS)
        shutil.copy(bucket_2.file("attestation.json"), tmp_path / f"usb/{stem}.attestation.json")
    path = tmp_path / f"usb/{stem}.tar.zst"
    manifest, proof = read_artifact(path).manifest, read_proof(path)
    with pytest.raises(IntegrityError):
        trusting(OURS).check_artifact(manifest, proof)


def test_a_manifest_swapped_between_two_reads(bucket: Bucket) -> None:
    artifact = bucket.push(1, OURS)
    proof = read_proof(bucket.file("manifest.json"))
    swapped = msgspec.structs.replace(artifact.manifest, prefix="/tmp/evil")
    with pytest.raises(IntegrityError, match="changed while it was read"):
        trusting(OURS).check_artifact(swapped, proof)


def test_a_host_without_keys_says_so(bucket: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    artifact = bucket.push(1, THEIRS)
    with caplog.at_level(logging.WARNING):
        assert bucket.ask(trust=Trust()) == artifact.manifest
    assert len(caplog.records) == 1
    assert "no trusted keys" in caplog.text


def test_trusted_keys_are_read_from_a_directory(tmp_path: Path) -> None:
    assert read_trusted_keys(tmp_path / "none") == ()
    for name in ("a.pub", "b.pub", "c.txt"):
        (tmp_path / name).write_bytes(generate_key()[1])
    shutil.copy(tmp_path / "a.pub", tmp_path / "again.pub")
    assert len(read_trusted_keys(tmp_path)) == 2
    assert len(read_trusted_keys(tmp_path, [tmp_path / "c.txt"])) == 3


@pytest.mark.parametrize("place", ["variable", "file"])
def test_a_missing_directory_that_a_setting_names_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A misspelled path must not accept what nobody signed."""
    missing, config = tmp_path / "trusted.d", tmp_path / "config.toml"
    if place == "variable":
        monkeypatch.setenv("ENVFERRY_TRUSTED_DIR", str(missing))
    config.write_text(f'trusted_dir = "{missing}"\n' if place == "file" else "")
    here = Settings.from_environ(os.environ, [config])
    monkeypatch.setattr(host_keys, "settings", lambda: here)
    says = "ENVFERRY_TRUSTED_DIR" if place == "variable" else f"{config}:1"
    with pytest.raises(UsageError, match=f"{says} names .*trusted.d .* does not exist"):
        load_trust(())
    (tmp_path / "a.pub").write_bytes(generate_key()[1])
    assert len(load_trust([tmp_path / "a.pub"]).keys) == 1
    missing.mkdir()
    (tmp_path / "a.pub").rename(missing / "a.pub")
    assert len(load_trust(()).keys) == 1


def test_dev_null_says_that_a_host_has_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Settings.from_environ({"ENVFERRY_TRUSTED_DIR": "/dev/null"})
    monkeypatch.setattr(host_keys, "settings", lambda: here)
    assert load_trust(()).keys == ()
    with pytest.raises(UsageError, match="trusts no keys") as raised:
        load_trust((), require_signature=True)
    assert raised.value.hint.startswith("let ENVFERRY_TRUSTED_DIR name a directory")


@pytest.mark.parametrize(
    "content", [b"", b"garbage", generate_key()[0]], ids=["empty", "garbage", "private"]
)
def test_a_damaged_trusted_key_is_not_passed_over(tmp_path: Path, content: bytes) -> None:
    """Else a host with one damaged key would trust everybody."""
    (tmp_path / "damaged.pub").write_bytes(content)
    with pytest.raises(UsageError, match=r"damaged\.pub"):
        read_trusted_keys(tmp_path)
    with pytest.raises(NotFound, match=r"none\.pub"):
        read_trusted_keys(tmp_path / "none", [tmp_path / "none.pub"])


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("dangling link", "is a dangling link"),
        ("parent is a dangling link", "is a dangling link"),
        ("link to itself", "cannot read the trusted keys"),
        ("file", "Not a directory"),
        ("empty", "found nothing"),
        ("site.PUB", r"expected files named \*\.pub, found site\.PUB"),
        ("k.pem", r"found k\.pem"),
        ("k.pub~", r"found k\.pub~"),
        (".pub", r"found \.pub"),
    ],
)
def test_a_host_whose_keys_cannot_be_found_trusts_nobody(
    tmp_path: Path, fault: str, words: str
) -> None:
    """Somebody wanted keys there: without any, the host would trust everybody."""
    place = tmp_path / "etc/trusted.d"
    if fault == "parent is a dangling link":
        (tmp_path / "etc").symlink_to("nowhere")
    else:
        place.parent.mkdir()
    if fault == "dangling link":
        place.symlink_to("nowhere")
    elif fault == "link to itself":
        place.symlink_to(place)
    elif fault == "file":
        place.write_bytes(generate_key()[1])
    elif fault != "parent is a dangling link":
        place.mkdir()
        if fault != "empty":
            (place / fault).write_bytes(generate_key()[1])
    with pytest.raises(UsageError, match=words) as caught:
        read_trusted_keys(place)
    assert str(tmp_path) in caught.value.message
    assert caught.value.hint


def test_keys_that_may_not_be_read_are_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.pub").write_bytes(generate_key()[1])
    tmp_path.chmod(0)
    script = (
        "import os, sys; from pathlib import Path\n"
        "from envferry.trust.signing import read_trusted_keys\n"
        "os.getuid() or os.setuid(65534)\n"
        "print(read_trusted_keys(Path(sys.argv[1])))"
    )
    try:
        finished = run([sys.executable, "-c", script, tmp_path], check=False)
    finally:
        tmp_path.chmod(0o700)
    assert "UsageError: cannot read the trusted keys" in finished.stderr
    assert "Permission denied" in finished.stderr


def test_a_broken_place_of_keys_is_an_error_also_beside_a_named_key(tmp_path: Path) -> None:
    (tmp_path / "a.pub").write_bytes(generate_key()[1])
    (tmp_path / "trusted.d").symlink_to("nowhere")
    with pytest.raises(UsageError, match="dangling link"):
        read_trusted_keys(tmp_path / "trusted.d", [tmp_path / "a.pub"])
    (tmp_path / "trusted.d").unlink()
    (tmp_path / "trusted.d").mkdir()
    assert len(read_trusted_keys(tmp_path / "trusted.d", [tmp_path / "a.pub"])) == 1


@pytest.mark.parametrize("text", ["1", "true", "Yes", "on"])
def test_signatures_can_be_required_by_a_variable(tmp_path: Path, text: str) -> None:
    environ = {"ENVFERRY_REQUIRE_SIGNATURES": text, "ENVFERRY_TRUSTED_DIR": "/dev/null"}
    assert Settings.from_environ(environ).signatures_required_by() == "ENVFERRY_REQUIRE_SIGNATURES"
    environ["ENVFERRY_REQUIRE_SIGNATURES"] = "0"
    assert Settings.from_environ(environ).signatures_required_by() is None
    environ["ENVFERRY_REQUIRE_SIGNATURES"] = "treu"
    with pytest.raises(SpecError, match="ENVFERRY_REQUIRE_SIGNATURES is 'treu'"):
        Settings.from_environ(environ)


def test_signatures_can_be_required_by_a_file(tmp_path: Path) -> None:
    here = Settings.from_environ({"ENVFERRY_TRUSTED_DIR": str(tmp_path / "trusted.d")})
    assert here.signatures_required_by() is None
    (tmp_path / "require-signatures").symlink_to("a dangling link counts, too")
    assert here.signatures_required_by() == str(tmp_path / "require-signatures")


def test_secrets_have_no_text() -> None:
    private, _ = generate_key()
    settings = Settings.from_environ({"ENVFERRY_SIGN_KEY": private.decode()})
    line = private.decode().splitlines()[1]
    key = parse_signing_key(private, "key")
    assert settings.sign_key
    assert settings.sign_key.reveal() == private.decode()
    for shown in (repr(settings), str(settings.sign_key), repr(key), str(signer(key))):
        assert line not in shown
    with pytest.raises(UsageError) as caught:
        parse_signing_key(private[:-30] + b"x", "the key")
    assert line not in caught.value.message + caught.value.hint
    assert caught.value.__cause__ is None


def test_keys_of_other_kinds(tmp_path: Path) -> None:
    openssl = find_program("openssl")
    require("openssl", openssl)
    kind = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
    run([str(openssl), "genpkey", *kind, "-out", str(tmp_path / "ec")])
    with pytest.raises(UsageError, match="Ed25519"):
        parse_signing_key((tmp_path / "ec").read_bytes(), "ec")
    with pytest.raises(UsageError, match="public key in PEM"):
        parse_public_key((tmp_path / "ec").read_bytes(), "ec")


def test_every_row_of_the_threat_model_has_its_test() -> None:
    root = Path(__file__).parents[2]
    rows = [
        line for line in (root / "docs/security.md").read_text().splitlines() if line[:2] == "| "
    ]
    named = {name for line in rows for name in re.findall(r"`(test_\w+)`", line)}
    defined = {
        name
        for path in (root / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *def (test_\w+)", path.read_text(), re.M)
    }
    assert len(named) > 20
    assert named <= defined


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("pipe", "cannot read the trusted key .*: it is a pipe that no process writes to"),
        ("link to a device", "is refused: it is writable by every user"),
        ("endless", "cannot read the trusted key .*: it has more than 1,048,576 bytes"),
    ],
)
def test_a_trusted_key_that_never_ends_is_refused(tmp_path: Path, kind: str, words: str) -> None:
    key = tmp_path / "site.pub"
    if kind == "pipe":
        os.mkfifo(key)
    elif kind == "endless":
        key.touch()
        os.truncate(key, 1 << 40)
    else:
        key.symlink_to("/dev/zero")
    with pytest.raises(UsageError, match=words):
        read_trusted_keys(tmp_path)
    with pytest.raises(UsageError, match=words):
        read_trusted_keys(tmp_path / "none", [key])


def test_a_folder_of_keys_that_may_only_be_listed_is_refused() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        keys = Path(name, "keys")
        Path(name).chmod(0o755)
        keys.mkdir()
        (keys / "site.pub").write_bytes(b"")
        was_root = os.geteuid() == 0
        keys.chmod(0o744 if was_root else 0o400)
        try:
            if was_root:
                os.seteuid(NOBODY)
            with pytest.raises(
                UsageError, match=r"cannot read the trusted key .*site\.pub"
            ) as told:
                read_trusted_keys(keys)
            assert told.value.hint == f"check the permissions of {keys}"
        finally:
            if was_root:
                os.seteuid(0)
            keys.chmod(0o700)


def signatures_of(bucket: Bucket) -> tuple[Path, Envelope]:
    path = bucket.file("attestation.json")
    return path, envelope_of(path)


def test_signatures_of_others_beside_ours_change_nothing(bucket: Bucket) -> None:
    artifact = bucket.push(1, THEIRS, OURS)
    assert bucket.ask() == artifact.manifest
    path, envelope = signatures_of(bucket)
    garbage = tuple(Signature(OURS.public.id, "AAAA") for _ in range(20))
    path.write_bytes(
        to_json(msgspec.structs.replace(envelope, signatures=(*garbage, *envelope.signatures)))
    )
    assert bucket.ask() == artifact.manifest


def test_an_envelope_with_signatures_without_end(bucket: Bucket) -> None:
    """Only so many are looked at: what comes behind them does not count."""
    bucket.push(1, OURS)
    path, envelope = signatures_of(bucket)
    garbage = tuple(Signature(OURS.public.id, "AAAA") for _ in range(100_000))
    path.write_bytes(
        to_json(msgspec.structs.replace(envelope, signatures=(*garbage, *envelope.signatures)))
    )
    with pytest.raises(IntegrityError, match="not signed by a trusted key"):
        bucket.ask()


def test_keys_that_share_an_id_do_not_stand_in_for_each_other(bucket: Bucket) -> None:
    """An id is a hint, 16 hex digits: who makes a key with ours gets nothing by that."""
    bucket.push(1, THEIRS)
    twin = replace(THEIRS.public, id=OURS.public.id, name="twin")
    for path in (bucket.file("attestation.json"), bucket.file("stable")):
        path.write_text(path.read_text().replace(THEIRS.public.id, OURS.public.id))
    with pytest.raises(IntegrityError, match="not signed by a trusted key"):
        bucket.ask(trust=Trust(keys=(OURS.public,), envs_dir=bucket.envs_dir))
    both = (OURS.public, twin)
    found = signers(
        envelope_of(bucket.file("attestation.json")).message,
        envelope_of(bucket.file("attestation.json")).signatures,
        both,
    )
    assert found == (twin,)
    with pytest.raises(IntegrityError, match="signed by 1 trusted keys, 2 are required"):
        require_enough("it", (*both, *both), 2)


@pytest.mark.parametrize(
    "name", ["d\u0435mo", "demo\u200b", "de\u0301mo", "\uff44emo", "demo\u202e", "d\u0131mo"]
)
def test_names_that_only_look_like_ours_are_none(bucket: Bucket, name: str) -> None:
    """A folder of such a name is not listed, and no reference can mean it."""
    bucket.push(1, OURS)
    envs = Path(bucket.url, "v1/envs")
    shutil.copytree(envs / "demo", envs / name)
    shutil.copytree(Path(bucket.url, "v1/tags/demo"), Path(bucket.url, "v1/tags", name))
    tags = Path(bucket.url, "v1/tags/demo", PLATFORM)
    shutil.copy(tags / "stable", tags / name)
    with pytest.raises(UsageError, match="is not a valid environment name"):
        Ref.parse(f"{name}@stable")
    assert set(Registry.open(bucket.url).tags("demo", PLATFORM)) == {"stable", "latest"}
    assert {one.name for one in Registry.open(bucket.url).environments()} == {"demo"}


def test_one_key_for_two_registries_makes_their_tags_interchangeable(bucket: Bucket) -> None:
    """As docs/security.md says: so each registry has a key of its own."""
    bucket.push(1, OURS)
    tested = bucket.push(2, OURS)
    staging = Bucket(bucket.tmp_path / "other")
    (bucket.tmp_path / "other").mkdir()
    newest = staging.push(3, OURS)
    folder = f"v1/envs/demo/{PLATFORM}/{newest.manifest.id}"
    shutil.copytree(Path(staging.url, folder), Path(bucket.url, folder))
    shutil.copy(staging.file("stable"), bucket.file("stable"))
    assert bucket.ask() == newest.manifest
    assert newest.manifest.id != tested.manifest.id
    own = Bucket(bucket.tmp_path / "apart")
    (bucket.tmp_path / "apart").mkdir()
    own.push(4, THEIRS, tag="nightly")
    shutil.copytree(
        Path(own.url, f"v1/tags/demo/{PLATFORM}"),
        Path(bucket.url, f"v1/tags/demo/{PLATFORM}"),
        dirs_exist_ok=True,
    )
    with pytest.raises(IntegrityError, match="not signed by a trusted key"):
        bucket.ask(Ref.parse("demo@nightly"))


@pytest.mark.parametrize("opened", ["a.pub", ".", ".."])
def test_keys_that_everybody_may_change_are_refused(tmp_path: Path, opened: str) -> None:
    keys_dir = tmp_path / "etc/trusted.d"
    keys_dir.mkdir(parents=True)
    key = keys_dir / "a.pub"
    key.write_bytes(generate_key()[1])
    assert len(read_trusted_keys(keys_dir)) == 1
    (keys_dir / opened).chmod(0o777)
    for names in ((keys_dir,), (tmp_path / "none", [key])):  # --trusted-key FILE, too
        with pytest.raises(
            UsageError, match=r"a.pub is refused: it (is writable by every user|lies in .*where)"
        ):
            read_trusted_keys(*names)
    if opened != "a.pub":  # as in /tmp, only its owner can replace a file
        (keys_dir / opened).chmod(0o1777)
        assert len(read_trusted_keys(keys_dir)) == 1
