"""Ed25519 keys, and DSSE envelopes signed with them.

Envelopes: https://github.com/secure-systems-lab/dsse/blob/master/envelope.md
`cryptography` is imported only where a key is used: a host without keys never loads it.
"""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec
from blake3 import blake3

from envferry.base.file_owners import may_everybody_change
from envferry.base.inputs import MOST_KEY_BYTES, read_input
from envferry.errors import HostError, IntegrityError, NotFound, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

    from envferry.trust.passphrases import PassphrasePrompt

PUBLIC_SUFFIX = ".pub"
NO_KEYS_DIR = Path(os.devnull)
"""Set as the directory of trusted keys, it says that this host has none."""
KEY_ID_DIGITS = 16
OPENSSH = b"-----BEGIN OPENSSH PRIVATE KEY-----"
MOST_SIGNATURES = 64
"""More in one envelope is an attempt to keep a host busy."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that signatures are checked with."""

    name: str
    """Where it came from, for messages."""
    id: str
    # The id is a digest of the key, so comparing it is enough.
    key: Ed25519PublicKey = field(repr=False, compare=False)


class KeyHolder(Protocol):
    """Whoever has a private key: this process, an ssh-agent (`ssh_agent.py`), a PKCS #11 token."""

    def sign(self, message: bytes, /) -> bytes:
        """Return the 64 bytes of an Ed25519 signature (RFC 8032, pure); raise HostError."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs; its repr holds no secret."""

    public: PublicKey
    key: KeyHolder = field(repr=False, compare=False)


class Signer(msgspec.Struct, frozen=True, kw_only=True):
    """Whoever pushes, with the keys and with what the provenance says of it."""

    keys: tuple[SigningKey, ...]
    who: str
    """USER@HOST, or what CI calls itself."""
    time: str
    """Now, in RFC 3339."""
    tags_expire: str = ""
    """When the tags that it moves expire, in RFC 3339; empty for never."""


class Signature(msgspec.Struct, frozen=True):
    """One signature of an envelope."""

    keyid: str
    """A hint which key made it; proves nothing."""
    sig: str
    """The 64 bytes in base64."""


class Envelope(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Signed bytes and what kind of bytes they are."""

    payload_type: str
    payload: str
    """The bytes in base64."""
    signatures: tuple[Signature, ...]

    @property
    def body(self) -> bytes:
        """The signed bytes; raises IntegrityError when they are not base64."""
        return _decode(self.payload, "the payload of the envelope")

    @property
    def message(self) -> bytes:
        """What the signatures are over."""
        return pre_authentication_encoding(self.payload_type, self.body)


def generate_key(passphrase: str = "") -> tuple[bytes, bytes]:
    """Return a new private key (PKCS #8) and its public key (SubjectPublicKeyInfo), both in PEM.

    With a passphrase the private key is encrypted (PBES2, AES-256-CBC).
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase.encode())
        if passphrase
        else serialization.NoEncryption(),
    )
    return private, pem_of(key.public_key())


def pem_of(key: Ed25519PublicKey) -> bytes:
    """Return a public key as `NAME.pub` has it."""
    from cryptography.hazmat.primitives import serialization

    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def parse_signing_key(pem: bytes, what: str, ask: PassphrasePrompt | None = None) -> SigningKey:
    """Read a private key; `what` names it in errors, which never hold a part of it.

    `ask` is asked for the passphrase of an encrypted one. Raises UsageError.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        # Without a passphrase first: a key that has none must not ask for one.
        key = _load_private(pem, None)
    except TypeError:  # it is encrypted
        if ask is None:
            raise _no_key(what, "an unencrypted private key in PEM") from None
        key = _unlock(pem, what, ask)
    if key is None and pem.lstrip().startswith(OPENSSH):
        message = f"{what} is a key in OpenSSH's own format"
        hint = "load it into an ssh-agent with `ssh-add`, and name it: --sign-key ssh:KEY.pub"
        raise UsageError(message, hint=hint)
    if key is None:
        raise _no_key(what, "a private key in PEM")
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(what, "an Ed25519 key")
    return SigningKey(public=_public_key(key.public_key(), what), key=key)


def _load_private(pem: bytes, passphrase: bytes | None) -> PrivateKeyTypes | None:
    """Load a key; None for anything else, TypeError for a key that needs a passphrase.

    Without the causes: their texts could repeat what could not be read.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        # cryptography raises TypeError where a passphrase is missing, or given for a plain key.
        return load_pem_private_key(pem, password=passphrase)
    except (ValueError, UnsupportedAlgorithm):
        return None


