"""Sigstore bundles of artifacts: what is signed without a key, and what a bundle says.

The form is https://docs.sigstore.dev/about/bundle/, version 0.3. The statement is the one of CEP 27
(https://conda.org/learn/ceps/cep-0027): one subject with one SHA-256, and the channel that it was
published in. The subject is the artifact's manifest, which binds archive, lock and packages.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import msgspec

from envferry.base.json import decode_json
from envferry.base.sha256 import sha256_hex
from envferry.errors import IntegrityError
from envferry.trust.identities import Identity
from envferry.trust.statements import STATEMENT_TYPE, Subject

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from envferry.models import Manifest

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PUBLISHED = "https://schemas.conda.org/attestations-publish-1.schema.json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
MOST_BYTES = 1 << 20
"""Of a bundle: a hundred times what one has."""
ISSUER = "1.3.6.1.4.1.57264.1.8"
"""https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md"""
SIGN_HINT = "push it again with `--sigstore`; nothing is sent twice"


class Published(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The predicate of CEP 27."""

    target_channel: str
    """The registry's URL, without a slash at its end."""


class PublishStatement(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The statement of CEP 27."""

    type: str = msgspec.field(name="_type", default=STATEMENT_TYPE)
    subject: tuple[Subject, ...]
    predicate_type: str = PUBLISHED
    predicate: Published | None = None
    """None where the registry has no URL: a folder's path is private."""


class SignedStatement(msgspec.Struct, frozen=True, rename="camel"):
    """The envelope of a bundle: its signature has no key id, for the certificate has the key."""

    payload: str
    payload_type: str

    @property
    def body(self) -> bytes:
        """The statement; raises IntegrityError when it is not base64."""
        try:
            return base64.b64decode(self.payload, validate=True)
        except ValueError as error:
            message = "the statement of the Sigstore bundle is not base64"
            raise IntegrityError(message, hint=SIGN_HINT) from error


class _Certificate(msgspec.Struct, frozen=True, rename="camel"):
    raw_bytes: str


class _Material(msgspec.Struct, frozen=True, rename="camel"):
    certificate: _Certificate


class SigstoreBundle(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What we read of a bundle ourselves; sigstore's library reads, and verifies, all of it."""

    media_type: str
    dsse_envelope: SignedStatement
    verification_material: _Material


def publish_statement(manifest: Manifest, manifest_data: bytes, channel: str) -> bytes:
    """Return the statement to sign; `channel` is the URL of a registry, or a folder.

    `manifest_data` are the manifest's bytes as stored.
    """
    # The log is public: the path of a folder is not written into it.
    predicate = Published(target_channel=channel.rstrip("/")) if "://" in channel else None
    statement = PublishStatement(subject=(_subject(manifest, manifest_data),), predicate=predicate)
    return msgspec.json.encode(statement, order="sorted")


def decode_sigstore_bundle(data: bytes, what: str) -> SigstoreBundle:
    """Decode a bundle; raise IntegrityError unless it has the form of one that signs a statement.

    Nothing is verified: see `trust.keyless`.
    """
    if len(data) > MOST_BYTES:
        message = f"{what} has {len(data):,} bytes, expected at most {MOST_BYTES:,}"
        raise IntegrityError(message, hint=SIGN_HINT)
    try:
        found = decode_json(data, SigstoreBundle)
    except msgspec.MsgspecError as error:
        message = f"{what} is damaged: {error}"
        raise IntegrityError(message, hint=SIGN_HINT) from error
    if found.media_type != MEDIA_TYPE:
        message = f"{what} is not a Sigstore bundle of version 0.3: {found.media_type[:100]!r}"
        raise IntegrityError(message, hint=SIGN_HINT)
    return found


def require_published(
    body: bytes, payload_type: str, manifest: Manifest, manifest_data: bytes
) -> PublishStatement:
    """Return a bundle's statement; raise IntegrityError unless it is about this very artifact."""
    what = f"the Sigstore bundle of {manifest.stem}"
    try:
        statement = decode_json(body, PublishStatement)
    except msgspec.MsgspecError as error:
        message = f"the statement in {what} is damaged: {error}"
        raise IntegrityError(message, hint=SIGN_HINT) from error
    said = (payload_type, statement.type, statement.predicate_type)
    if said != (PAYLOAD_TYPE, STATEMENT_TYPE, PUBLISHED):
        message = f"{what} is not about publishing (CEP 27): {statement.predicate_type[:200]!r}"
        raise IntegrityError(message, hint=SIGN_HINT)
    wanted = _subject(manifest, manifest_data)
    # Exactly one: CEP 27 allows no other subject beside it.
    if statement.subject != (wanted,):
        found = ", ".join(f"{one.name} {one.digest}" for one in statement.subject)[:500]
        message = f"{what} is about another artifact: {found}; expected {wanted.name} with the"
        message += f" SHA-256 {wanted.digest['sha256']}"
        raise IntegrityError(
            message, hint="fetch it again; if the error repeats, it was tampered with"
        )
    return statement


def require_sound_bundle(data: bytes, what: str, manifest: Manifest, manifest_data: bytes) -> None:
    """Raise IntegrityError unless a bundle says that it is about this artifact."""
    envelope = decode_sigstore_bundle(data, what).dsse_envelope
    require_published(envelope.body, envelope.payload_type, manifest, manifest_data)


def is_sound_bundle(data: bytes, manifest: Manifest, manifest_data: bytes) -> bool:
    """Whether a bundle says that it is about this artifact."""
    try:
        require_sound_bundle(data, "the Sigstore bundle", manifest, manifest_data)
    except IntegrityError:
        return False
    return True


def claimed_identity(data: bytes, what: str) -> Identity:
    """Return whom a bundle's certificate names, for people to read: nothing is verified."""
    from cryptography import x509

    raw = decode_sigstore_bundle(data, what).verification_material.certificate.raw_bytes
    try:
        # Only read: whether a Sigstore issued it is for the library to say.
        certificate = x509.load_der_x509_certificate(base64.b64decode(raw))
        return Identity(identity=_subject_name(certificate), issuer=_issuer(certificate))
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        message = f"{what} has a damaged certificate: {error}"
        raise IntegrityError(message, hint=SIGN_HINT) from error


def _subject(manifest: Manifest, manifest_data: bytes) -> Subject:
    return Subject(f"{manifest.stem}.manifest.json", {"sha256": sha256_hex(manifest_data)})


def _subject_name(certificate: Certificate) -> str:
    """Return the first name of a certificate: a URL or a mail address."""
    from cryptography import x509

    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    # Fulcio writes workflows as a URI, people as a mail address.
    for kind in (x509.UniformResourceIdentifier, x509.RFC822Name):
        for name in names.get_values_for_type(kind):
            return str(name)
    return "another kind of name"


def _issuer(certificate: Certificate) -> str:
    """Return who vouches for the name: a UTF8String."""
    from cryptography import x509

    oid = x509.ObjectIdentifier(ISSUER)
    value = certificate.extensions.get_extension_for_oid(oid).value
    data = value.value if isinstance(value, x509.UnrecognizedExtension) else b""
    # From 128 bytes on, the length says how many bytes of length follow it (X.690, 8.1.3.5).
    more = data[1] & 0x7F if data[1:2] > b"\x80" else 0
    return data[2 + more :].decode()
