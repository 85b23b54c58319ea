"""Attestations of artifacts: signed statements in DSSE envelopes, made and checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from envferry.base.json import decode_json, from_json, to_json
from envferry.errors import IntegrityError
from envferry.models import Manifest
from envferry.trust.signing import Envelope, PublicKey, Signer, SigningKey, seal, sign, signers
from envferry.trust.statements import (
    BUILDER,
    PREDICATE_TYPE,
    SIGN_HINT,
    Statement,
    build_definition,
    decode_statement,
    image_subject,
    provenance_of,
    require_subjects,
    run_details,
    subjects_of,
)

if TYPE_CHECKING:
    from envferry.trust.materials import Material

PAYLOAD_TYPE = "application/vnd.in-toto+json"


class VerifiedArtifact(msgspec.Struct, frozen=True, kw_only=True):
    """What a checked attestation says."""

    artifact: str
    signed_by: tuple[str, ...]
    """The trusted keys that signed it: id and origin of the key."""
    who: str
    time: str


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """What an attestation says of a build, for people to read; not verified."""

    key_ids: tuple[str, ...]
    """The keys that signed it, as it says itself."""
    who: str
    time: str
    materials: int
    """How many things it says it was made from: lock, image, packages, build requirements."""


def attest(
    manifest: Manifest,
    manifest_data: bytes,
    materials: tuple[Material, ...],
    signer: Signer,
    image: str | None = None,
) -> Envelope:
    """Sign a new statement about an artifact; `manifest_data` are the manifest's bytes as stored.

    `materials` is what it was made from, `image` the digest of its image in an OCI registry. Time
    and user are here and not in the manifest: equal inputs give an equal manifest.
    """
    images = (image_subject(manifest, image),) if image else ()
    statement = Statement(
        subject=(*subjects_of(manifest, manifest_data), *images),
        predicate_type=PREDICATE_TYPE,
        predicate=provenance_of(manifest, materials, signer),
    )
    return seal(PAYLOAD_TYPE, msgspec.json.encode(statement, order="sorted"), signer.keys)


def countersign(envelope: Envelope, keys: tuple[SigningKey, ...]) -> Envelope:
    """Add the signatures of keys that have not signed yet."""
    # By what verifies and not by the ids: a damaged signature is made once more.
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
    *,
    least: int = 1,
) -> VerifiedArtifact:
    """Check that `least` of `keys` signed a statement about this very artifact.

    Raises IntegrityError when fewer did, or when the statement is about something else.
    """
    what = f"the artifact {manifest.stem}"
    if attestation is None:
        raise unsigned(what, [], keys)
    envelope = decode_envelope(attestation, f"the attestation of {manifest.stem}")
    found = signers_of(envelope, keys)
    # The type as well: a signature for another purpose says nothing about an artifact.
    if envelope.payload_type != PAYLOAD_TYPE or not found:
        raise unsigned(what, [one.keyid for one in envelope.signatures], keys)
    require_enough(what, found, least)
    statement = decode_statement(envelope, what)
    # Bytes are signed, and values are used: both must be of the same file.
    require_described(manifest, manifest_data, f"the manifest of {manifest.stem}")
    require_subjects(statement, manifest, manifest_data, what)
    details = run_details(statement, what)
    return VerifiedArtifact(
        artifact=manifest.stem,
        signed_by=tuple(f"{key.id} ({key.name})" for key in found),
        who=details.builder.id.removeprefix(BUILDER),
        time=details.metadata.finished_on,
    )


def require_enough(what: str, found: tuple[PublicKey, ...], least: int) -> None:
    """Raise IntegrityError unless so many different keys signed something."""
    number = len({key.id for key in found})
    if number < least:
        message = f"{what} is signed by {number} trusted keys, {least} are required"
        hint = "ask the other signers to push it with their `--sign-key`, too"
        raise IntegrityError(message, hint=hint)


def read_provenance(attestation: bytes, what: str) -> Provenance:
    """Return what an attestation says, for people to read; nothing is checked but its form."""
    envelope = decode_envelope(attestation, what)
    statement = decode_statement(envelope, what)
    details = run_details(statement, what)
    return Provenance(
        key_ids=tuple(one.keyid for one in envelope.signatures),
        who=details.builder.id.removeprefix(BUILDER),
        time=details.metadata.finished_on,
        materials=len(build_definition(statement, what).resolved_dependencies),
    )


def require_described(manifest: Manifest, manifest_data: bytes, what: str) -> None:
    """Raise IntegrityError unless these bytes are the manifest: they may be read at two times."""
    # Compared as values: a manifest of an older version has other bytes than we would write.
    if from_json(manifest_data, Manifest, what) != manifest:
        message = f"{what} was changed while it was read"
        raise IntegrityError(message, hint="run the command again")


def verify_subjects(envelope: Envelope, manifest: Manifest, manifest_data: bytes) -> None:
    """Raise IntegrityError unless an envelope's statement is about this very artifact."""
    statement = decode_statement(envelope, manifest.stem)
    require_subjects(statement, manifest, manifest_data, manifest.stem)


def is_about(envelope: Envelope, manifest: Manifest, manifest_data: bytes) -> bool:
    """Whether an envelope's statement is about this very artifact."""
    try:
        verify_subjects(envelope, manifest, manifest_data)
    except IntegrityError:
        return False
    return True


def decode_envelope(data: bytes, what: str) -> Envelope:
    """Decode a DSSE envelope; raise IntegrityError when it is not valid."""
    try:
        return decode_json(data, Envelope)
    except msgspec.MsgspecError as error:
        message = f"{what} is damaged: {error}"
        raise IntegrityError(message, hint=SIGN_HINT) from error


def encode_envelope(envelope: Envelope) -> bytes:
    """Return an envelope as it is stored."""
    return to_json(envelope)


def unsigned(what: str, by: list[str], keys: tuple[PublicKey, ...]) -> IntegrityError:
    """Describe what none of the trusted keys signed; `by` are the ids of those that did."""
    trusted = ", ".join(f"{key.id} ({key.name})" for key in keys) or "none"
    # The ids are those of the envelope, whose writer chose how long they are.
    found = f"signed only by {', '.join(by)[:200]}" if by else "not signed at all"
    message = f"{what} is not signed by a trusted key: {found}; trusted: {trusted}"
    hint = "ask the person who pushed it to push it again with `--sign-key`"
    return IntegrityError(message, hint=hint)
