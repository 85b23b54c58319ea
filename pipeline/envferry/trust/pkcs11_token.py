"""Ed25519 keys in a PKCS #11 token: an HSM, a smart card, a YubiHSM, SoftHSM.

Named by a URI of RFC 7512: `pkcs11:token=release;object=envferry?module-path=/usr/lib/….so`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import msgspec

from envferry.errors import HostError, NotFound, UsageError
from envferry.trust.passphrases import read_passphrase
from envferry.trust.signing import SigningKey, public_key_of

if TYPE_CHECKING:
    from envferry.trust.passphrases import PassphrasePrompt

SCHEME = "pkcs11:"
HINT = "pkcs11:token=LABEL;object=LABEL?module-path=/path/to/module.so (RFC 7512)"
PATH_ATTRIBUTES = ("token", "serial", "object", "id", "type")
QUERY_ATTRIBUTES = ("module-path", "pin-source")
POINT_BYTES = 32
PIN = re.compile(r"\bpin([-_]?value)?=", re.IGNORECASE)
"""How users write a PIN into a URI, in its right place or not."""


class TokenUri(msgspec.Struct, frozen=True):
    """Which key of which token, by which module."""

    module: str
    """The shared library of the token's maker."""
    token: str = ""
    serial: str = ""
    label: str = ""
    id: bytes = b""
    pin_source: str = ""
    """A file that holds the PIN."""

    @classmethod
    def parse(cls, text: str) -> TokenUri:
        """Parse a URI; raise UsageError for one that does not say enough, or says a PIN."""
        if PIN.search(text):
            # Every user can list what is on a command line: no message repeats it.
            message = "a PIN does not belong on a command line (pin-value)"
            hint = "leave it out to be asked, or name a file: pin-source="
            raise UsageError(message, hint=hint)
        # RFC 7512, 2.3: `;` separates the attributes of the path, `&` those of the query.
        path, _, query = text.removeprefix(SCHEME).partition("?")
        said = _attributes(path, ";", PATH_ATTRIBUTES, text)
        said |= _attributes(query, "&", QUERY_ATTRIBUTES, text)
        if not said.get("module-path") or not (said.get("object") or said.get("id")):
            message = f"{text} does not say which key: module-path, and object or id, are needed"
            raise UsageError(message, hint=HINT)
        source = urlsplit(unquote(said.get("pin-source", "")))
        return cls(
            module=unquote(said["module-path"]),
            token=unquote(said.get("token", "")),
            serial=unquote(said.get("serial", "")),
            label=unquote(said.get("object", "")),
            id=unquote_to_bytes(said.get("id", "")),
            pin_source=source.path,
        )


class TokenKey(msgspec.Struct, frozen=True):
    """A private key that never leaves its token."""

    key: Any
    mechanism: Any
    what: str

    def sign(self, message: bytes) -> bytes:
        """Return the token's signature; raise HostError when it makes none."""
        from pkcs11.exceptions import PKCS11Error

        try:
            return bytes(self.key.sign(message, mechanism=self.mechanism))
        except PKCS11Error as error:
            message_ = f"{self.what} did not sign: {_name(error)}"
            raise HostError(message_, hint="is the token still there?") from error


def open_token_key(name: str, ask: PassphrasePrompt) -> SigningKey:
    """Log in to a token and find the key that a URI names; the session lasts as this process does.

    The PIN is asked for once: after a few wrong ones a token locks itself. Raises UsageError for a
    URI that is wrong and without python-pkcs11, NotFound for a token or key that is not there,
    HostError for a module or token that does not work.
    """
    wanted = TokenUri.parse(name)
    try:
        from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
        from pkcs11.exceptions import PKCS11Error
    except ImportError as error:
        message = "keys in PKCS #11 tokens need python-pkcs11, which is not installed"
        raise UsageError(message, hint='run `pip install "envferry[pkcs11]"`') from error
    what = wanted.label or wanted.id.hex()
    pin = _read_pin(wanted.pin_source) if wanted.pin_source else ""
    try:
        # In many tokens a private key is invisible before the login.
        session = _log_in(_find_token(wanted), pin, ask)
        which = {"label": wanted.label or None, "id": wanted.id or None}
        private = session.get_key(
            object_class=ObjectClass.PRIVATE_KEY, key_type=KeyType.EC_EDWARDS, **which
        )
        public = session.get_key(
            object_class=ObjectClass.PUBLIC_KEY, key_type=KeyType.EC_EDWARDS, **which
        )
        # Tokens give the 32 bytes bare or in a DER string: the point is the end of both.
        point = bytes(public[Attribute.EC_POINT])[-POINT_BYTES:]
    except PKCS11Error as error:
        raise _explain(error, what, wanted) from error
    return SigningKey(
        public=public_key_of(point, name), key=TokenKey(private, Mechanism.EDDSA, what)
    )