def _unlock(pem: bytes, what: str, ask: PassphrasePrompt) -> PrivateKeyTypes:
    """Decrypt a key; raise UsageError when the passphrase does not."""
    try:
        key = _load_private(pem, ask(what).encode())
    except TypeError:  # an empty one
        key = None
    if key is None:
        message = f"the passphrase does not unlock {what}"
        hint = "type it again, or correct ENVFERRY_KEY_PASSPHRASE or its file"
        raise UsageError(message, hint=hint)
    return key


def parse_public_key(pem: bytes, what: str) -> PublicKey:
    """Read a public key; `what` names it in errors."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise _no_key(what, "a public key in PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(what, "an Ed25519 key")
    return _public_key(key, what)


def public_key_of(raw: bytes, what: str) -> PublicKey:
    """Return the key of 32 bytes, as agents and tokens have it; raise HostError for others."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        return _public_key(Ed25519PublicKey.from_public_bytes(raw), what)
    except ValueError as error:
        message = f"{what} has a public key that is not Ed25519"
        raise HostError(message, hint="make one of that kind; no other signs") from error


def read_signing_key(path: Path, ask: PassphrasePrompt | None = None) -> SigningKey:
    """Read a private key from a file; `ask` is asked for its passphrase."""
    return parse_signing_key(_read(path, "signing key"), str(path), ask)


def read_trusted_keys(
    directory: Path, files: Iterable[Path] = (), *, set_by: str = ""
) -> tuple[PublicKey, ...]:
    """Read all `*.pub` in a directory, and further key files.

    A key that cannot be read is an error and not one key fewer: a host must not come to trust
    everything because its keys were damaged. Without any in `files`, so is a directory that holds
    no key, and one that does not exist although a setting names it (`set_by` says which). With
    /dev/null as the directory, no keys are wanted. Raises UsageError, and NotFound for a key file
    that is missing.
    """
    named = tuple(files)
    there = _list_keys_dir(directory)
    if there is None and set_by and not named and directory != NO_KEYS_DIR:
        message = f"{set_by} names {directory} for trusted keys, but it does not exist"
        hint = f"correct it, or put NAME.pub there; {NO_KEYS_DIR} accepts what is unsigned"
        raise UsageError(message, hint=hint)
    paths = [path for path in there or () if path.suffix == PUBLIC_SUFFIX]
    if there is not None and not (paths or named):
        found = ", ".join(path.name for path in there[:5]) or "nothing"
        message = f"{directory} holds no public key: expected files named *.pub, found {found}"
        hint = "copy the keys there as NAME.pub, or remove the directory to accept what is unsigned"
        raise UsageError(message, hint=hint)
    for path in (*paths, *named):
        refuse_world_writable(path, "trusted key")
    keys = [parse_public_key(_read(path, "trusted key"), str(path)) for path in (*paths, *named)]
    # One key in two files is one signer: thresholds count keys.
    return tuple({key.id: key for key in keys}.values())


def _list_keys_dir(directory: Path) -> list[Path] | None:
    """Return what is in the directory of trusted keys; None when it does not exist.

    A link that leads nowhere, a file, or a directory that cannot be read was meant to hold keys.
    """
    if directory == NO_KEYS_DIR:
        return None
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError as error:
        # A link of any folder above may be the one that leads nowhere.
        broken = [path for path in (directory, *directory.parents) if path.is_symlink()]
        broken = [path for path in broken if not path.exists()]
        if not broken:
            return None
        message = f"cannot read the trusted keys in {directory}: {broken[-1]} is a dangling link"
        raise UsageError(message, hint=f"correct or remove the link {broken[-1]}") from error
    except OSError as error:
        message = f"cannot read the trusted keys in {directory}: {error.strerror}"
        hint = f"check that {directory} is a directory, and its permissions"
        raise UsageError(message, hint=hint) from error


