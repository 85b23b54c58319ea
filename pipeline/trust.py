"""What a signature covers, and what a host accepts: attestations, signed tags, no way back.

An attestation is an in-toto statement (https://github.com/in-toto/attestation, v1) in a DSSE
envelope. Its subjects are archive, index and manifest; its predicate is SLSA provenance v1.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from blake3 import blake3

from pipeline.errors import IntegrityError
from pipeline.files import from_json, to_json, write_bytes
from pipeline.materials import Material  # noqa: TC001  (msgspec reads it)
from pipeline.models import Manifest, TagRecord
from pipeline.signing import (
    Envelope,
    PublicKey,
    Signature,
    SigningKey,
    pre_authentication_encoding,
    seal,
    sign,
    signers,
)

log = logging.getLogger(__name__)

Part = TypeVar("Part", bound=msgspec.Struct)

PAYLOAD_TYPE = "application/vnd.in-toto+json"
TAG_PAYLOAD_TYPE = "application/vnd.envferry.tag+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:envferry:build:1"
BUILDER = "urn:envferry:builder:"

SEEN_DIRECTORY = Path(".envferry", ".tags")
"""Below the envs directory: the newest record of each tag that this host has accepted."""
SIGN_HINT = "push it again with --sign-key; nothing is sent twice"


class Subject(msgspec.Struct, frozen=True):
    """One thing that a statement is about."""

    name: str
    digest: dict[str, str]


class Statement(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An in-toto statement, v1."""

    type: str = msgspec.field(name="_type", default=STATEMENT_TYPE)
    subject: tuple[Subject, ...]
    predicate_type: str
    predicate: dict[str, Any]


class Builder(msgspec.Struct, frozen=True):
    """Who built an artifact, in SLSA provenance."""

    id: str = ""


class BuildDefinition(msgspec.Struct, frozen=True, rename="camel"):
    """What an artifact was built from, in SLSA provenance."""

    resolved_dependencies: tuple[Material, ...] = ()


class BuildMetadata(msgspec.Struct, frozen=True, rename="camel"):
    """When an artifact was built, in SLSA provenance."""

    finished_on: str = ""


class RunDetails(msgspec.Struct, frozen=True):
    """How an artifact was built, in SLSA provenance."""

    builder: Builder = Builder()
    metadata: BuildMetadata = BuildMetadata()


