"""What a host accepts: artifacts and tags that its keys signed, and no way back to an old tag."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import msgspec

from envferry.base.files import make_folders, write_bytes
from envferry.base.json import from_json, to_json
from envferry.base.times import parse_time, rfc3339
from envferry.config import TRUSTED_DIR
from envferry.errors import IntegrityError
from envferry.models import TagRecord
from envferry.names import SEEN_DIRECTORY
from envferry.trust.attestations import (
    require_described,
    require_enough,
    unsigned,
    verify_attestation,
)
from envferry.trust.identities import Identities
from envferry.trust.image_signature import verify_image
from envferry.trust.signed_tags import tag_message
from envferry.trust.signing import signers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envferry.archive.index import Index
    from envferry.artifacts import Proof
    from envferry.models import Manifest
    from envferry.trust.attestations import VerifiedArtifact
    from envferry.trust.bundle import Role, TrustBundle
    from envferry.trust.signed_clock import SignedClock
    from envferry.trust.signed_tags import SignedTagRecord, TagName
    from envferry.trust.signing import PublicKey

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Whom a host trusts, and what it has seen; without any it accepts everything."""

    keys: tuple[PublicKey, ...] = ()
    keys_dir: Path = TRUSTED_DIR
    """Where keys are looked for; warnings name it."""
    envs_dir: Path | None = None
    """Where the host remembers tags; None for who installs nothing."""
    allow_downgrade: bool = False
    """Accept a tag that was moved back, and remember that."""
    bundle: TrustBundle | None = None
    """Says which of the keys may sign what; without one, each of them may sign everything."""
    named_keys: tuple[PublicKey, ...] = ()
    """Those that the command line names: they may sign everything, unless they are revoked."""
    clock: SignedClock | None = None
    identities: Identities = field(default_factory=Identities)
    """One of them must have signed each artifact, besides the keys; tags are for keys."""
    grace: timedelta = timedelta()
    """How long a tag is taken after it has expired, with a warning."""
    accepted: dict[str, tuple[str, ...]] = field(default_factory=dict, compare=False)
    """Who signed the artifacts that were let in, by their stems."""
    verified: dict[tuple[Proof, Identities], VerifiedArtifact] = field(
        default_factory=dict, compare=False
    )
    """What identities were found to have signed: that takes a process each."""

    def keys_for(self, role: Role) -> tuple[PublicKey, ...]:
        """Return the keys that may sign as this, now."""
        if self.bundle is None:
            return self.keys
        named = (key for key in self.named_keys if key.id not in self.bundle.revoked_ids)
        found = (*self.bundle.keys_for(role, self.now), *named)
        return tuple({key.id: key for key in found}.values())

    def least_for(self, role: Role) -> int:
        """Return how many of them must sign."""
        return self.bundle.threshold(role) if self.bundle else 1

    @property
    def now(self) -> datetime:
        """The time by this machine's clock, or by a newer record that it has seen."""
        return self.clock.now if self.clock else datetime.now(timezone.utc)

    @property
    def if_any(self) -> Trust | None:
        """This, or None where no signer is trusted."""
        return self if self.keys or self.identities else None

    @property
    def asks_release_keys(self) -> bool:
        """Whether artifacts must be signed by keys.

        Not where identities sign them, and the trust bundle has no key for that, of whatever time.
        """
        if not (self.identities and self.bundle) or self.named_keys:
            return bool(self.keys)
        return any("release" in key.roles for key in self.bundle.keys)

    def check_artifact(self, manifest: Manifest, proof: Proof) -> None:
        """Raise IntegrityError unless those who are trusted signed this artifact.

        Warns where no key is trusted.
        """
        if self.if_any is None:
            self._warn(manifest.stem)
            return
        verified = self.verify_artifact(manifest, proof)
        if self.clock:
            # Only now: a time that no trusted key has signed must not move the clock.
            self.clock.see(verified.time, f"the signature of {manifest.stem}")
        known = set(map(str, self.identities.accepted))
        # The ids of keys alone, without their files: this goes into the installation's record.
        self.accepted[manifest.stem] = tuple(
            one if one in known else one.split()[0] for one in verified.signed_by
        )
        log.info("%s is signed by %s", verified.artifact, ", ".join(verified.signed_by))

    def verify_artifact(self, manifest: Manifest, proof: Proof) -> VerifiedArtifact:
        """Return who signed an artifact; raise IntegrityError unless all did who have to.

        Both are asked for where both are trusted: who forges has no weaker one to choose.
        """
        # Before the signatures: a revoked artifact is refused whoever signed it.
        self.forbid_revoked(manifest.name, manifest.platform, manifest.id)
        found = []
        if self.asks_release_keys or not self.identities:
            keys, least = self.keys_for("release"), self.least_for("release")
            with self._naming_revoked():
                found.append(
                    verify_attestation(
                        manifest, proof.manifest_data, proof.attestation, keys, least=least
                    )
                )
        if self.identities:
            found.append(self.verify_identity(manifest, proof))
        signed_by = tuple(one for verified in found for one in verified.signed_by)
        return msgspec.structs.replace(found[0], signed_by=signed_by)

    def verify_identity(self, manifest: Manifest, proof: Proof) -> VerifiedArtifact:
        """Return which identity signed an artifact; raise IntegrityError for none."""
        from envferry.trust.keyless import verify_identity

        # Bytes are signed, and values are used: both must be of the same file.
        require_described(manifest, proof.manifest_data, f"the manifest of {manifest.stem}")
        key = (proof, self.identities)
        if key not in self.verified:
            self.verified[key] = verify_identity(
                manifest, proof.manifest_data, proof.sigstore, self.identities
            )
        return self.verified[key]

    def forbid_revoked(self, name: str, platform: str, id_: str) -> None:
        """Raise IntegrityError for an artifact that the trust bundle revokes."""
        if self.bundle and (found := self.bundle.revocation(name, platform, id_)):
            message = f"{name}@{id_} ({platform}) was revoked on {found.time[:10]}: {found.why}"
            raise IntegrityError(message, hint="install another version: `envferry ls` lists them")

    def forbid_revoked_index(self, index: Index) -> None:
        """Raise IntegrityError for an archive or image that the trust bundle revokes.

        An installation may have another name than the artifact; the index keeps the artifact's.
        """
        self.forbid_revoked(index.name, index.platform, index.id)

    def signers_of(self, manifest: Manifest) -> tuple[str, ...]:
        """Return the ids of the trusted keys that signed an artifact that was let in."""
        return self.accepted.get(manifest.stem, ())

    def check_image(self, path: Path, *, of: Path | None = None) -> tuple[str, ...]:
        """Raise IntegrityError unless a trusted key signed this image.

        Warns where no key is trusted. Returns the ids of the trusted keys that signed it. With keys
        all of it is read. `of` is the image that it is a copy of. Identities sign no images.
        """
        if self.if_any:
            keys, least = self.keys_for("release"), self.least_for("release")
            with self._naming_revoked():
                verified = verify_image(path, keys, of=of, least=least)
            log.info("%s is signed by %s", verified.artifact, ", ".join(verified.signed_by))
            return verified.signed_by
        self._warn(of or path)
        return ()

    @contextmanager
    def _naming_revoked(self) -> Iterator[None]:
        """Say in an error which of the keys that it names are revoked, and why."""
        try:
            yield
        except IntegrityError as error:
            gone = self.bundle.revoked_keys if self.bundle else ()
            reasons = [
                f"; {one.id} was revoked on {one.time[:10]}: {one.why}"
                for one in gone
                if one.id in error.message
            ]
            if not reasons:
                raise
            raise IntegrityError("".join([error.message, *reasons]), hint=error.hint) from error

    def _warn(self, what: object) -> None:
        log.warning("%s: signature not verified (no trusted keys in %s)", what, self.keys_dir)

    def check_tag(self, name: TagName, record: SignedTagRecord, what: str) -> None:
        """Raise IntegrityError unless a trusted key signed the tag and it was not moved back.

        `what` names the record in errors. What is accepted is remembered.
        """
        # Identities sign artifacts and never tags: without keys, a tag cannot be checked.
        if not self.keys:
            if self.identities:
                self._warn(what)
            return
        keys = self.keys_for("tag")
        found = signers(tag_message(name, record), record.signatures, keys)
        with self._naming_revoked():
            if not found:
                raise unsigned(what, [one.keyid for one in record.signatures], keys)
        require_enough(what, found, self.least_for("tag"))
        # After the signatures, which cover the times.
        self._check_age(record, what)
        if self.envs_dir is not None:
            # By platform: each has its own record of a tag, with a counter of its own.
            path = self.envs_dir / SEEN_DIRECTORY / f"{name.platform}-{name}.json"
            self._forbid_downgrade(name, record, path)

    def _check_age(self, record: SignedTagRecord, what: str) -> None:
        """Warn of a tag that has expired; refuse it after the grace period."""
        if isinstance(record.time, str) and self.clock:
            self.clock.see(record.time, what)
        if not isinstance(record.expires, str):
            return
        over = self.now - parse_time(record.expires)
        if over <= timedelta():
            return
        message = f"{what} has expired on {record.expires}"
        if over > self.grace:
            hint = (
                "a newer record may be withheld: copy or mirror again, or ask the person who"
                " moves this tag to renew it; NAME@ID names an artifact without a tag"
            )
            raise IntegrityError(message, hint=hint)
        log.warning(
            "%s; it is refused from %s on",
            message,
            rfc3339(parse_time(record.expires) + self.grace),
        )

    def _forbid_downgrade(self, name: TagName, record: SignedTagRecord, path: Path) -> None:
        seen = from_json(path.read_bytes(), TagRecord, str(path)) if path.is_file() else None
        if seen and (record.counter, record.id) == (seen.counter, seen.id):
            return
        # Equally many moves to another id are two histories: that is no way forward either.
        if seen and record.counter <= seen.counter and not self.allow_downgrade:
            message = (
                f"{name} is {record.id} (move {record.counter}) in the registry, but this host has "
                f"seen {seen.id} (move {seen.counter}): an old record was put back"
            )
            raise IntegrityError(message, hint="if that was you, install with --allow-downgrade")
        make_folders(path.parent)
        write_bytes(path, to_json(TagRecord(id=record.id, counter=record.counter)))
