"""Files that are signed by a statement in a file beside them: the tool, and images.

An in-toto statement about one file's SHA-256, in a DSSE envelope.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from envferry.base.json import decode_json
from envferry.base.sha256 import sha256_hex
from envferry.errors import IntegrityError, NotFound
from envferry.trust.attestations import (
    PAYLOAD_TYPE,
    VerifiedArtifact,
    decode_envelope,
    encode_envelope,
    require_enough,
    signers_of,
    unsigned,
)
from envferry.trust.signing import seal
from envferry.trust.statements import STATEMENT_TYPE, Statement, Subject

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.trust.signing import PublicKey, Signer

ATTESTATION_SUFFIX = ".attestation.json"
MOST_RECORD_BYTES = 1 << 20
"""More than any attestation has: a disk can claim any length."""


class StatementKind(msgspec.Struct, frozen=True, kw_only=True):
    """What is signed: a statement about one kind says nothing of another."""

    predicate: str
    again: str
    """What to do when it is not as it was signed."""
    expected: str
    """What to name instead of a file that is not there."""


class SignedFile(msgspec.Struct, frozen=True):
    """A file, and where the statement about it is."""

    what: str
    """What errors call it."""
    subject: Subject
    attestation: Path


def subject_of(name: str, content: bytes) -> Subject:
    """Return how a statement names some bytes."""
    return Subject(name, {"sha256": sha256_hex(content)})


def attestation_of(path: Path) -> Path:
    """Return where the statement about a file lies."""
    return path.with_name(path.name + ATTESTATION_SUFFIX)


def attest_file(subject: Subject, kind: StatementKind, signer: Signer) -> bytes:
    """Return the signed statement about a file, as it is stored."""
    statement = Statement(
        subject=(subject,),
        predicate_type=kind.predicate,
        predicate={"who": signer.who, "time": signer.time},
    )
    # The envelope keeps these bytes: who verifies never encodes the statement again.
    body = msgspec.json.encode(statement, order="sorted")
    return encode_envelope(seal(PAYLOAD_TYPE, body, signer.keys))


def verify_file(
    signed: SignedFile, kind: StatementKind, keys: tuple[PublicKey, ...], *, least: int = 1
) -> VerifiedArtifact:
    """Check that `least` of `keys` signed a statement of this kind about a file.

    Raises IntegrityError when fewer did, or when it is about something else.
    """
    what = signed.what
    try:
        data = read_signed(signed.attestation, kind)
        envelope = decode_envelope(data, f"{what}: its attestation")
    except NotFound:
        # Without a statement it is unsigned: a missing file is the usual form of that.
        raise _not_signed(what, [], (kind, keys)) from None
    found = signers_of(envelope, keys)
    if envelope.payload_type != PAYLOAD_TYPE or not found:
        raise _not_signed(what, [one.keyid for one in envelope.signatures], (kind, keys))
    require_enough(what, found, least)
    statement = _decode(envelope.body, what, kind)
    # Exactly this one: a statement about several files is not one of ours.
    if statement.subject != (signed.subject,):
        message = f"{what}: its {signed.subject.name} is not the one that was signed"
        raise IntegrityError(message, hint=kind.again)
    return VerifiedArtifact(
        artifact=what,
        signed_by=tuple(f"{key.id} ({key.name})" for key in found),
        who=str(statement.predicate.get("who", "")),
        time=str(statement.predicate.get("time", "")),
    )


def read_signed(path: Path, kind: StatementKind, most: int = MOST_RECORD_BYTES) -> bytes:
    """Read a regular file of at most so many bytes.

    Raises IntegrityError for anything else, which a disk may have there to be waited for or to fill
    the memory; NotFound where it cannot be read.
    """
    try:
        # A pipe would be waited for, and a device may never end.
        if path.exists() and not path.is_file():
            message = f"{path} is not a regular file"
            raise IntegrityError(message, hint=kind.again)
        with path.open("rb") as stream:
            data = stream.read(most + 1)
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise NotFound(message, hint=kind.expected) from error
    if len(data) > most:
        message = f"{path} is longer than {most} bytes, more than any file of the tool"
        raise IntegrityError(message, hint=kind.again)
    return data


def _decode(body: bytes, what: str, kind: StatementKind) -> Statement:
    try:
        statement = decode_json(body, Statement)
    except msgspec.MsgspecError as error:
        message = f"the statement about {what} is damaged: {error}"
        raise IntegrityError(message, hint=kind.again) from error
    if (statement.type, statement.predicate_type) != (STATEMENT_TYPE, kind.predicate):
        message = f"the statement about {what} is about something else: {statement.predicate_type}"
        raise IntegrityError(message, hint=kind.again)
    return statement


def _not_signed(
    what: str, by: list[str], wanted: tuple[StatementKind, tuple[PublicKey, ...]]
) -> IntegrityError:
    kind, keys = wanted
    error = unsigned(what, by, keys)
    error.hint = kind.again
    return error