class SignedTagRecord(TagRecord, frozen=True, kw_only=True):
    """What a tag holds, with the signatures of those who moved it there."""

    signatures: tuple[Signature, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TagName:
    """Which tag of which environment: a signature for one is none for another."""

    name: str
    platform: str
    tag: str

    def __str__(self) -> str:
        return f"{self.name}@{self.tag}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """Whoever pushes, with the keys and with what the provenance says of it."""

    keys: tuple[SigningKey, ...]
    who: str
    """USER@HOST, or what CI calls itself."""
    time: str
    """Now, in RFC 3339."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What a checked attestation says."""

    artifact: str
    signed_by: tuple[str, ...]
    """The trusted keys that signed it: id and where the key came from."""
    who: str
    time: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What an attestation says of a build, for people to read: nobody has checked it."""

    key_ids: tuple[str, ...]
    """The keys that signed it, as it says itself."""
    who: str
    time: str
    materials: int
    """How many things it says it was made from: lock, image, packages, build requirements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """The keys that a host trusts, and what it has seen; without keys it accepts everything."""

    keys: tuple[PublicKey, ...] = ()
    envs_dir: Path | None = None
    """Where the host remembers tags; None for who installs nothing."""
    allow_downgrade: bool = False
    """Accept a tag that was moved back, and remember that."""

    def check_artifact(
        self, manifest: Manifest, manifest_data: bytes, attestation: bytes | None
    ) -> None:
        """Raise IntegrityError unless a trusted key signed this artifact; warn without keys."""
        if self.keys:
            verified = verify_attestation(manifest, manifest_data, attestation, self.keys)
            log.info("%s is signed by %s", verified.artifact, ", ".join(verified.signed_by))
        else:
            log.warning(
                "nobody checks who made %s: this host trusts no keys (/etc/envferry/trusted.d)",
                manifest.stem,
            )

    def check_tag(self, name: TagName, record: SignedTagRecord, what: str) -> None:
        """Raise IntegrityError unless a trusted key signed the tag and it was not moved back.

        `what` names the record in errors. What is accepted is remembered.
        """
        if not self.keys:
            return
        if not signers(tag_message(name, record), record.signatures, self.keys):
            raise _unsigned(what, [one.keyid for one in record.signatures], self.keys)
        if self.envs_dir is not None:
            path = self.envs_dir / SEEN_DIRECTORY / f"{name.platform}-{name}.json"
            self._forbid_downgrade(name, record, path)

    def _forbid_downgrade(self, name: TagName, record: SignedTagRecord, path: Path) -> None:
        seen = from_json(path.read_bytes(), TagRecord, str(path)) if path.is_file() else None
        if seen and (record.counter, record.id) == (seen.counter, seen.id):
            return
        if seen and record.counter <= seen.counter and not self.allow_downgrade:
            message = (
                f"{name} is {record.id} (move {record.counter}) in the registry, but this host has "
                f"seen {seen.id} (move {seen.counter}): somebody put an old record back"
            )
            raise IntegrityError(message, hint="if that was you, install with --allow-downgrade")
        write_bytes(path, to_json(TagRecord(id=record.id, counter=record.counter)))


def attest(
    manifest: Manifest, manifest_data: bytes, materials: tuple[Material, ...], signer: Signer
) -> Envelope:
    """Sign a new statement about an artifact; `manifest_data` are the manifest's bytes as stored.

    `materials` is what it was made from. Time and user are here and not in the manifest: equal
    inputs give an equal manifest.
    """
    statement = Statement(
        subject=_subjects(manifest, manifest_data),
        predicate_type=PREDICATE_TYPE,
        predicate=_provenance(manifest, materials, signer),
    )
    return seal(PAYLOAD_TYPE, msgspec.json.encode(statement, order="sorted"), signer.keys)


def countersign(envelope: Envelope, keys: tuple[SigningKey, ...]) -> Envelope:
    """Add the signatures of keys that have not signed yet."""
    have = {key.id for key in signers_of(envelope, tuple(key.public for key in keys))}
    fresh = tuple(key for key in keys if key.public.id not in have)
    signatures = (*envelope.signatures, *sign(envelope.message, fresh))
    return msgspec.structs.replace(envelope, signatures=signatures)


def signers_of(envelope: Envelope, keys: tuple[PublicKey, ...]) -> tuple[PublicKey, ...]:
    """Return those of `keys` that signed an envelope."""
    return signers(envelope.message, envelope.signatures, keys)


def verify_attestation(
    manifest: Manifest,
    manifest_data: bytes,
    attestation: bytes | None,
    keys: tuple[PublicKey, ...],
) -> Verified:
    """Check that one of `keys` signed a statement about this very artifact.

    Raises IntegrityError when nobody did, or when the statement is about something else.
    """
    what = f"the artifact {manifest.stem}"
    if attestation is None:
        raise _unsigned(what, [], keys)
    envelope = decode_envelope(attestation, f"the attestation of {manifest.stem}")
    found = signers_of(envelope, keys)
    if envelope.payload_type != PAYLOAD_TYPE or not found:
        raise _unsigned(what, [one.keyid for one in envelope.signatures], keys)
    statement = _decode_statement(envelope, what)
    require_described(manifest, manifest_data, f"the manifest of {manifest.stem}")
    _require_subjects(statement, manifest, manifest_data, what)
    details = _run_details(statement, what)
    return Verified(
        artifact=manifest.stem,
        signed_by=tuple(f"{key.id} ({key.name})" for key in found),
        who=details.builder.id.removeprefix(BUILDER),
        time=details.metadata.finished_on,
    )


def read_provenance(attestation: bytes, what: str) -> Provenance:
    """Return what an attestation says, for people to read; nothing is checked but its form."""
    envelope = decode_envelope(attestation, what)
    statement = _decode_statement(envelope, what)
    details = _run_details(statement, what)
    return Provenance(
        key_ids=tuple(one.keyid for one in envelope.signatures),
        who=details.builder.id.removeprefix(BUILDER),
        time=details.metadata.finished_on,
        materials=len(_build_definition(statement, what).resolved_dependencies),
    )


def require_described(manifest: Manifest, manifest_data: bytes, what: str) -> None:
    """Raise IntegrityError unless these bytes are the manifest: they may be read at two times."""
    if from_json(manifest_data, Manifest, what) != manifest:
        message = f"{what} was changed while it was read"
        raise IntegrityError(message, hint="run the command again")


def verify_subjects(envelope: Envelope, manifest: Manifest, manifest_data: bytes) -> None:
    """Raise IntegrityError unless an envelope's statement is about this very artifact."""
    statement = _decode_statement(envelope, manifest.stem)
    _require_subjects(statement, manifest, manifest_data, manifest.stem)


def is_about(envelope: Envelope, manifest: Manifest, manifest_data: bytes) -> bool:
    """Whether an envelope's statement is about this very artifact."""
    try:
        verify_subjects(envelope, manifest, manifest_data)
    except IntegrityError:
        return False
    return True


def decode_envelope(data: bytes, what: str) -> Envelope:
    """Decode a DSSE envelope; raise IntegrityError when it is none."""
    try:
        return msgspec.json.decode(data, type=Envelope)
    except msgspec.MsgspecError as error:
        message = f"{what} is damaged: {error}"
        raise IntegrityError(message, hint=SIGN_HINT) from error


def encode_envelope(envelope: Envelope) -> bytes:
    """Return an envelope as it is stored."""
    return to_json(envelope)


def sign_tag(name: TagName, record: TagRecord, keys: tuple[SigningKey, ...]) -> SignedTagRecord:
    """Sign where a tag points to and how often it has moved."""
    message = tag_message(name, record)
    return SignedTagRecord(
        id=record.id, counter=record.counter, signatures=sign(message, keys) if keys else ()
    )


def tag_message(name: TagName, record: TagRecord) -> bytes:
    """Return what a tag's signatures are over: the record and the name that it stands under."""
    body = {
        "counter": record.counter,
        "id": record.id,
        "name": name.name,
        "platform": name.platform,
        "schema": record.schema,
        "tag": name.tag,
    }
    return pre_authentication_encoding(TAG_PAYLOAD_TYPE, msgspec.json.encode(body, order="sorted"))


def _subjects(manifest: Manifest, manifest_data: bytes) -> tuple[Subject, ...]:
    facts = manifest.archive
    return (
        Subject(facts.file, {"blake3": facts.blake3}),
        Subject(f"{facts.file}#index", {"blake3": facts.index_blake3}),
        Subject("manifest.json", {"blake3": blake3(manifest_data).hexdigest()}),
    )


def _provenance(
    manifest: Manifest, materials: tuple[Material, ...], signer: Signer
) -> dict[str, Any]:
    """Return SLSA provenance v1 (https://slsa.dev/spec/v1.0/provenance)."""
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "name": manifest.name,
                "platform": manifest.platform,
                "prefix": manifest.prefix,
                "version": manifest.version,
            },
            "resolvedDependencies": materials,
        },
        "runDetails": {
            "builder": {"id": f"{BUILDER}{signer.who}", "version": manifest.tools},
            "metadata": {"finishedOn": signer.time},
        },
    }


