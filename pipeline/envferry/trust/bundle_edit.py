"""New versions of a trust bundle: keys added, keys and artifacts revoked, thresholds set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from envferry.base.times import rfc3339
from envferry.errors import UsageError
from envferry.trust.bundle import (
    PAYLOAD_TYPE,
    BundleFile,
    BundleKey,
    RevokedArtifact,
    RevokedKey,
    SignedBundle,
    TrustBundle,
    fault_of,
    open_bundle,
)
from envferry.trust.signing import seal, sign, signers

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from envferry.trust.bundle import Role
    from envferry.trust.signing import Envelope, SigningKey


def add_key(key: BundleKey) -> Callable[[TrustBundle], TrustBundle]:
    """Add a key, or give one that is there other roles and times."""
    id_ = key.public.id

    def change(bundle: TrustBundle) -> TrustBundle:
        # By id and not by name: a key that is listed twice would count twice.
        others = tuple(one for one in bundle.keys if one.public.id != id_)
        return msgspec.structs.replace(bundle, keys=(*others, key))

    return change


def revoke_key(id_: str, why: str, now: datetime) -> Callable[[TrustBundle], TrustBundle]:
    """Revoke a key, by its id; it stays in the bundle, for people to see."""

    def change(bundle: TrustBundle) -> TrustBundle:
        known = {key.public.id: key.name for key in bundle.keys}
        if id_ not in known:
            there = ", ".join(f"{one} ({name})" for one, name in known.items())
            message = f"no key of the trust bundle has the id {id_}: it has {there}"
            raise UsageError(message, hint="give one of these ids in full")
        others = tuple(one for one in bundle.revoked_keys if one.id != id_)
        revoked = RevokedKey(id=id_, why=why, time=rfc3339(now))
        return msgspec.structs.replace(bundle, revoked_keys=(*others, revoked))

    return change


def revoke_artifact(revoked: RevokedArtifact) -> Callable[[TrustBundle], TrustBundle]:
    """Revoke an artifact."""
    place = (revoked.name, revoked.platform, revoked.id)

    def change(bundle: TrustBundle) -> TrustBundle:
        others = tuple(
            one for one in bundle.revoked_artifacts if (one.name, one.platform, one.id) != place
        )
        return msgspec.structs.replace(bundle, revoked_artifacts=(*others, revoked))

    return change


def set_threshold(role: Role, least: int) -> Callable[[TrustBundle], TrustBundle]:
    """Say how many keys of a role must sign."""
    return lambda bundle: msgspec.structs.replace(
        bundle, thresholds={**bundle.thresholds, role: least}
    )


class BundleEditor(msgspec.Struct, frozen=True):
    """Who signs new versions, and when."""

    keys: tuple[SigningKey, ...]
    now: datetime

    def edited(
        self, before: SignedBundle | None, change: Callable[[TrustBundle], TrustBundle]
    ) -> SignedBundle:
        """Return the next version, signed; raise UsageError for one that no host could use."""
        old = before.bundle if before else TrustBundle(version=0, created="", keys=())
        new = msgspec.structs.replace(
            change(old), version=old.version + 1, created=rfc3339(self.now)
        )
        if fault := fault_of(new):
            message = f"the trust bundle would not work: {fault}"
            hint = "a first bundle needs a key with --role root; thresholds need as many keys"
            raise UsageError(message, hint=hint)
        # The old ones as well: they have to sign the version that replaces them.
        roots = (*new.keys_for("root", self.now), *old.keys_for("root", self.now))
        if not {key.public.id for key in self.keys} & {key.id for key in roots}:
            message = "none of the keys that sign is a root key of the trust bundle"
            raise UsageError(message, hint="give --sign-key with a root key")
        # Thresholds are a dictionary: equal bundles must be equal bytes to sign.
        body = msgspec.json.encode(new, order="deterministic")
        envelope = seal(PAYLOAD_TYPE, body, self.keys)
        return SignedBundle(new, BundleFile(bundle=envelope, history=_history(before)))

    def countersigned(self, signed: SignedBundle) -> SignedBundle:
        """Add the signatures of keys that have not signed this version yet."""
        envelope = signed.file.bundle
        public = tuple(key.public for key in self.keys)
        have = {key.id for key in signers(envelope.message, envelope.signatures, public)}
        # Over the bytes as they are: encoded again they might differ and void other signatures.
        fresh = sign(envelope.message, (key for key in self.keys if key.public.id not in have))
        envelope = msgspec.structs.replace(envelope, signatures=(*envelope.signatures, *fresh))
        return SignedBundle(signed.bundle, msgspec.structs.replace(signed.file, bundle=envelope))


def _history(before: SignedBundle | None) -> tuple[Envelope, ...]:
    """Return the versions that lead to the next one: those in which the root keys changed."""
    if before is None:
        return ()
    history = before.file.history
    # The last one there has the same root keys: it leads to the next version just as well.
    if history and _roots(open_bundle(history[-1], "its history")) == _roots(before.bundle):
        return history
    return (*history, before.file.bundle)


def _roots(bundle: TrustBundle) -> object:
    """Return what decides who may sign bundles."""
    keys = [(key.pem, key.not_before, key.expires) for key in bundle.keys if "root" in key.roles]
    return sorted(keys), bundle.threshold("root"), sorted(bundle.revoked_ids)