def refuse_world_writable(path: Path, what: str) -> None:
    """Raise UsageError for a file of trust that every user can change or replace."""
    try:
        reason = may_everybody_change(path) if path.exists() else ""
    except OSError as error:
        message = f"cannot read the {what} {path}: {error.strerror}"
        raise UsageError(message, hint=f"check the permissions of {path.parent}") from error
    if reason:
        message = f"the {what} {path} is refused: it {reason}"
        hint = f"run `chmod go-w` on it and on {path.parent}, and check that it is the right one"
        raise UsageError(message, hint=hint)


def seal(payload_type: str, body: bytes, keys: Iterable[SigningKey]) -> Envelope:
    """Sign bytes with each key."""
    message = pre_authentication_encoding(payload_type, body)
    return Envelope(
        payload_type=payload_type,
        payload=base64.b64encode(body).decode(),
        signatures=sign(message, keys),
    )


def sign(message: bytes, keys: Iterable[SigningKey]) -> tuple[Signature, ...]:
    """Return each key's signature of a message.

    Raises HostError when who holds a key makes a signature that the key does not verify.
    """
    found = []
    for key in keys:
        raw = key.key.sign(message)
        one = Signature(keyid=key.public.id, sig=base64.b64encode(raw).decode())
        # A faulty token must not publish what every host refuses.
        if not _is_by(key.public, message, one):
            text = f"what {key.public.name} signed does not verify with its own public key"
            raise HostError(text, hint="nothing was written; the token or agent is at fault")
        found.append(one)
    return tuple(found)


def signers(
    message: bytes, signatures: Iterable[Signature], keys: Iterable[PublicKey]
) -> tuple[PublicKey, ...]:
    """Return those of `keys` that signed the message."""
    # By the signature and not by its keyid, which proves nothing (DSSE).
    found = tuple(signatures)[:MOST_SIGNATURES]
    return tuple(key for key in keys if any(_is_by(key, message, one) for one in found))


def pre_authentication_encoding(payload_type: str, body: bytes) -> bytes:
    """Join type and body so that no other pair gives the same bytes (DSSE, protocol)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(body), body)


def _is_by(key: PublicKey, message: bytes, signature: Signature) -> bool:
    from cryptography.exceptions import InvalidSignature

    # Only to spare a verification for each pair of key and signature: the id proves nothing.
    if signature.keyid != key.id:
        return False
    try:
        key.key.verify(_decode(signature.sig, "a signature"), message)
    except (InvalidSignature, IntegrityError):
        return False
    return True


def _public_key(key: Ed25519PublicKey, name: str) -> PublicKey:
    return PublicKey(
        name=name, id=blake3(key.public_bytes_raw()).hexdigest()[:KEY_ID_DIGITS], key=key
    )


def _read(path: Path, what: str) -> bytes:
    try:
        return read_input(path, MOST_KEY_BYTES)
    except FileNotFoundError as error:
        hint = "run `envferry keygen NAME` to make a pair"
        msg = f"the {what} {path} does not exist"
        raise NotFound(msg, hint=hint) from error
    except OSError as error:
        message = f"cannot read the {what} {path}: {error.strerror}"
        raise UsageError(message, hint=f"check the permissions of {path}") from error


def _no_key(what: str, expected: str) -> UsageError:
    hint = "`envferry keygen NAME` makes NAME.key, which signs, and NAME.pub, which checks"
    return UsageError(f"{what} does not hold {expected}", hint=hint)


def _decode(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        message = f"{what} is not base64"
        raise IntegrityError(message, hint="fetch it again") from error
