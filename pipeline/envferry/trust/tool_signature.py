"""Signatures of the tool on a disk: the wheels and the script that install envferry itself.

An in-toto statement about SHA256SUMS, which binds all other files, in a DSSE envelope.
`transfer/install.sh` checks the same with openssl where envferry is not there yet.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from envferry.base.files import starts_with
from envferry.base.sha256 import sha256_hex
from envferry.errors import IntegrityError
from envferry.trust.signed_files import (
    ATTESTATION_SUFFIX,
    MOST_RECORD_BYTES,
    SignedFile,
    StatementKind,
    attest_file,
    attestation_of,
    read_signed,
    subject_of,
    verify_file,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envferry.trust.attestations import VerifiedArtifact
    from envferry.trust.signing import PublicKey, Signer

SUMS = "SHA256SUMS"
TOOL_ATTESTATION = "attestation.json"
RUN_FILE = "envferry.run"
"""What a statement about the one-file tool calls it, whatever the file is called."""
RUN_FILE_START = b"#!/bin/sh\n# envferry "
TOOL = StatementKind(
    predicate="urn:envferry:tool:1",
    again="do not run it: export it again, with --tool and --sign-key",
    expected="name the folder `tool` that `envferry export` wrote",
)
MOST_FILE_BYTES = 1 << 28
"""More than any file of ours: a disk can claim any length. `install.sh` has the same limit."""
FILE_NAME = re.compile(r"(wheels/)?[A-Za-z0-9_][A-Za-z0-9_.+!-]*")


def attest_tool(sums: bytes, signer: Signer) -> bytes:
    """Return the signed statement about the tool whose SHA256SUMS are given, as it is stored."""
    return attest_file(subject_of(SUMS, sums), TOOL, signer)


def attest_run_file(content: bytes, signer: Signer) -> bytes:
    """Return the signed statement about the one-file tool, as it is stored beside it."""
    return attest_file(subject_of(RUN_FILE, content), TOOL, signer)


def verify_tool(
    directory: Path, keys: tuple[PublicKey, ...], *, least: int = 1
) -> VerifiedArtifact:
    """Check that `least` of `keys` signed the tool in `directory`, and read every file of it.

    Raises IntegrityError when none did, and for each file that is changed, missing or added.
    """
    what = f"the tool in {directory}"
    sums = _read(directory / SUMS, MOST_RECORD_BYTES)
    signed = SignedFile(what, subject_of(SUMS, sums), directory / TOOL_ATTESTATION)
    # The signature first: nothing in an unsigned list is believed.
    verified = verify_file(signed, TOOL, keys, least=least)
    if faults := list(_file_faults(directory, sums)):
        shown = "; ".join(faults[:5])
        msg = f"{what} is not what was signed: {shown}"
        raise IntegrityError(msg, hint=TOOL.again)
    return verified


def verify_run_file(path: Path, keys: tuple[PublicKey, ...], *, least: int = 1) -> VerifiedArtifact:
    """Check that `least` of `keys` signed the one-file tool `path`; raise IntegrityError if not."""
    signed = SignedFile(
        str(path), subject_of(RUN_FILE, _read(path, MOST_FILE_BYTES)), attestation_of(path)
    )
    return verify_file(signed, TOOL, keys, least=least)


def is_tool(directory: Path) -> bool:
    """Whether a folder looks like the `tool/` of an export."""
    return os.path.lexists(directory / SUMS) and os.path.lexists(directory / "install.sh")


def is_run_file(path: Path) -> bool:
    """Whether a path is a file that starts as the one-file tool does."""
    return starts_with(path, RUN_FILE_START)


def _file_faults(directory: Path, sums: bytes) -> Iterator[str]:
    listed = {}
    for line in sums.decode(errors="replace").splitlines():
        # Two blanks, as sha256sum writes them in text mode.
        digest, _, name = line.partition("  ")
        # Names are joined to the folder below: one with `..` would be read elsewhere.
        if not FILE_NAME.fullmatch(name):
            yield f"{SUMS} names {name!r}"
            continue
        listed[name] = digest
    there = {
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        # Links count as files, whatever they lead to: one that is not listed was added.
        if path.is_symlink() or not path.is_dir()
    }
    # They are made after the list, and cannot be in it.
    apart = {SUMS, TOOL_ATTESTATION, RUN_FILE + ATTESTATION_SUFFIX}
    for name in sorted(there - listed.keys() - apart):
        yield f"{name!r} was added"
    for name, digest in listed.items():
        if name not in there:
            yield f"{name} is missing"
        elif sha256_hex(_read(directory / name, MOST_FILE_BYTES)) != digest:
            yield f"{name} was changed"


def _read(path: Path, most: int) -> bytes:
    return read_signed(path, TOOL, most)
