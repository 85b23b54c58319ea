"""The registry: artifacts and tags under one URL, on any store.

    v1/envs/NAME/PLATFORM/ID/NAME-PLATFORM-ID.tar.zst          write-once
    v1/envs/NAME/PLATFORM/ID/NAME-PLATFORM-ID.tar.zst.xxh128
    v1/envs/NAME/PLATFORM/ID/conda-lock.yml
    v1/envs/NAME/PLATFORM/ID/manifest.json                     after all of these
    v1/envs/NAME/PLATFORM/ID/{attestation.json,sbom.cdx.json}  optional
    v1/tags/NAME/PLATFORM/TAG                                  moved by compare-and-swap

An artifact is published when its manifest is there; a copy of the files is a registry.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from pipeline.artifacts import (
    ATTESTATION,
    REGISTRY_MANIFEST,
    Proof,
    check_lock,
    checksum_line,
    decode_manifest,
    read_lock,
    read_proof,
    require_size,
)
from pipeline.errors import IntegrityError, NotFound, StoreError, UsageError
from pipeline.files import from_json, to_json
from pipeline.known_frames import find_known
from pipeline.models import (
    DEFAULT_TAG,
    ID_PATTERN,
    Manifest,
    Ref,
    RegistryEntry,
    TagRecord,
    check_name,
)
from pipeline.signing import signers
from pipeline.stores.opening import open_store
from pipeline.stores.port import KeyTaken, LostRace
from pipeline.trust import (
    SignedTagRecord,
    TagName,
    attest,
    countersign,
    decode_envelope,
    encode_envelope,
    is_about,
    require_described,
    sign_tag,
    signers_of,
    tag_message,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pipeline.models import Artifact
    from pipeline.progress import Progress
    from pipeline.stores.port import KnownRange, Stat, Store
    from pipeline.trust import Signer, Trust

ENVS = "v1/envs/"
TAGS = "v1/tags/"
LOCK_FILE = "conda-lock.yml"
ATTACHMENTS = (ATTESTATION, "sbom.cdx.json")
PIECE_BYTES = 8 << 20
READERS = 8
"""Manifests and tags are small: the time goes into waiting for the store."""
MOVE_ATTEMPTS = 2

SAME_ARTIFACT = ("archive", "prefix", "version", "packages", "requirements", "checks")
"""What must be equal in two manifests of one id. The rest says how it was made, not what it is."""


@dataclass(frozen=True, slots=True)
class Registry:
    """Artifacts and tags in a store."""

    store: Store
    signer: Signer | None = None
    """Signs what is published and where tags are moved to."""
    trust: Trust | None = None
    """Checks every tag and every manifest that is handed out; None checks no signatures."""

    @classmethod
    def open(
        cls, url: str, *, signer: Signer | None = None, trust: Trust | None = None
    ) -> Registry:
        """Open the registry at a directory, `s3://…` or `https://…`."""
        return cls(open_store(url), signer, trust)

    @property
    def url(self) -> str:
        """Where it is."""
        return self.store.url

    def publish(self, artifact: Artifact, *, progress: Progress) -> bool:
        """Write an artifact that was verified; return whether anything had to be sent.

        The manifest comes after the files: until then there is no artifact for anybody else. Then
        the signatures. To publish the same artifact again is harmless and completes what is
        missing. Raises IntegrityError when the registry holds a different one under this id.
        """
        manifest = artifact.manifest
        folder = _folder(manifest.name, manifest.platform, manifest.id)
        published = self._published(folder)
        if published:
            _require_same(published, manifest, self.url)
        files = {
            f"{manifest.archive.file}.xxh128": checksum_line(manifest),
            LOCK_FILE: read_lock(artifact),
            REGISTRY_MANIFEST: read_proof(artifact.manifest_path).manifest_data,
        }
        sent = self._place_archive(folder, artifact, progress)
        for name, data in files.items():
            sent |= self._place(folder + name, data, must_match=published is None)
        return sent | self._place_attestation(folder, artifact)

    def move_tag(self, name: str, platform: str, tag: str, id_: str) -> TagRecord:
        """Point a tag to a published artifact by compare-and-swap.

        A lost race is run once more; when that is lost too, StoreError says who won.
        """
        key = _tag_key(name, platform, tag)
        tag_name = TagName(name=name, platform=platform, tag=tag)
        self._described(name, platform, id_)
        for _ in range(MOVE_ATTEMPTS):
            stat, record = self._read_tag(key)
            moved = self._moved(tag_name, record, id_)
            if record == moved:
                return moved
            try:
                self.store.replace(key, to_json(moved), stat.version if stat else None)
            except LostRace:
                continue
            return moved
        _, winner = self._read_tag(key)
        holder = f"it is at {winner.id} now (move {winner.counter})" if winner else "it is gone now"
        message = f"the tag {tag} of {name} was moved by somebody else at the same time: {holder}"
        raise StoreError(
            message, hint=f"run `envferry tag {name}@{id_} {tag}` if you still want it"
        )

    def _moved(self, name: TagName, record: SignedTagRecord | None, id_: str) -> SignedTagRecord:
        """Return what a tag shall hold; what it held already, if nothing needs to change."""
        if record and record.signatures and not self.signer:
            message = f"{name} is a signed tag: moved without a key, hosts would refuse it"
            raise UsageError(message, hint="move it with --sign-key")
        keys = self.signer.keys if self.signer else ()
        if record and record.id == id_:
            public = tuple(key.public for key in keys)
            if len(signers(tag_message(name, record), record.signatures, public)) == len(keys):
                return record
            return sign_tag(name, record, keys)
        counter = record.counter + 1 if record else 1
        return sign_tag(name, TagRecord(id=id_, counter=counter), keys)

    def tags(self, name: str, platform: str) -> dict[str, str]:
        """Return all tags of an environment with the ids that they point to."""
        prefix = f"{TAGS}{check_name(name, 'environment name')}/{platform}/"
        keys = sorted(self.store.list(prefix))
        with ThreadPoolExecutor(READERS) as pool:
            records = pool.map(lambda key: self._read_tag(key)[1], keys)
            return {
                key.removeprefix(prefix): record.id
                for key, record in zip(keys, records, strict=True)
                if record
            }

    def ids(self, name: str, platform: str) -> tuple[str, ...]:
        """Return the ids of all published artifacts of an environment."""
        prefix = f"{ENVS}{check_name(name, 'environment name')}/{platform}/"
        return tuple(sorted(key.split("/")[4] for key in _manifests(self.store.list(prefix))))

    def resolve(self, ref: Ref, platform: str) -> str:
        """Return the id that a ref means; raise NotFound with what there is instead."""
        if ref.is_id:
            if not self.store.stat(_folder(ref.name, platform, ref.version) + REGISTRY_MANIFEST):
                raise self._unknown(ref, platform)
            return ref.version
        key = _tag_key(ref.name, platform, ref.version)
        _, record = self._read_tag(key)
        if not record:
            raise self._unknown(ref, platform)
        if self.trust:
            tag_name = TagName(name=ref.name, platform=platform, tag=ref.version)
            self.trust.check_tag(tag_name, record, f"the tag {ref} in {self.url}")
        return record.id

    def manifest(self, name: str, platform: str, id_: str) -> Manifest:
        """Read a manifest; check that it belongs where it lies, and who signed it."""
        manifest = self._described(name, platform, id_)
        if self.trust:
            proof = self.proof(manifest)
            self.trust.check_artifact(manifest, proof.manifest_data, proof.attestation)
        return manifest

    def proof(self, manifest: Manifest) -> Proof:
        """Read what a signature check of an artifact needs; nothing is checked here."""
        folder = _folder(manifest.name, manifest.platform, manifest.id)
        data = self.store.read(folder + REGISTRY_MANIFEST)
        require_described(manifest, data, f"{folder}{REGISTRY_MANIFEST} in {self.url}")
        return Proof(manifest_data=data, attestation=self.attachment(manifest, ATTESTATION))

    def remove_unfinished(self, older_than_seconds: float) -> int:
        """Remove what pushes began that long ago and never finished; return how much it was."""
        return self.store.delete(ENVS, older_than_seconds)

    def _described(self, name: str, platform: str, id_: str) -> Manifest:
        ref = Ref(name=name, version=id_)
        folder = _folder(name, platform, id_)
        manifest = self._published(folder)
        if manifest is None:
            raise self._unknown(ref, platform)
        if (manifest.name, manifest.platform, manifest.id) != (name, platform, id_):
            message = f"{folder}{REGISTRY_MANIFEST} in {self.url} describes {manifest.stem}"
            raise IntegrityError(message, hint="copy or push the artifact again")
        return manifest

    def environments(self, name: str | None = None) -> tuple[RegistryEntry, ...]:
        """Return all published artifacts (of one environment) with the tags that point to them."""
        below = f"{check_name(name, 'environment name')}/" if name else ""
        folders = sorted(
            key.split("/")[2:5] for key in _manifests(self.store.list(f"{ENVS}{below}"))
        )
        tag_keys = sorted(self.store.list(f"{TAGS}{below}"))
        with ThreadPoolExecutor(READERS) as pool:
            manifests = pool.map(lambda folder: self._described(*folder), folders)
            records = pool.map(lambda key: self._read_tag(key)[1], tag_keys)
            tags = dict(zip(tag_keys, records, strict=True))
            return tuple(_entry(manifest, tags) for manifest in manifests)

    def require_archive(self, manifest: Manifest) -> None:
        """Raise NotFound or IntegrityError unless an archive is there in its full length."""
        key = _archive_key(manifest)
        stat = self.store.stat(key)
        if not stat:
            message = f"{key} is not in the registry {self.url}, though its manifest is"
            raise NotFound(message, hint="copy or push the artifact again")
        require_size(manifest.archive.size, stat.size, f"{key} in {self.url}")

    def read_archive(self, manifest: Manifest, offset: int, length: int) -> bytes:
        """Read a part of an archive; nothing is checked but its length."""
        return self.store.read(_archive_key(manifest), offset, length)

    def verify_archive(self, manifest: Manifest, *, progress: Progress) -> None:
        """Read a whole archive; raise IntegrityError unless its BLAKE3 is the manifest's."""
        self.require_archive(manifest)
        facts = manifest.archive
        with progress.task(f"check {facts.file}", facts.size) as advance:
            found = self._digest_archive(manifest, advance)
        if found != facts.blake3:
            message = f"{facts.file} in {self.url} is damaged: its BLAKE3 is {found}"
            raise IntegrityError(message, hint=f"the manifest says {facts.blake3}")

    def read_lock(self, manifest: Manifest) -> bytes:
        """Read an artifact's lock, checked against its manifest."""
        key = _folder(manifest.name, manifest.platform, manifest.id) + LOCK_FILE
        data = self.store.read(key)
        check_lock(manifest, data, f"{key} in {self.url}")
        return data

    def attach(self, manifest: Manifest, file: str, data: bytes) -> None:
        """Write one of `ATTACHMENTS` beside a published artifact, once."""
        self._place(_attachment_key(manifest, file), data, must_match=True)

    def attachment(self, manifest: Manifest, file: str) -> bytes | None:
        """Read one of `ATTACHMENTS`, or None when the artifact has none."""
        try:
            return self.store.read(_attachment_key(manifest, file))
        except NotFound:
            return None

    def _published(self, folder: str) -> Manifest | None:
        key = folder + REGISTRY_MANIFEST
        try:
            data = self.store.read(key)
        except NotFound:
            return None
        return decode_manifest(data, f"{key} in {self.url}")

    def _read_tag(self, key: str) -> tuple[Stat | None, SignedTagRecord | None]:
        """Read a tag; its version is taken first, so that a later move is noticed."""
        stat = self.store.stat(key)
        if not stat:
            return None, None
        try:
            data = self.store.read(key)
        except NotFound:
            return stat, None
        record = from_json(data, SignedTagRecord, f"{key} in {self.url}")
        if not ID_PATTERN.fullmatch(record.id):
            message = f"{key} in {self.url} is damaged: {record.id!r} is no id"
            raise IntegrityError(message, hint="remove that file, then run `envferry tag`")
        return stat, record

    def _place_archive(self, folder: str, artifact: Artifact, progress: Progress) -> bool:
        """Send an archive unless it is there; return whether it was sent."""
        facts = artifact.manifest.archive
        key = folder + facts.file
        if self.store.stat(key):
            self._require_same_archive(key, artifact.manifest)
            return False
        known = self._known(artifact)
        with progress.task(f"push {facts.file}", facts.size) as advance:
            try:
                self.store.create(key, artifact.archive_path, advance, known)
            except KeyTaken:
                self._require_same_archive(key, artifact.manifest)
                return False
        return True

    def _known(self, artifact: Artifact) -> tuple[KnownRange, ...]:
        """Return what of an archive is here already, in the version that `latest` points to."""
        manifest = artifact.manifest
        _, record = self._read_tag(_tag_key(manifest.name, manifest.platform, DEFAULT_TAG))
        if not record:
            return ()
        before = self._published(_folder(manifest.name, manifest.platform, record.id))
        if not before:
            return ()
        published = PublishedArchive(self, before)
        return find_known(artifact.archive_path, published, _archive_key(before))

    def _place_attestation(self, folder: str, artifact: Artifact) -> bool:
        """Add our signatures to those that are there; return whether anything was written.

        Ours stand beside others only when we know one of these: else we would vouch for what
        somebody else made up about the build.
        """
        key = folder + ATTESTATION
        for _ in range(MOVE_ATTEMPTS):
            stat = self.store.stat(key)
            there = self.store.read(key) if stat else None
            wanted = self._attestation(folder, artifact, there)
            if wanted is None or wanted == there:
                return False
            try:
                self.store.replace(key, wanted, stat.version if stat else None)
            except LostRace:
                continue
            return True
        message = f"{key} in {self.url} was changed by somebody else at the same time, twice"
        raise StoreError(message, hint="push again: nothing is sent twice")

    def _attestation(self, folder: str, artifact: Artifact, there: bytes | None) -> bytes | None:
        """Return the envelope that an artifact shall have, None for none."""
        data, manifest = self.store.read(folder + REGISTRY_MANIFEST), artifact.manifest
        carried = read_proof(artifact.manifest_path).attestation
        if there is None and carried:
            envelope = decode_envelope(carried, f"the attestation beside {artifact.archive_path}")
            there = carried if is_about(envelope, manifest, data) else None
        if not self.signer:
            return there
        known = (
            *(key.public for key in self.signer.keys),
            *(self.trust.keys if self.trust else ()),
        )
        if (
            there is None
            or not (envelope := decode_envelope(there, folder + ATTESTATION)).signatures
        ):
            return encode_envelope(attest(manifest, data, self.signer))
        if is_about(envelope, manifest, data) and signers_of(envelope, known):
            return encode_envelope(countersign(envelope, self.signer.keys))
        message = f"{manifest.stem} in {self.url} is signed by keys that are not known here"
        hint = f"sign beside them with --trusted-key, or remove {folder}{ATTESTATION}"
        raise IntegrityError(message, hint=hint)

    def _require_same_archive(self, key: str, manifest: Manifest) -> None:
        """Raise IntegrityError unless the archive that is there is this one.

        A manifest or a checksum beside it says so already; after a push that broke off between
        the two, only the bytes can tell.
        """
        self.require_archive(manifest)
        try:
            same = self.store.read(f"{key}.xxh128") == checksum_line(manifest)
        except NotFound:
            same = self._digest_archive(manifest, lambda _: None) == manifest.archive.blake3
        if not same:
            raise _different(manifest, "archive", self.url)

    def _digest_archive(self, manifest: Manifest, advance: Callable[[int], None]) -> str:
        digest, size = blake3(), manifest.archive.size
        for offset in range(0, size, PIECE_BYTES):
            data = self.read_archive(manifest, offset, min(PIECE_BYTES, size - offset))
            digest.update(data)
            advance(len(data))
        return digest.hexdigest()

    def _place(self, key: str, data: bytes, *, must_match: bool) -> bool:
        """Write a small file once; return whether it was written."""
        try:
            self.store.create(key, data)
        except KeyTaken:
            if must_match and self.store.read(key) != data:
                message = f"{key} in {self.url} exists with another content"
                hint = "remove it there if nothing was published with it, then push again"
                raise IntegrityError(message, hint=hint) from None
            return False
        return True

    def _unknown(self, ref: Ref, platform: str) -> NotFound:
        """Say that a ref is unknown and what is known instead."""
        message = f"{ref} is not in the registry {self.url} for {platform}"
        try:
            tags, ids = self.tags(ref.name, platform), self.ids(ref.name, platform)
            known = sorted({key.split("/")[2] for key in self.store.list(ENVS)}) if not ids else []
        except StoreError as error:
            return NotFound(message, hint=error.hint)
        if ids:
            listed = ", ".join([*(f"{tag} ({id_})" for tag, id_ in tags.items()), *ids])
            return NotFound(f"{message}: there are {listed}", hint=f"run `envferry ls {ref.name}`")
        listed = ", ".join(known) or "no environments at all"
        return NotFound(f"{message}: it holds {listed}", hint="run `envferry ls`")


