"""Publishing: the archive and what belongs to it, then the manifest, then who signed it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.artifacts import ATTESTATION, REGISTRY_MANIFEST, checksum_line, read_lock, read_proof
from envferry.base.retry import RACES, persistently
from envferry.errors import IntegrityError, NotFound, StoreError
from envferry.models import DEFAULT_TAG, Manifest
from envferry.registry.known_frames import find_known
from envferry.registry.layout import LOCK_FILE, archive_key, artifact_folder, folder_of, tag_key
from envferry.registry.removal import require_kept, require_settled
from envferry.registry.tags import read_tag
from envferry.stores.port import KeyTaken, LostRace, lost_races_again, stat_whole
from envferry.trust.attestations import (
    attest,
    countersign,
    decode_envelope,
    encode_envelope,
    is_about,
    signers_of,
)
from envferry.trust.materials import read_materials

if TYPE_CHECKING:
    from envferry.models import Artifact
    from envferry.progress import Progress
    from envferry.registry.registry import Registry
    from envferry.stores.port import KnownRange

SAME_ARTIFACT = ("archive", "prefix", "version", "packages", "requirements", "checks")
"""What must be equal in two manifests of one id. The rest says how it was made, not what it is."""


def publish_artifact(registry: Registry, artifact: Artifact, progress: Progress) -> bool:
    """Write what is missing of an artifact; return whether anything had to be sent.

    The manifest comes after the files: until then there is no artifact for anybody else. Then
    the signatures.
    """
    manifest = artifact.manifest
    folder = folder_of(manifest)
    require_settled(registry, folder)
    published = registry.published(folder)
    if published:
        _require_same(published, manifest, registry.url)
    files = {
        f"{manifest.archive.file}.xxh128": checksum_line(manifest),
        LOCK_FILE: read_lock(artifact),
        REGISTRY_MANIFEST: read_proof(artifact.manifest_path).manifest_data,
    }
    sent = _place_archive(registry, artifact, progress)
    for name, data in files.items():
        sent |= place(registry, folder + name, data, must_match=published is None)
    return sent | _place_attestation(registry, artifact)


def require_whole(registry: Registry, manifest: Manifest) -> None:
    """Raise WasRemoved unless all that was published is still there; tags point to it already."""
    archive = manifest.archive.file
    names = [archive, f"{archive}.xxh128", LOCK_FILE, REGISTRY_MANIFEST]
    if registry.signer:
        names.append(ATTESTATION)
    require_kept(registry, folder_of(manifest), names)


def place(registry: Registry, key: str, data: bytes, *, must_match: bool) -> bool:
    """Write a small file once; return whether it was written."""
    try:
        registry.store.create(key, data)
    except KeyTaken:
        if must_match and registry.store.read(key) != data:
            message = f"{key} in {registry.url} exists with another content"
            hint = "remove it there if nothing was published with it, then push again"
            raise IntegrityError(message, hint=hint) from None
        return False
    return True


def _place_archive(registry: Registry, artifact: Artifact, progress: Progress) -> bool:
    """Send an archive unless it is there; return whether it was sent."""
    facts, key = artifact.manifest.archive, archive_key(artifact.manifest)
    if stat_whole(registry.store, key):
        _require_same_archive(registry, artifact.manifest)
        return False
    known = _known(registry, artifact)
    with progress.task(f"push {facts.file}", facts.size) as advance:
        try:
            registry.store.create(key, artifact.archive_path, advance, known)
        except KeyTaken:
            _require_same_archive(registry, artifact.manifest)
            return False
    return True


def _known(registry: Registry, artifact: Artifact) -> tuple[KnownRange, ...]:
    """Return what of an archive is here already, in the version that `latest` points to."""
    from envferry.registry.registry import PublishedArchive

    name, platform = artifact.manifest.name, artifact.manifest.platform
    _, record = read_tag(registry, tag_key(name, platform, DEFAULT_TAG))
    if not record:
        return ()
    before = registry.published(artifact_folder(name, platform, record.id))
    if not before:
        return ()
    published = PublishedArchive(registry, before)
    return find_known(artifact.archive_path, published, archive_key(before))


def _place_attestation(registry: Registry, artifact: Artifact) -> bool:
    """Add our signatures to those that are there; return whether anything was written.

    Ours stand beside others only when we know one of these: else we would vouch for what
    somebody else made up about the build.
    """
    key = folder_of(artifact.manifest) + ATTESTATION

    def attempt() -> bool:
        stat = registry.store.stat(key)
        there = registry.store.read(key) if stat else None
        wanted = _attestation(registry, artifact, there)
        if wanted is None or wanted == there:
            return False
        with lost_races_again():
            registry.store.replace(key, wanted, stat.version if stat else None)
        return True

    try:
        return persistently(attempt, RACES)
    except LostRace as error:
        message = f"{key} in {registry.url} is changed by somebody else again and again"
        raise StoreError(message, hint="push again: nothing is sent twice") from error


def _attestation(registry: Registry, artifact: Artifact, there: bytes | None) -> bytes | None:
    """Return the envelope that an artifact shall have, None for none."""
    manifest, signer = artifact.manifest, registry.signer
    key = folder_of(manifest) + ATTESTATION
    data = registry.store.read(folder_of(manifest) + REGISTRY_MANIFEST)
    carried = read_proof(artifact.manifest_path).attestation
    if there is None and carried:
        envelope = decode_envelope(carried, f"the attestation beside {artifact.archive_path}")
        there = carried if is_about(envelope, manifest, data) else None
    if not signer:
        return there
    known = (
        *(key.public for key in signer.keys),
        *(registry.trust.keys if registry.trust else ()),
    )
    if there is None or not (envelope := decode_envelope(there, key)).signatures:
        return encode_envelope(attest(manifest, data, read_materials(artifact), signer))
    if is_about(envelope, manifest, data) and signers_of(envelope, known):
        return encode_envelope(countersign(envelope, signer.keys))
    message = f"{manifest.stem} in {registry.url} is signed by keys that are not known here"
    hint = f"sign beside them with --trusted-key, or remove {key}"
    raise IntegrityError(message, hint=hint)


def _require_same_archive(registry: Registry, manifest: Manifest) -> None:
    """Raise IntegrityError unless the archive that is there is this one.

    A manifest or a checksum beside it says so already; after a push that broke off between
    the two, only the bytes can tell.
    """
    registry.require_archive(manifest)
    try:
        line = registry.store.read(f"{archive_key(manifest)}.xxh128")
        same = line == checksum_line(manifest)
    except NotFound:
        _, found = registry.digest_archive(manifest, lambda _: None)
        same = found == manifest.archive.blake3
    if not same:
        raise _different(manifest, "archive", registry.url)


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
