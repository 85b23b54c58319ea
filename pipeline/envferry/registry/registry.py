"""A registry: what people and stages ask of it, and the checks of all that it hands out."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec
import xxhash
from blake3 import blake3

from envferry.archive.identity import check_manifest
from envferry.archive.reader import Archive
from envferry.artifacts import (
    ATTESTATION,
    REGISTRY_MANIFEST,
    SIGSTORE,
    Proof,
    check_lock,
    decode_manifest,
    require_digests,
    require_size,
)
from envferry.base.limits import Limits
from envferry.config import settings
from envferry.errors import IntegrityError, NotFound, StoreError
from envferry.names import Ref, check_name
from envferry.registry.layout import (
    ENVS,
    LOCK_FILE,
    archive_key,
    artifact_folder,
    attachment_key,
    folder_of,
    is_manifest,
    tag_key,
)
from envferry.registry.listing import list_entries, list_tags, unknown
from envferry.registry.publish import (
    ArtifactSource,
    Companions,
    publish_artifact,
    require_whole,
)
from envferry.registry.published_archive import PublishedArchive
from envferry.registry.tags import find_tag, move_tag
from envferry.stores.local import reader_into
from envferry.stores.opening import open_store
from envferry.stores.source import ContentSource
from envferry.stores.split import MARKER, RECORD_SUFFIX
from envferry.trust.attestations import require_described
from envferry.trust.signed_tags import TagName

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from envferry.models import Artifact, Manifest, TagRecord
    from envferry.progress import Progress
    from envferry.registry.listing import RegistryEntry
    from envferry.stores.port import Store
    from envferry.trust.host_trust import Trust
    from envferry.trust.keyless import KeylessSigner
    from envferry.trust.signing import Signer

PIECE_BYTES = 8 << 20


class Registry(msgspec.Struct, frozen=True):
    """Artifacts and tags in a store."""

    store: Store
    signer: Signer | None = None
    """Signs what is published and where tags are moved to."""
    trust: Trust | None = None
    """Checks every tag and every manifest that is handed out; None checks no signatures."""
    layers: int = 1
    """How many layers an archive becomes in an OCI registry."""
    keyless: KeylessSigner | None = None
    """Signs what is published without a key, beside `signer`."""

    @classmethod
    def open(
        cls, url: str, *, signer: Signer | None = None, trust: Trust | None = None
    ) -> Registry:
        """Open the registry at a directory, `s3://…`, `oci://…` or `https://…`."""
        return cls(open_store(url, Limits(least_speed=settings().min_speed)), signer, trust)

    @property
    def url(self) -> str:
        """Where it is."""
        return self.store.url

    def publish(self, artifact: Artifact, *, progress: Progress, is_noted: bool = False) -> bool:
        """Write an artifact that was verified; return whether anything had to be sent.

        To publish the same artifact again is harmless and completes what is missing. With
        `is_noted` (see `ArtifactSource`), what the store copies is not read. Raises IntegrityError
        when the registry holds a different one under this id.
        """
        source = ArtifactSource(
            manifest=artifact.manifest,
            companions=Companions.beside(artifact),
            archive=artifact.archive_path,
            is_noted=is_noted,
        )
        facts = artifact.manifest.archive
        with progress.task(f"push {facts.file}", facts.size) as advance:
            return publish_artifact(self, source, advance)

    def require_whole(self, manifest: Manifest) -> None:
        """Raise RemovedMeanwhile when a part of a tagged artifact was pruned since then."""
        require_whole(self, manifest)

    def move_tag(self, name: str, platform: str, tag: str, id_: str) -> TagRecord:
        """Point a tag to a published artifact by compare-and-swap.

        A lost race is run again; when others keep winning, StoreError says where the tag is now.
        """
        return move_tag(self, TagName(name=name, platform=platform, tag=tag), id_)

    def tags(self, name: str, platform: str) -> dict[str, str]:
        """Return all tags of an environment with the ids that they point to."""
        return list_tags(self, name, platform)

    def tags_of(self, manifest: Manifest) -> tuple[str, ...]:
        """Return the tags that point to an artifact; none where the store cannot list."""
        try:
            tags = self.tags(manifest.name, manifest.platform)
        except StoreError:
            return ()
        return tuple(tag for tag, id_ in tags.items() if id_ == manifest.id)

    def published_at(self, manifest: Manifest) -> datetime | None:
        """Return when an artifact was published in this registry, if the store says it."""
        stat = self.store.stat(folder_of(manifest) + REGISTRY_MANIFEST)
        return stat.modified if stat else None

    def ids(self, name: str, platform: str) -> tuple[str, ...]:
        """Return the ids of all published artifacts of an environment."""
        prefix = f"{ENVS}{check_name(name, 'environment name')}/{platform}/"
        keys = (listed.key for listed in self.store.list(prefix))
        return tuple(sorted(key.split("/")[4] for key in keys if is_manifest(key)))

    def environments(self, name: str | None = None) -> tuple[RegistryEntry, ...]:
        """Return all published artifacts (of one environment) with the tags that point to them."""
        return list_entries(self, name)

    def resolve(self, ref: Ref, platform: str) -> str:
        """Return the id that a ref means; raise NotFound with what there is instead."""
        if ref.is_id:
            folder = artifact_folder(ref.name, platform, ref.version)
            if not self.store.stat(folder + REGISTRY_MANIFEST):
                raise unknown(self, ref, platform)
            return ref.version
        record = find_tag(self, tag_key(ref.name, platform, ref.version))
        if not record:
            raise unknown(self, ref, platform)
        # Here, and not in `read_tag`, which also serves those who move or repair tags.
        if self.trust:
            tag_name = TagName(name=ref.name, platform=platform, tag=ref.version)
            self.trust.check_tag(tag_name, record, f"the tag {ref} in {self.url}")
        return record.id

    def manifest(self, name: str, platform: str, id_: str) -> Manifest:
        """Read a manifest; check that it belongs where it lies, and who signed it."""
        manifest, data = self._described(name, platform, id_)
        if self.trust:
            self.trust.check_artifact(manifest, self._proof_of(manifest, data))
        return manifest

    def described(self, name: str, platform: str, id_: str) -> Manifest:
        """Read a manifest and check that it belongs where it lies; signatures are not checked."""
        return self._described(name, platform, id_)[0]

    def _described(self, name: str, platform: str, id_: str) -> tuple[Manifest, bytes]:
        """Read a manifest as `described` does; return the bytes that signatures are over, too."""
        folder = artifact_folder(name, platform, id_)
        read = self._published(folder)
        if read is None:
            raise unknown(self, Ref(name=name, version=id_), platform)
        manifest, data = read
        # A manifest and its signatures, copied into another folder,
        # must not pass for what belongs there.
        if (manifest.name, manifest.platform, manifest.id) != (name, platform, id_):
            message = f"{folder}{REGISTRY_MANIFEST} in {self.url} describes {manifest.stem}"
            raise IntegrityError(message, hint="copy or push the artifact again")
        return manifest, data

    def published(self, folder: str) -> Manifest | None:
        """Read the manifest in a folder, or None when nothing is published there."""
        read = self._published(folder)
        return read[0] if read else None

    def _published(self, folder: str) -> tuple[Manifest, bytes] | None:
        key = folder + REGISTRY_MANIFEST
        try:
            data = self.store.read(key)
        except NotFound:
            return None
        return decode_manifest(data, f"{key} in {self.url}"), data

    def proof(self, manifest: Manifest) -> Proof:
        """Read what a signature check of an artifact needs; nothing is checked here."""
        folder = folder_of(manifest)
        # Read again, as bytes: signatures are over them, and `manifest`
        # is only what they decode to.
        data = self.store.read(folder + REGISTRY_MANIFEST)
        # Between the two reads another writer may have replaced it: the
        # checked one must be the used one.
        require_described(manifest, data, f"{folder}{REGISTRY_MANIFEST} in {self.url}")
        return self._proof_of(manifest, data)

    def _proof_of(self, manifest: Manifest, data: bytes) -> Proof:
        return Proof(
            manifest_data=data,
            attestation=self.attachment(manifest, ATTESTATION),
            sigstore=self.attachment(manifest, SIGSTORE),
        )

    def require_archive(self, manifest: Manifest) -> None:
        """Raise NotFound or IntegrityError unless an archive is there in its full length."""
        key = archive_key(manifest)
        stat = self.store.stat(key)
        if not stat:
            message = f"{key} is not in the registry {self.url}, though its manifest is"
            hint = "copy or push the artifact again"
            # A registry in parts is recognized by its marker:
            # without that, keys are looked for whole.
            if self.store.stat(key + RECORD_SUFFIX):
                hint = f"it is stored in parts, but {MARKER} is missing: copy that file too"
            raise NotFound(message, hint=hint)
        require_size(manifest.archive.size, stat.size, f"{key} in {self.url}")

    def read_archive(self, manifest: Manifest, offset: int, length: int) -> bytes:
        """Read a part of an archive; nothing is checked but its length."""
        return self.store.read(archive_key(manifest), offset, length)

    def open_archive(self, manifest: Manifest) -> Archive:
        """Read the index of an archive and nothing else; raise IntegrityError for an unsafe one."""
        return Archive(PublishedArchive(self, manifest))

    def require_installable(self, manifest: Manifest) -> None:
        """Raise IntegrityError for an archive that no host installs; only its index is read.

        Whoever made it elsewhere may have had no check, or another one.
        """
        check_manifest(self.open_archive(manifest), manifest)

    def archive_content(self, manifest: Manifest) -> ContentSource:
        """Return an archive as a store takes it: in pieces, compared with its manifest."""
        facts, key = manifest.archive, archive_key(manifest)
        return ContentSource(
            name=f"{facts.file} in {self.url}",
            size=facts.size,
            token=facts.blake3,
            read_at=partial(self.store.read, key),
            read_into=reader_into(self.store, key),
            digests=(facts.xxh128, facts.blake3),
            tar_sha256=facts.tar_sha256,
        )

    def verify_archive(self, manifest: Manifest, *, progress: Progress) -> None:
        """Read a whole archive; raise IntegrityError unless its BLAKE3 is the manifest's."""
        self.require_archive(manifest)
        facts = manifest.archive
        with progress.task(f"check {facts.file}", facts.size) as advance:
            found = self.digest_archive(manifest, advance)
        require_digests(manifest, found, f"{facts.file} in {self.url}")

    def digest_archive(self, manifest: Manifest, advance: Callable[[int], None]) -> tuple[str, str]:
        """Read a whole archive and return its XXH3-128 and BLAKE3; `advance` gets the bytes."""
        # In pieces, for an archive may be larger than the memory.
        fast, strong, size = xxhash.xxh3_128(), blake3(), manifest.archive.size
        for offset in range(0, size, PIECE_BYTES):
            data = self.read_archive(manifest, offset, min(PIECE_BYTES, size - offset))
            fast.update(data)
            strong.update(data)
            advance(len(data))
        return fast.hexdigest(), strong.hexdigest()

    def read_lock(self, manifest: Manifest) -> bytes:
        """Read an artifact's lock, checked against its manifest."""
        key = folder_of(manifest) + LOCK_FILE
        hint = "copy that file again, or push the artifact again; `envferry check` says more"
        try:
            data = self.store.read(key)
        except NotFound as error:
            message = f"{key} is not in the registry {self.url}, though its manifest is"
            raise NotFound(message, hint=hint) from error
        try:
            check_lock(manifest, data, f"{key} in {self.url}")
        except IntegrityError as error:
            error.hint = hint
            raise
        return data

    def attachment(self, manifest: Manifest, file: str) -> bytes | None:
        """Read one of `ATTACHMENTS`, or None when the artifact has none."""
        try:
            return self.store.read(attachment_key(manifest, file))
        except NotFound:
            return None
