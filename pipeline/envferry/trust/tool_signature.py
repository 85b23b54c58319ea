"""Signatures of the tool on a disk: the wheels and the script that install envferry itself.

An in-toto statement about SHA256SUMS, which binds all other files, in a DSSE envelope.
`transfer/install.sh` checks the same with openssl where envferry is not there yet.
"""

from __future__ import annotations

import re
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
    signers_of,
    unsigned,
)
from envferry.trust.signing import seal
from envferry.trust.statements import STATEMENT_TYPE, Statement, Subject

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envferry.trust.signing import PublicKey, Signer

SUMS = "SHA256SUMS"
TOOL_ATTESTATION = "attestation.json"
TOOL_PREDICATE = "urn:envferry:tool:1"
FILE_NAME = re.compile(r"(wheels/)?[A-Za-z0-9_][A-Za-z0-9_.+!-]*")
AGAIN = "do not run it: export it again, with --tool and --sign-key"


def attest_tool(sums: bytes, signer: Signer) -> bytes:
    """Return the signed statement about the tool whose SHA256SUMS are given, as it is stored."""
    statement = Statement(
        subject=(Subject(SUMS, {"sha256": sha256_hex(sums)}),),
        predicate_type=TOOL_PREDICATE,
        predicate={"who": signer.who, "time": signer.time},
    )
    body = msgspec.json.encode(statement, order="sorted")
    return encode_envelope(seal(PAYLOAD_TYPE, body, signer.keys))


def verify_tool(directory: Path, keys: tuple[PublicKey, ...]) -> VerifiedArtifact:
    """Check that one of `keys` signed the tool in `directory`, and read every file of it.

    Raises IntegrityError when none did, and for each file that is changed, missing or added.
    """
    what = f"the tool in {directory}"
    sums = _read(directory / SUMS)
    try:
        envelope = decode_envelope(_read(directory / TOOL_ATTESTATION), f"{what}: its attestation")
    except NotFound:
        raise _not_signed(what, [], keys) from None
    found = signers_of(envelope, keys)
    if envelope.payload_type != PAYLOAD_TYPE or not found:
        raise _not_signed(what, [one.keyid for one in envelope.signatures], keys)
    statement = _decode(envelope.body, what)
    if statement.subject != (Subject(SUMS, {"sha256": sha256_hex(sums)}),):
        message = f"{what}: its {SUMS} is not the one that was signed"
        raise IntegrityError(message, hint=AGAIN)
    if faults := list(_file_faults(directory, sums)):
        shown = "; ".join(faults[:5])
        msg = f"{what} is not what was signed: {shown}"
        raise IntegrityError(msg, hint=AGAIN)
    return VerifiedArtifact(
        artifact=what,
        signed_by=tuple(f"{key.id} ({key.name})" for key in found),
        who=str(statement.predicate.get("who", "")),
        time=str(statement.predicate.get("time", "")),
    )


def is_tool(directory: Path) -> bool:
    """Whether a folder looks like the `tool/` of an export."""
    return (directory / SUMS).is_file() and (directory / "install.sh").is_file()


def _decode(body: bytes, what: str) -> Statement:
    try:
        statement = decode_json(body, Statement)
    except msgspec.MsgspecError as error:
        message = f"the statement about {what} is damaged: {error}"
        raise IntegrityError(message, hint=AGAIN) from error
    if (statement.type, statement.predicate_type) != (STATEMENT_TYPE, TOOL_PREDICATE):
        message = f"the statement about {what} is about something else: {statement.predicate_type}"
        raise IntegrityError(message, hint=AGAIN)
    return statement


def _file_faults(directory: Path, sums: bytes) -> Iterator[str]:
    listed = {}
    for line in sums.decode(errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        if not FILE_NAME.fullmatch(name):
            yield f"{SUMS} names {name!r}"
            continue
        listed[name] = digest
    there = {
        path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()
    }
    for name in sorted(there - listed.keys() - {SUMS, TOOL_ATTESTATION}):
        yield f"{name!r} was added"
    for name, digest in listed.items():
        if name not in there:
            yield f"{name} is missing"
        elif sha256_hex(_read(directory / name)) != digest:
            yield f"{name} was changed"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise NotFound(
            message, hint="name the folder `tool` that `envferry export` wrote"
        ) from error


def _not_signed(what: str, by: list[str], keys: tuple[PublicKey, ...]) -> IntegrityError:
    error = unsigned(what, by, keys)
    error.hint = AGAIN
    return error