def _find_token(wanted: TokenUri) -> Any:  # noqa: ANN401  (the library has no types)
    import pkcs11

    module = pkcs11.lib(wanted.module)
    # None matches every token; python-pkcs11 compares serials as bytes.
    serial = wanted.serial.encode() or None
    return module.get_token(token_label=wanted.token or None, token_serial=serial)


def _log_in(token: Any, pin: str, ask: PassphrasePrompt) -> Any:  # noqa: ANN401
    """Open a session; of a token whose other key this process has opened, in the same login."""
    from pkcs11.exceptions import UserAlreadyLoggedIn

    try:
        return token.open(user_pin=pin or ask(f"the token {token.label}"))
    except UserAlreadyLoggedIn:
        # A login counts for all sessions of a process with a token (PKCS #11, C_Login).
        return token.open()


def _read_pin(path: str) -> str:
    """Return the PIN in a file; raise UsageError for an empty one: no other PIN is tried."""
    pin = read_passphrase(Path(path), "correct pin-source=")
    if not pin:
        message = f"the file of the PIN, {path}, is empty"
        raise UsageError(message, hint="its first line is the PIN")
    return pin


def _attributes(part: str, separator: str, known: tuple[str, ...], text: str) -> dict[str, str]:
    """Split one part of a URI into its attributes; raise UsageError for one that is unknown."""
    pairs = [one.partition("=") for one in part.split(separator) if one]
    names = [name for name, _, _ in pairs]
    if unknown := [name for name in names if name not in known]:
        message = f"{text}: {unknown[0]} is not one of {', '.join(known)}"
        raise UsageError(message, hint=HINT)
    return {name: value for name, _, value in pairs}


def _explain(error: Exception, what: str, wanted: TokenUri) -> UsageError | NotFound | HostError:
    """Say what is wrong with a token in our words."""
    from pkcs11 import exceptions

    if isinstance(error, exceptions.NoSuchToken):
        message = f"{wanted.module} has no token {wanted.token or wanted.serial}".rstrip()
        return NotFound(message, hint="`pkcs11-tool --list-token-slots` lists them")
    if isinstance(error, exceptions.NoSuchKey):
        message = f"the token has no Ed25519 key {what}, or not both of its halves"
        return NotFound(message, hint="`pkcs11-tool --login --list-objects` lists them")
    if isinstance(error, exceptions.MultipleObjectsReturned | exceptions.MultipleTokensReturned):
        message = f"{wanted.module}: more than one token or key fits"
        return UsageError(message, hint="add token=, serial= or id= to the URI")
    if isinstance(error, exceptions.PinIncorrect | exceptions.PinLenRange):
        message = f"the PIN of the token with {what} is wrong"
        # Never tried again by itself: tokens count wrong PINs.
        return UsageError(message, hint="it was tried once; too many wrong ones lock the token")
    if isinstance(error, exceptions.PinLocked):
        message = f"the token with {what} is locked: too many wrong PINs"
        return HostError(message, hint="its security officer unlocks it")
    return HostError(f"PKCS #11: {_name(error)}", hint=f"does {wanted.module} work? {HINT}")


def _name(error: Exception) -> str:
    """Return the class of an error, which PKCS #11's have instead of a text, and the text."""
    return f"{type(error).__name__} {error}".rstrip()
