"""Signatures of images: a mounted image runs code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.base.sha256 import sha256_of_file
from envferry.errors import NotFound
from envferry.trust.signed_files import (
    SignedFile,
    StatementKind,
    attest_file,
    attestation_of,
    verify_file,
)
from envferry.trust.statements import Subject

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.trust.attestations import VerifiedArtifact
    from envferry.trust.signing import PublicKey, Signer

IMAGE = StatementKind(
    predicate="urn:envferry:image:1",
    again="do not mount it: make it again with `envferry image REF FILE --sign-key KEY`",
    expected="name an image that `envferry image` wrote",
)
NAME = "image.squashfs"
"""What a statement calls an image, whatever the file is called."""


def attest_image(path: Path, signer: Signer) -> bytes:
    """Return the signed statement about an image; reads all of it."""
    return attest_file(_subject(path), IMAGE, signer)


def verify_image(
    path: Path, keys: tuple[PublicKey, ...], *, of: Path | None = None, least: int = 1
) -> VerifiedArtifact:
    """Check that `least` of `keys` signed an image; reads all of it. Raises IntegrityError if not.

    `of` is the image that it is a copy of, which has the statement beside it.
    """
    signed = SignedFile(str(of or path), _subject(path), attestation_of(of or path))
    return verify_file(signed, IMAGE, keys, least=least)


def _subject(path: Path) -> Subject:
    try:
        return Subject(NAME, {"sha256": sha256_of_file(path)})
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise NotFound(message, hint=IMAGE.expected) from error
