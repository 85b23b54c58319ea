"""What is signed of an artifact: an in-toto statement whose predicate is SLSA provenance.

In-toto statements are https://github.com/in-toto/attestation, v1. The subjects are archive, index
and manifest, and in an OCI registry the image; the predicate is https://slsa.dev/spec/v1.0/provenance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from blake3 import blake3

from envferry.base.json import convert, decode_json
from envferry.errors import IntegrityError
from envferry.trust.materials import Material  # noqa: TC001  (msgspec reads it)

if TYPE_CHECKING:
    from envferry.models import Manifest
    from envferry.trust.signing import Envelope, Signer

Part = TypeVar("Part", bound=msgspec.Struct)

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:envferry:build:1"
BUILDER = "urn:envferry:builder:"
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
    # Not typed here: each type of predicate has a form of its own.
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


def image_subject(manifest: Manifest, digest: str) -> Subject:
    """Return the image that an archive is the layers of, by which cosign looks for what is signed.

    `digest` is that of the image's manifest, `sha256:HEX`.
    """
    # in-toto names the algorithm in the key, an OCI digest in front of the hex digits.
    return Subject(f"{manifest.archive.file}#image", {"sha256": digest.removeprefix("sha256:")})


def subjects_of(manifest: Manifest, manifest_data: bytes) -> tuple[Subject, ...]:
    """Return what the statement about an artifact names: the archive, its index, its manifest."""
    facts = manifest.archive
    return (
        Subject(facts.file, {"blake3": facts.blake3}),
        Subject(f"{facts.file}#index", {"blake3": facts.index_blake3}),
        Subject("manifest.json", {"blake3": blake3(manifest_data).hexdigest()}),
    )


def provenance_of(
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


def decode_statement(envelope: Envelope, what: str) -> Statement:
    """Return an envelope's statement; raise IntegrityError unless it is SLSA provenance."""
    try:
        statement = decode_json(envelope.body, Statement)
    except msgspec.MsgspecError as error:
        message = f"the statement about {what} is damaged: {error}"
        raise IntegrityError(message, hint=SIGN_HINT) from error
    if (statement.type, statement.predicate_type) != (STATEMENT_TYPE, PREDICATE_TYPE):
        message = f"the statement about {what} is not SLSA provenance: {statement.predicate_type}"
        raise IntegrityError(message, hint=SIGN_HINT)
    return statement


def build_definition(statement: Statement, what: str) -> BuildDefinition:
    """Return what was built from what; raise IntegrityError when that part is damaged."""
    return _part(statement, "buildDefinition", BuildDefinition, what)


def run_details(statement: Statement, what: str) -> RunDetails:
    """Return who built it and when; raise IntegrityError when that part is damaged."""
    return _part(statement, "runDetails", RunDetails, what)


def _part(statement: Statement, key: str, kind: type[Part], what: str) -> Part:
    try:
        return convert(statement.predicate.get(key, {}), kind)
    except msgspec.MsgspecError as error:
        message = f"the provenance of {what} is damaged: {error}"
        raise IntegrityError(message, hint=SIGN_HINT) from error


def require_subjects(
    statement: Statement, manifest: Manifest, manifest_data: bytes, what: str
) -> None:
    """Raise IntegrityError unless the statement is about this very manifest and archive."""
    # An image's subject has a SHA-256 alone, and so None here.
    said = {subject.name: subject.digest.get("blake3") for subject in statement.subject}
    # Ours must be among them; others, such as the image's, are for other tools to check.
    for subject in subjects_of(manifest, manifest_data):
        if said.get(subject.name) != subject.digest["blake3"]:
            message = (
                f"{what}: the BLAKE3 of {subject.name} is {subject.digest['blake3']}, "
                f"expected (signed) {said.get(subject.name)}"
            )
            raise IntegrityError(
                message, hint="fetch it again; if the error repeats, it was tampered with"
            )
