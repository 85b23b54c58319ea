"""Writing the values of keys: their blobs, their manifests, and what is made of them for others."""

from __future__ import annotations

from datetime import datetime, timezone
from threading import Lock
from typing import TYPE_CHECKING

import msgspec

from envferry.stores.oci.documents import (
    ARCHIVE_TYPE,
    ARTIFACT_TYPES,
    BYTES,
    CHECKSUM_TYPE,
    CREATED,
    EMPTY,
    EMPTY_CONFIG,
    ENVIRONMENT_TYPE,
    KEY,
    LAYER,
    MANIFEST,
    TAG_TYPE,
    TITLE,
    VALUE_TYPE,
    Descriptor,
    describe,
    digest_of,
    image_manifest,
    titled,
)
from envferry.stores.oci.key_tags import (
    ENVIRONMENT_PREFIX,
    Names,
    Place,
    archive_beside,
    archive_name,
    environment_of,
    tag_name,
)
from envferry.stores.oci.sending import send_bytes
from envferry.stores.port import (
    check_key,
)

if TYPE_CHECKING:
    from envferry.stores.oci.port import Repositories
    from envferry.stores.oci.views import Views

ATTESTATION = "attestation.json"
EMPTY_BLOB = describe(EMPTY_CONFIG, EMPTY)


class _Prepared(msgspec.Struct):
    """What was made already."""

    repositories: set[str] = msgspec.field(default_factory=set)
    """Those that have the blob of an empty configuration, and are listed."""
    guard: Lock = msgspec.field(default_factory=Lock)


class ValueWriter(msgspec.Struct, frozen=True):
    """Writes below a path of a registry, over whatever is there."""

    space: Repositories
    names: Names
    views: Views
    prepared: _Prepared = msgspec.field(default_factory=_Prepared)

    def prepare(self, key: str) -> Place:
        """Return where a key goes, in a repository that is ready for it."""
        place = self.names.place(check_key(key))
        # Held while it is sent: no other thread writes a manifest before the blob is there.
        with self.prepared.guard:
            if place.repository not in self.prepared.repositories:
                # Registries refuse a manifest whose blobs its repository lacks.
                send_bytes(self.space, place.repository, EMPTY_CONFIG, EMPTY_BLOB)
                if name := environment_of(key):
                    self._note_environment(name)
                self.prepared.repositories.add(place.repository)
        return place

    def _note_environment(self, name: str) -> None:
        """Have an environment listed: to list repositories is for administrators in most places."""
        tag = ENVIRONMENT_PREFIX + name
        if self.space.manifest_digest(self.names.root, tag):
            return
        send_bytes(self.space, self.names.root, EMPTY_CONFIG, EMPTY_BLOB)
        data = image_manifest(
            artifact_type=ENVIRONMENT_TYPE,
            config=EMPTY_BLOB,
            layers=(EMPTY_BLOB,),
            annotations={TITLE: name},
        )
        self.space.put_manifest(self.names.root, tag, data, MANIFEST)

    def write(self, key: str, data: bytes) -> str:
        """Write a small value over whatever is there; return the digest of its manifest."""
        place = self.prepare(key)
        layers: tuple[Descriptor, ...] = ()
        if data:
            blob = describe(data, _types(key)[1])
            send_bytes(self.space, place.repository, data, blob)
            layers = (blob,)
        archive = archive_name(key) or archive_beside(key)
        # What lies beside an archive refers to its image, by which other tools find it.
        subject = self.views.image(archive) if archive else None
        return self.put(key, place, layers, subject)

    def put(
        self,
        key: str,
        place: Place,
        layers: tuple[Descriptor, ...],
        subject: Descriptor | None,
    ) -> str:
        """Write the manifest of a key; what it belongs to gets to know it."""
        artifact_type, _ = _types(key)
        file, annotations = key.rpartition("/")[2], {KEY: key, CREATED: _now()}
        data = image_manifest(
            artifact_type=artifact_type,
            config=EMPTY_BLOB,
            # At least one layer, for the sake of other tools (OCI image-spec, manifest.md).
            layers=titled(layers, file) or (EMPTY_BLOB,),
            subject=subject,
            annotations=annotations,
        )
        is_kept = self.space.put_manifest(place.repository, place.tag, data, MANIFEST)
        digest = digest_of(data)
        if subject:
            referrer = Descriptor(
                media_type=MANIFEST,
                digest=digest,
                size=len(data),
                artifact_type=artifact_type,
                annotations=annotations,
            )
            self.views.note_referrer(place.repository, subject, referrer, is_kept=is_kept)
            if file == ATTESTATION:
                self.views.name_attestation(place.repository, subject, layers)
        return digest

    def forget(self, repository: str) -> None:
        """Prepare a repository again when something is written there."""
        self.prepared.repositories.discard(repository)


def _types(key: str) -> tuple[str, str]:
    """Return what kind of artifact a key is, and the type of its bytes."""
    file = key.rpartition("/")[2]
    if archive_name(key):
        return ARCHIVE_TYPE, LAYER
    if tag_name(key):
        return TAG_TYPE, "application/json"
    if archive_beside(key) and file in ARTIFACT_TYPES:
        return ARTIFACT_TYPES[file], ARTIFACT_TYPES[file]
    if archive_beside(key) and file.endswith(".xxh128"):
        return CHECKSUM_TYPE, "text/plain"
    return VALUE_TYPE, BYTES


def _now() -> str:
    """Return the time as annotations have it; parts of a second tell writes apart."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