@dataclass(frozen=True, slots=True)
class PublishedArchive:
    """An archive in a registry, as the archive reader takes it."""

    registry: Registry
    manifest: Manifest

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"{self.manifest.archive.file} in {self.registry.url}"

    @property
    def size(self) -> int:
        """The bytes of the archive."""
        return self.manifest.archive.size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`."""
        return self.registry.read_archive(self.manifest, offset, length)


def check_tag(tag: str) -> str:
    """Return `tag` when it can be a tag; raise UsageError when it cannot, or looks like an id."""
    check_name(tag, "tag")
    if ID_PATTERN.fullmatch(tag):
        message = f"{tag!r} cannot be a tag: it looks like an id (12 hex digits)"
        raise UsageError(message)
    return tag


def _folder(name: str, platform: str, id_: str) -> str:
    check_name(name, "environment name")
    if not ID_PATTERN.fullmatch(id_):
        message = f"{id_!r} is no id: 12 hex digits"
        raise UsageError(message)
    return f"{ENVS}{name}/{check_name(platform, 'platform')}/{id_}/"


def _archive_key(manifest: Manifest) -> str:
    folder = _folder(manifest.name, manifest.platform, manifest.id)
    return folder + manifest.archive.file


def _attachment_key(manifest: Manifest, file: str) -> str:
    if file not in ATTACHMENTS:
        message = f"{file} cannot be attached to an artifact: only {', '.join(ATTACHMENTS)}"
        raise UsageError(message)
    return _folder(manifest.name, manifest.platform, manifest.id) + file


def _tag_key(name: str, platform: str, tag: str) -> str:
    check_name(name, "environment name")
    return f"{TAGS}{name}/{check_name(platform, 'platform')}/{check_tag(tag)}"


def _manifests(keys: Iterable[str]) -> Iterable[str]:
    """Keep the keys of manifests: an artifact without one is not published."""
    return (
        key for key in keys if key.endswith(f"/{REGISTRY_MANIFEST}") and len(key.split("/")) == 6
    )


def _entry(manifest: Manifest, tags: Mapping[str, TagRecord | None]) -> RegistryEntry:
    prefix = f"{TAGS}{manifest.name}/{manifest.platform}/"
    return RegistryEntry(
        name=manifest.name,
        platform=manifest.platform,
        id=manifest.id,
        size=manifest.archive.size,
        packages=len(manifest.packages),
        tags=tuple(
            key.removeprefix(prefix)
            for key, record in tags.items()
            if key.startswith(prefix) and record and record.id == manifest.id
        ),
        version=manifest.version,
    )


def _require_same(published: Manifest, ours: Manifest, url: str) -> None:
    for field in SAME_ARTIFACT:
        if getattr(published, field) != getattr(ours, field):
            raise _different(ours, field, url)


def _different(manifest: Manifest, what: str, url: str) -> IntegrityError:
    """Describe two artifacts that share an id: the same files, packed or described differently."""
    message = f"{manifest.stem} is in {url} already, with a different {what}"
    ref = f"{manifest.name}@{manifest.id}"
    hint = f"nothing is ever overwritten: use the one that is there, `envferry fetch {ref}`"
    return IntegrityError(message, hint=hint)
