"""One artifact from somewhere into a registry: every byte checked on its way, the manifest last."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec
from blake3 import blake3

from envferry.artifacts import (
    ATTESTATION,
    REGISTRY_MANIFEST,
    SBOM,
    Proof,
    check_lock,
    check_sbom,
    checksum_line,
    require_size,
)
from envferry.base.retry import RACES, persistently
from envferry.errors import IntegrityError, NotFound, SpecError
from envferry.registry import LOCK_FILE
from envferry.registry.layout import archive_key, folder_of
from envferry.registry.publish import place
from envferry.registry.removal import require_settled
from envferry.stores.local import require_room
from envferry.stores.port import KeyTaken, LostRace, lost_races_again, stat_whole
from envferry.trust.attestations import decode_envelope, encode_envelope, is_about

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from envferry.models import Manifest
    from envferry.registry import Registry
    from envferry.stores.source import Incoming

log = logging.getLogger(__name__)

WRONG = (IntegrityError, NotFound, SpecError)
"""What is the fault of one artifact, or tag; the others are copied all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Companions:
    """What belongs to an archive, as it is to be written."""

    lock: bytes
    proof: Proof
    sbom: bytes | None

    @classmethod
    def of(cls, source: Registry, manifest: Manifest) -> Companions:
        """Read what lies beside an archive in a registry, lock and SBOM checked."""
        companions = cls(
            lock=source.read_lock(manifest),
            proof=source.proof(manifest),
            sbom=source.attachment(manifest, SBOM),
        )
        companions.require_sound(manifest, folder_of(manifest), source.url)
        return companions

    def require_sound(self, manifest: Manifest, folder: str, url: str) -> None:
        """Raise IntegrityError for what would stay damaged: nothing is ever overwritten."""
        check_lock(manifest, self.lock, f"{folder}{LOCK_FILE} in {url}")
        if self.sbom is not None:
            check_sbom(self.sbom, f"{folder}{SBOM} in {url}")


def require_room_for(target: Registry, manifests: Iterable[Manifest], what: str) -> None:
    """Raise HostError when the target's disk has no room for these archives."""
    sizes = {archive_key(manifest): manifest.archive.size for manifest in manifests}
    require_room(target.store, sizes, what)


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """Brings artifacts to a registry."""

    target: Registry
    journals: Path
    """A directory of this machine where interrupted uploads are noted."""
    advance: Callable[[int], None]
    """Gets the bytes of archives that are done; from any thread."""

    def copy(self, source: Registry, manifest: Manifest) -> bool:
        """Copy an artifact; return whether its archive was written."""
        source.require_archive(manifest)
        incoming = replace(source.incoming_archive(manifest), journal=self.journal(manifest))
        return self.publish(manifest, Companions.of(source, manifest), incoming)

    def journal(self, manifest: Manifest) -> Path:
        """Return where an upload of an archive to the target is noted."""
        place = f"{self.target.store.place} {archive_key(manifest)}"
        return self.journals / (
            f"{manifest.archive.file}.{blake3(place.encode()).hexdigest()[:16]}.upload"
        )

    def publish(self, manifest: Manifest, companions: Companions, incoming: Incoming) -> bool:
        """Write what is missing of an artifact, the manifest last; return whether the archive was.

        Raises IntegrityError when the target has another artifact under this id, or when the
        bytes are not what the manifest says: then nothing is published.
        """
        folder = folder_of(manifest)
        require_settled(self.target, folder)
        published = self.target.published(folder)
        if published and published.archive != manifest.archive:
            message = f"{manifest.stem} is in {self.target.url} already, with another archive"
            hint = (
                f"nothing is ever overwritten: use `envferry fetch {manifest.name}@{manifest.id}`"
            )
            raise IntegrityError(message, hint=hint)
        wrote = self._place_archive(manifest, incoming, is_published=published is not None)
        if published is None:
            self.target.require_installable(manifest)
        files = {f"{manifest.archive.file}.xxh128": checksum_line(manifest)}
        files[LOCK_FILE] = companions.lock
        for name, data in files.items():
            place(self.target, folder + name, data, must_match=True)
        if companions.sbom is not None:
            place(self.target, folder + SBOM, companions.sbom, must_match=False)
        if published is None:
            self._place_attestation(manifest, companions.proof)
        data = companions.proof.manifest_data
        place(self.target, folder + REGISTRY_MANIFEST, data, must_match=published is None)
        if published is not None:
            self._place_attestation(manifest, companions.proof)
        self.target.require_whole(manifest)
        return wrote

    def _place_archive(self, manifest: Manifest, incoming: Incoming, *, is_published: bool) -> bool:
        """Write the archive unless it is there; one that nobody published is read and compared."""
        key, facts = archive_key(manifest), manifest.archive
        stat = stat_whole(self.target.store, key)
        if stat is None:
            try:
                self.target.store.create(key, incoming, self.advance)
            except KeyTaken:
                stat = self.target.store.stat(key)
            else:
                return True
        require_size(facts.size, stat.size if stat else 0, f"{key} in {self.target.url}")
        if is_published:
            self.advance(facts.size)
        elif self.target.digest_archive(manifest, self.advance) != (facts.xxh128, facts.blake3):
            message = f"{key} in {self.target.url} is another archive, or a damaged one"
            raise IntegrityError(message, hint="nothing was published with it: remove it there")
        return False

    def _place_attestation(self, manifest: Manifest, proof: Proof) -> None:
        """Write who signed, or add these signatures to those of the same statement."""
        if proof.attestation is None:
            return
        key = folder_of(manifest) + ATTESTATION
        carried = proof.attestation

        def attempt() -> None:
            stat = self.target.store.stat(key)
            there = self.target.store.read(key) if stat else None
            wanted = self._joined(manifest, there, carried)
            if wanted != there:
                with lost_races_again():
                    self.target.store.replace(key, wanted, stat.version if stat else None)

        try:
            persistently(attempt, RACES)
        except LostRace:
            log.warning("%s in %s is changed all the time: left as it is", key, self.target.url)

    def _joined(self, manifest: Manifest, there: bytes | None, carried: bytes) -> bytes:
        """Return the signatures of both sides where they are over the same statement."""
        ours = decode_envelope(carried, f"the attestation of {manifest.stem}")
        manifest_key = folder_of(manifest) + REGISTRY_MANIFEST
        if there is None:
            published = self.target.store.stat(manifest_key)
            data = self.target.store.read(manifest_key) if published else None
            if data is not None and not is_about(ours, manifest, data):
                message = f"{manifest.stem} in {self.target.url} has another manifest than the one"
                raise IntegrityError(
                    f"{message} that was signed",
                    hint="it was built twice; push it there with --sign-key",
                )
            return carried
        theirs = decode_envelope(there, f"the attestation of {manifest.stem} in {self.target.url}")
        fresh = [one for one in ours.signatures if one not in theirs.signatures]
        if theirs.message != ours.message or not fresh:
            return there
        joined = msgspec.structs.replace(theirs, signatures=(*theirs.signatures, *fresh))
        return encode_envelope(joined)
