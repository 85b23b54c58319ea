"""The trust bundle: one signed, versioned file that says who may sign what, and what is revoked.

A DSSE envelope, with the earlier ones in which the root keys changed: so a host that has seen
version 2 can follow to version 9. Each version is signed by the root keys of the one before it and
by its own, as TUF has it (https://theupdateframework.github.io/specification/latest/#key-rotation).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from envferry.base.inputs import read_input
from envferry.base.json import decode_json, to_json
from envferry.base.times import read_time
from envferry.errors import IntegrityError, NotFound, PipelineError, SpecError, UsageError
from envferry.trust.signing import Envelope, PublicKey, parse_public_key, signers

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

Role = Literal["root", "release", "tag", "tool", "database"]
ROLES: tuple[Role, ...] = ("root", "release", "tag", "tool", "database")
PAYLOAD_TYPE = "application/vnd.envferry.trust+json"
BUNDLE_NAME = "trust.json"
SCHEMA = 1
MOST_BYTES = 16 << 20
MOST_VERSIONS = 1000
HINT = "get it again from the person who signs for the site; do not use this one"


class BundleKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key, and what it may sign."""

    name: str
    pem: str
    roles: tuple[Role, ...]
    not_before: str = ""
    expires: str = ""

    @property
    def public(self) -> PublicKey:
        """The key itself."""
        return parse_public_key(self.pem.encode(), self.name)

    def is_valid(self, now: datetime) -> bool:
        """Whether it may sign at this time."""
        # None is an empty text: `fault_of` has refused all others that are not times.
        begins, ends = read_time(self.not_before), read_time(self.expires)
        return (begins is None or begins <= now) and (ends is None or now <= ends)


class RevokedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key that counts no more, whatever signed it."""

    id: str
    why: str
    time: str


class RevokedArtifact(msgspec.Struct, frozen=True, kw_only=True):
    """An artifact that no host may install, whoever signed it."""

    name: str
    platform: str
    id: str
    why: str
    time: str


class TrustBundle(msgspec.Struct, frozen=True, kw_only=True):
    """What a site trusts."""

    version: int
    created: str
    keys: tuple[BundleKey, ...]
    # msgspec gives each value a copy of an empty default.
    thresholds: dict[Role, int] = {}
    """How many keys must sign; one where it does not say."""
    revoked_keys: tuple[RevokedKey, ...] = ()
    revoked_artifacts: tuple[RevokedArtifact, ...] = ()
    schema: int = SCHEMA

    def threshold(self, role: Role) -> int:
        """Return how many keys of a role must sign."""
        return self.thresholds.get(role, 1)

    def keys_for(self, role: Role, now: datetime) -> tuple[PublicKey, ...]:
        """Return the keys that may sign as this now: neither revoked nor out of their time."""
        gone = self.revoked_ids
        found = (key.public for key in self.keys if role in key.roles and key.is_valid(now))
        return tuple({key.id: key for key in found if key.id not in gone}.values())

    @property
    def revoked_ids(self) -> frozenset[str]:
        """The ids of the revoked keys."""
        return frozenset(one.id for one in self.revoked_keys)

    def revocation(self, name: str, platform: str, id_: str) -> RevokedArtifact | None:
        """Return why an artifact is revoked; None for one that is not."""
        wanted = (name, platform, id_)
        return next(
            (one for one in self.revoked_artifacts if (one.name, one.platform, one.id) == wanted),
            None,
        )


class BundleFile(msgspec.Struct, frozen=True, kw_only=True):
    """The file: the bundle, and the versions before it that changed who may sign bundles."""

    bundle: Envelope
    history: tuple[Envelope, ...] = ()
    schema: int = SCHEMA


class SignedBundle(msgspec.Struct, frozen=True):
    """A bundle with its file."""

    bundle: TrustBundle
    file: BundleFile

    def to_bytes(self) -> bytes:
        """Return the file."""
        return to_json(self.file)


def decode_bundle(data: bytes, what: str) -> SignedBundle:
    """Decode a bundle file; who signed it is another question.

    Raises IntegrityError for one that is damaged, SpecError for one of a newer envferry.
    """
    try:
        file = decode_json(data, BundleFile)
    except msgspec.MsgspecError as error:
        message = f"{what} is not a trust bundle, or is damaged: {error}"
        raise IntegrityError(message, hint=HINT) from error
    if len(file.history) > MOST_VERSIONS:
        message = f"{what} has a history of {len(file.history)} versions"
        raise IntegrityError(message, hint=HINT)
    return SignedBundle(open_bundle(file.bundle, what), file)


def read_bundle(path: Path) -> SignedBundle:
    """Read a bundle file as `decode_bundle` does; raise NotFound or UsageError as well."""
    try:
        data = read_input(path, MOST_BYTES)
    except FileNotFoundError as error:
        message = f"the trust bundle {path} does not exist"
        raise NotFound(
            message, hint="`envferry trust add KEY.pub --role root` makes one"
        ) from error
    except OSError as error:
        message = f"cannot read the trust bundle {path}: {error.strerror}"
        raise UsageError(message, hint="check its permissions, and that it is a file") from error
    return decode_bundle(data, f"the trust bundle {path}")


def follow_to(
    signed: SignedBundle, known: TrustBundle | None, anchors: tuple[PublicKey, ...], now: datetime
) -> TrustBundle:
    """Return a new bundle, when what is known leads to it: key by key, version by version.

    `known` is the bundle that the host has; without one, a key of `anchors` must have signed one of
    the versions in the file. Raises IntegrityError otherwise, and for one that goes back.
    """
    what = f"trust bundle {signed.bundle.version}"
    if known is not None:
        _forbid_older(signed.bundle, known)
    chain = [
        (envelope, open_bundle(envelope, what))
        for envelope in (*signed.file.history, signed.file.bundle)
    ]
    versions = [bundle.version for _, bundle in chain]
    # Else the loop below would skip the last one, unverified, as older than one before it.
    if versions != sorted(set(versions)):
        message = f"{what}: its versions are out of order"
        raise IntegrityError(message, hint=HINT)
    before = known
    for envelope, bundle in chain[_start(chain, anchors, what) if known is None else 0 :]:
        # Accepted once: the root keys that signed it may have ended since.
        if before is not None and bundle.version <= before.version:
            continue
        if before is not None:
            _require_signed(envelope, before, f"trust bundle {bundle.version}", now)
        # By its own root keys, too: they are who must sign the next version.
        _require_signed(envelope, bundle, f"trust bundle {bundle.version}", now)
        before = bundle
    return signed.bundle


def _start(
    chain: list[tuple[Envelope, TrustBundle]], anchors: tuple[PublicKey, ...], what: str
) -> int:
    """Return the place of the newest version that one of the anchors signed."""
    signed = [
        number
        for number, (envelope, _) in enumerate(chain)
        if signers(envelope.message, envelope.signatures, anchors)
    ]
    if not signed:
        message = f"{what}: none of the keys that this host trusts signed any version of it"
        raise IntegrityError(message, hint="name one with --trusted-key, after a check by hand")
    # The versions before it need no proof: the anchor vouches for this one.
    return signed[-1]


def _forbid_older(new: TrustBundle, known: TrustBundle) -> None:
    if new.version < known.version or (new.version == known.version and new != known):
        message = (
            f"trust bundle {new.version} is older, or from another history, than version "
            f"{known.version} of this host"
        )
        raise IntegrityError(
            message, hint="get the newest one from the person who signs for the site"
        )


def _require_signed(envelope: Envelope, by: TrustBundle, what: str, now: datetime) -> None:
    """Raise IntegrityError unless enough root keys of a bundle, valid now, signed an envelope.

    A time that the envelope says itself would let a key that has expired sign with an older one.
    """
    roots = by.keys_for("root", now)
    found = signers(envelope.message, envelope.signatures, roots)
    least = by.threshold("root")
    if len(found) < least:
        message = (
            f"{what} is signed by {len(found)} root keys that are valid now, and version"
            f" {by.version} asks for {least}"
        )
        raise IntegrityError(message, hint=HINT)


def open_bundle(envelope: Envelope, what: str) -> TrustBundle:
    """Decode a payload, and see that it is one that a host can use; raise IntegrityError if not."""
    # DSSE signs the type as well: another statement by the same keys is not taken for a bundle.
    if envelope.payload_type != PAYLOAD_TYPE:
        message = f"{what} holds something else: {envelope.payload_type[:60]}"
        raise IntegrityError(message, hint=HINT)
    try:
        bundle = decode_json(envelope.body, TrustBundle)
    except msgspec.MsgspecError as error:
        message = f"{what} is damaged: {error}"
        raise IntegrityError(message, hint=HINT) from error
    if bundle.schema != SCHEMA:
        message = f"{what} has schema {bundle.schema}, this envferry reads schema {SCHEMA}"
        raise SpecError(message, hint="install a newer envferry")
    if fault := fault_of(bundle):
        message = f"{what} cannot be used: {fault}"
        raise IntegrityError(message, hint=HINT)
    return bundle


def fault_of(bundle: TrustBundle) -> str:
    """Say what is wrong with a bundle; nothing if a host can use it."""
    ids: list[str] = []
    for key in bundle.keys:
        for text in filter(None, (key.not_before, key.expires)):
            if read_time(text) is None:
                return f"the key {key.name} has {text!r} as a time"
        try:
            ids.append(key.public.id)
        except PipelineError as error:
            return error.message
    if len(set(ids)) != len(ids):
        return "it lists a key twice, which would count twice"
    for role in ROLES:
        least = bundle.threshold(role)
        having = {
            id_ for id_, key in zip(ids, bundle.keys, strict=True) if role in key.roles
        } - bundle.revoked_ids
        # A role without keys may demand any number: nothing can be signed as it. Bundles
        # themselves need a root.
        if least < 1 or (having and least > len(having)) or (role == "root" and not having):
            return f"{role} asks for {least} keys of {len(having)}"
    return "" if bundle.version >= 1 else f"its version is {bundle.version}"