def _decode_statement(envelope: Envelope, what: str) -> Statement:
    try:
        statement = msgspec.json.decode(envelope.body, type=Statement)
    except msgspec.MsgspecError as error:
        message = f"the statement about {what} is damaged: {error}"
        raise IntegrityError(message, hint=SIGN_HINT) from error
    if (statement.type, statement.predicate_type) != (STATEMENT_TYPE, PREDICATE_TYPE):
        message = f"the statement about {what} is no SLSA provenance: {statement.predicate_type}"
        raise IntegrityError(message, hint=SIGN_HINT)
    return statement


def _build_definition(statement: Statement, what: str) -> BuildDefinition:
    return _part(statement, "buildDefinition", BuildDefinition, what)


def _run_details(statement: Statement, what: str) -> RunDetails:
    return _part(statement, "runDetails", RunDetails, what)


def _part(statement: Statement, key: str, kind: type[Part], what: str) -> Part:
    try:
        return msgspec.convert(statement.predicate.get(key, {}), kind)
    except msgspec.MsgspecError as error:
        message = f"the provenance of {what} is damaged: {error}"
        raise IntegrityError(message, hint=SIGN_HINT) from error


def _require_subjects(
    statement: Statement, manifest: Manifest, manifest_data: bytes, what: str
) -> None:
    said = {subject.name: subject.digest.get("blake3") for subject in statement.subject}
    for subject in _subjects(manifest, manifest_data):
        if said.get(subject.name) != subject.digest["blake3"]:
            message = (
                f"{what}: the BLAKE3 of {subject.name} is {subject.digest['blake3']}, "
                f"signed is {said.get(subject.name)}"
            )
            raise IntegrityError(message, hint="fetch it again; if that repeats, it was tampered")


def _unsigned(what: str, by: list[str], keys: tuple[PublicKey, ...]) -> IntegrityError:
    trusted = ", ".join(f"{key.id} ({key.name})" for key in keys)
    found = f"only by {', '.join(by)[:200]}" if by else "by nobody"
    message = f"{what} is not signed by a key that is trusted here: {found}; trusted are {trusted}"
    return IntegrityError(message, hint="ask who pushed it to sign it: `envferry push --sign-key`")
