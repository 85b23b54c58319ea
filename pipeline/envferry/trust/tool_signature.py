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
RUN_FILE = "envferry.run"
"""What a statement about the one-file tool calls it, whatever the file is called."""
RUN_FILE_START = b"#!/bin/sh\n# envferry "
ATTESTATION_SUFFIX = ".attestation.json"
TOOL_PREDICATE = "urn:envferry:tool:1"
FILE_NAME = re.compile(r"(wheels/)?[A-Za-z0-9_][A-Za-z0-9_.+!-]*")
AGAIN = "do not run it: export it again, with --tool and --sign-key"


def attest_tool(sums: bytes, signer: Signer) -> bytes:
    """Return the signed statement about the tool whose SHA256SUMS are given, as it is stored."""
    return _attest(SUMS, sums, signer)


def attest_run_file(content: bytes, signer: Signer) -> bytes:
    """Return the signed statement about the one-file tool, as it is stored beside it."""
    return _attest(RUN_FILE, content, signer)


def _attest(name: str, content: bytes, signer: Signer) -> bytes:
    statement = Statement(
        subject=(Subject(name, {"sha256": sha256_hex(content)}),),
        predicate_type=TOOL_PREDICATE,
        predicate={"who": signer.who, "time": signer.time},
    )
    body = msgspec.json.encode(statement, order="sorted")
    return encode_envelope(seal(PAYLOAD_TYPE, body, signer.keys))


def verify_tool(directory: Path, keys: tuple[PublicKey, ...]) -> VerifiedArtifact:
    """Check that one of `keys` signed the tool in `directory`, and read every file of it.

    Raises IntegrityError when nobody did, and for each file that is changed, missing or added.
    """
    what = f"the tool in {directory}"
    sums = _read(directory / SUMS)
    subject = Subject(SUMS, {"sha256": sha256_hex(sums)})
    verified = _verify(what, subject, directory / TOOL_ATTESTATION, keys)
    if faults := list(_file_faults(directory, sums)):
        shown = "; ".join(faults[:5])
        msg = f"{what} is not what was signed: {shown}"
        raise IntegrityError(msg, hint=AGAIN)
    return verified


def verify_run_file(path: Path, keys: tuple[PublicKey, ...]) -> VerifiedArtifact:
    """Check that one of `keys` signed the one-file tool `path`; raise IntegrityError if not."""
    subject = Subject(RUN_FILE, {"sha256": sha256_hex(_read(path))})
    return _verify(str(path), subject, path.with_name(path.name + ATTESTATION_SUFFIX), keys)


def _verify(
    what: str, subject: Subject, attestation: Path, keys: tuple[PublicKey, ...]
) -> VerifiedArtifact:
    """Check that one of `keys` signed an attestation, and that it is about `subject`."""
    try:
        envelope = decode_envelope(_read(attestation), f"{what}: its attestation")
    except NotFound:
        raise _not_signed(what, [], keys) from None
    found = signers_of(envelope, keys)
    if envelope.payload_type != PAYLOAD_TYPE or not found:
        raise _not_signed(what, [one.keyid for one in envelope.signatures], keys)
    statement = _decode(envelope.body, what)
    if statement.subject != (subject,):
        message = f"{what}: its {subject.name} is not the one that was signed"
        raise IntegrityError(message, hint=AGAIN)
    return VerifiedArtifact(
        artifact=what,
        signed_by=tuple(f"{key.id} ({key.name})" for key in found),
        who=str(statement.predicate.get("who", "")),
        time=str(statement.predicate.get("time", "")),
    )


def is_tool(directory: Path) -> bool:
    """Whether a folder looks like the `tool/` of an export."""
    return (directory / SUMS).is_file() and (directory / "install.sh").is_file()


def is_run_file(path: Path) -> bool:
    """Whether a path is a file that starts as the one-file tool does."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(RUN_FILE_START)) == RUN_FILE_START


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
    apart = {SUMS, TOOL_ATTESTATION, RUN_FILE + ATTESTATION_SUFFIX}
    for name in sorted(there - listed.keys() - apart):
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
