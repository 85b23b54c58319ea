"""Publishing an artifact in a registry: the only protocol that writes below `v1/envs`.

A push brings files of this machine; mirror, export and apply bring what another registry holds,
read and compared while it is written. Order, conditions and attempts are the same for all.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from envferry.archive.identity import check_manifest
from envferry.archive.reader import Archive
from envferry.artifacts import (
    ATTESTATION,
    REGISTRY_MANIFEST,
    SBOM,
    SIGSTORE,
    Proof,
    check_lock,
    check_sbom,
    checksum_line,
    read_lock,
    read_proof,
    sbom_path,
)
from envferry.errors import IntegrityError
from envferry.registry.compare_and_swap import compare_and_swap
from envferry.registry.known_frames import opened_file
from envferry.registry.layer_cuts import layered
from envferry.registry.layout import LOCK_FILE, archive_key, folder_of
from envferry.registry.published_archive import latest_archive
from envferry.registry.removal import require_kept, require_settled
from envferry.registry.sigstore_bundles import place_sigstore_bundle, sigstore_bundle_for
from envferry.stores.port import KeyTaken, stat_whole
from envferry.stores.source import ContentSource
from envferry.trust.attestations import (
    attest,
    countersign,
    decode_envelope,
    encode_envelope,
    is_about,
    require_described,
    signers_of,
    verify_subjects,
)
from envferry.trust.materials import read_materials
from envferry.trust.sigstore_bundle import require_sound_bundle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from envferry.models import Artifact, Manifest
    from envferry.registry.registry import Registry
    from envferry.trust.signing import Envelope

log = logging.getLogger(__name__)

SAME_ARTIFACT = ("archive", "prefix", "version", "packages", "requirements", "checks")
"""What must be equal in two manifests of one id. The rest says how it was made, not what it is."""


class Companions(msgspec.Struct, frozen=True, kw_only=True):
    """What belongs to an archive, as it is to be written."""

    lock: bytes
    proof: Proof
    sbom: bytes | None

    @classmethod
    def beside(cls, artifact: Artifact) -> Companions:
        """Read what lies beside an archive on a disk; all of it checked."""
        sbom = sbom_path(artifact)
        companions = cls(
            lock=read_lock(artifact),
            proof=read_proof(artifact.manifest_path),
            sbom=sbom.read_bytes() if sbom.exists() else None,
        )
        companions.require_sound(artifact.manifest, f"beside {artifact.archive_path}")
        return companions

    @classmethod
    def of(cls, source: Registry, manifest: Manifest) -> Companions:
        """Read what lies beside an archive in a registry; all of it checked."""
        companions = cls(
            lock=source.read_lock(manifest),
            proof=source.proof(manifest),
            sbom=source.attachment(manifest, SBOM),
        )
        companions.require_sound(manifest, f"in {folder_of(manifest)} in {source.url}")
        return companions

    def require_sound(self, manifest: Manifest, where: str) -> None:
        """Raise IntegrityError for what would stay damaged: nothing is ever overwritten."""
        check_lock(manifest, self.lock, f"{LOCK_FILE} {where}")
        if self.sbom is not None:
            check_sbom(self.sbom, f"{SBOM} {where}")
        if self.proof.attestation is not None:
            envelope = decode_envelope(self.proof.attestation, f"{ATTESTATION} {where}")
            verify_subjects(envelope, manifest, self.proof.manifest_data)
        if self.proof.sigstore is not None:
            what, data = f"{SIGSTORE} {where}", self.proof.manifest_data
            require_sound_bundle(self.proof.sigstore, what, manifest, data)


class ArtifactSource(msgspec.Struct, frozen=True, kw_only=True):
    """An artifact that is to be published, wherever it comes from."""

    manifest: Manifest
    companions: Companions
    archive: Path | ContentSource
    """A file that was verified unless the target `compares_while_sending`, or what is compared."""
    is_noted: bool = False
    """Whether this user packed the file and noted all digests that its manifest has."""


def publish_artifact(
    target: Registry, source: ArtifactSource, advance: Callable[[int], None]
) -> bool:
    """Write what is missing of an artifact; return whether anything had to be written.

    The order is the one of docs/format.md: archive, checksum, lock and SBOM, then the manifest
    (until then, the artifact does not exist for others), then the signatures, which are over the
    manifest as it is stored. `advance` gets the bytes of the archive that are done. Raises
    IntegrityError when the target has another artifact under this id, or when bytes are not
    what the manifest says: then nothing is published.
    """
    manifest, companions = source.manifest, source.companions
    folder = folder_of(manifest)
    # What is being removed has files for a moment that would count as there.
    require_settled(target, folder)
    published = target.published(folder)
    if published:
        _require_same(published, manifest, target.url)
    is_new = published is None
    # First, for a token may be valid for minutes, and what cannot be signed is not sent.
    sigstore = sigstore_bundle_for(target, manifest, companions.proof)
    sent = _place_archive(target, source, advance, is_new=is_new)
    sidecar = f"{folder}{manifest.archive.file}.xxh128"
    sent |= place(target, sidecar, checksum_line(manifest), must_match=True)
    # Two locks may lead to the same archive: the one that is published is bound by its manifest.
    is_their_lock = published is not None and published.lock_digest != manifest.lock_digest
    sent |= place(target, folder + LOCK_FILE, companions.lock, must_match=not is_their_lock)
    if companions.sbom is not None:
        sent |= place(target, folder + SBOM, companions.sbom, must_match=False)
    _require_sent_files(target, manifest)
    data = companions.proof.manifest_data
    # A manifest that was published before stays: signatures are over its bytes.
    is_placed = place(target, folder + REGISTRY_MANIFEST, data, must_match=False)
    if is_new and not is_placed:
        _require_same_build(target, manifest)
    sent |= is_placed
    sent |= _place_attestation(target, source, None)
    return sent | place_sigstore_bundle(target, manifest, sigstore)


def sign_published(target: Registry, manifest: Manifest, data: bytes) -> bool:
    """Sign what others published, whose manifest was checked; return whether that was needed.

    `data` are the manifest's bytes that were checked: what lies there by now is not read again.
    Raises IntegrityError when strangers signed it, or when its lock or its SBOM are not its own.
    """
    require_described(manifest, data, f"the manifest of {manifest.stem}")
    companions = Companions.of(target, manifest)
    proof = replace(companions.proof, manifest_data=data)
    source = ArtifactSource(
        manifest=manifest,
        companions=replace(companions, proof=proof),
        archive=target.archive_content(manifest),
    )
    sigstore = sigstore_bundle_for(target, manifest, proof, data)
    signed = _place_attestation(target, source, data)
    return signed | place_sigstore_bundle(target, manifest, sigstore)


def _require_sent_files(target: Registry, manifest: Manifest) -> None:
    """Raise RemovedMeanwhile if files went before a manifest would say that they are there.

    A removal may have read the folder as what an interrupted push left, or its tags before they
    moved. If this push then never ends, its manifest would name an archive that is gone.
    """
    folder = folder_of(manifest)
    if target.store.stat(folder + REGISTRY_MANIFEST) is None:
        archive = manifest.archive.file
        require_kept(target, folder, (archive, f"{archive}.xxh128", LOCK_FILE))


def require_whole(registry: Registry, manifest: Manifest) -> None:
    """Raise RemovedMeanwhile unless all files of an artifact exist; tags point to it already."""
    archive = manifest.archive.file
    # Without the SBOM: an artifact may have been published without one.
    names = [archive, f"{archive}.xxh128", LOCK_FILE, REGISTRY_MANIFEST]
    if registry.signer:
        names.append(ATTESTATION)
    if registry.keyless:
        names.append(SIGSTORE)
    require_kept(registry, folder_of(manifest), names)


def place(registry: Registry, key: str, data: bytes, *, must_match: bool) -> bool:
    """Write a small file once; return whether it was written."""
    try:
        registry.store.create(key, data)
    except KeyTaken:
        # Taken by another push, or by our own first attempt: only what is there can tell.
        if must_match and registry.store.read(key) != data:
            message = f"{key} in {registry.url} exists with different content"
            hint = "remove it there if nothing was published with it, then push again"
            raise IntegrityError(message, hint=hint) from None
        return False
    return True


def _place_archive(
    target: Registry, source: ArtifactSource, advance: Callable[[int], None], *, is_new: bool
) -> bool:
    """Write the archive unless it is there; return whether it was written.

    One that is there is believed when a manifest says that it was whole; else it is read.
    """
    manifest, key = source.manifest, archive_key(source.manifest)
    # A push has compared its file's index already;
    # what is carried is compared before it is written.
    if isinstance(source.archive, ContentSource) and (
        is_new or stat_whole(target.store, key) is None
    ):
        check_manifest(Archive(source.archive), manifest)
    if stat_whole(target.store, key) is None:
        store = layered(target.store, source.archive, target.layers)
        try:
            if isinstance(source.archive, ContentSource):
                store.receive(key, source.archive, advance)
            elif store.compares_while_sending:
                # A registry of images makes no blob of parts of others: nothing is asked for.
                # Each push moves `latest`: its version is the likeliest to share frames with this.
                of = (manifest.name, manifest.platform)
                before = None if store.images else latest_archive(target, *of)
                file = opened_file(source.archive, manifest, before, is_noted=source.is_noted)
                with file as (content, known):
                    store.receive(key, content, advance, known)
            else:
                store.create_from_file(key, source.archive, advance)
        except KeyTaken:
            # Or by us, with the answer lost. Either way it is compared below, not believed.
            log.info("%s was written by another process meanwhile", key)
        else:
            return True
    target.require_archive(manifest)
    facts = manifest.archive
    if not is_new:
        advance(facts.size)
    elif target.digest_archive(manifest, advance) != (facts.xxh128, facts.blake3):
        message = f"{key} in {target.url} is a different archive, or damaged"
        raise IntegrityError(message, hint="nothing was published with it: remove it there")
    return False


def _place_attestation(target: Registry, source: ArtifactSource, data: bytes | None) -> bool:
    """Write who signed, or add signatures to those of the same statement; return whether it did.

    `data` is the manifest to sign; None: as it is stored.
    """
    if source.companions.proof.attestation is None and target.signer is None:
        return False
    key = folder_of(source.manifest) + ATTESTATION

    def signed(there: bytes | None) -> bytes | None:
        # In each round: of two builds at once, the manifest that is stored is the one to sign.
        manifest = data or target.store.read(folder_of(source.manifest) + REGISTRY_MANIFEST)
        return _attestation(target, source, there, manifest)

    return compare_and_swap(target, key, signed)


def _attestation(
    target: Registry, source: ArtifactSource, there: bytes | None, data: bytes
) -> bytes | None:
    """Return the envelope to publish: the registry's, with the carried signatures and ours."""
    manifest, carried = source.manifest, source.companions.proof.attestation
    key = folder_of(manifest) + ATTESTATION
    envelope = decode_envelope(there, f"{key} in {target.url}") if there else None
    if carried and carried != there:
        ours = decode_envelope(carried, f"the attestation of {manifest.stem}")
        if envelope is None:
            envelope = ours if _is_signed_here(target, manifest, ours, data) else None
        else:
            envelope = _joined(envelope, ours)
    if target.signer:
        envelope = _signed(envelope, target, source, data)
    for known in filter(None, (there, carried)):
        if envelope == decode_envelope(known, key):
            return known  # byte for byte as it was written
    return encode_envelope(envelope) if envelope else None


def _is_signed_here(target: Registry, manifest: Manifest, ours: Envelope, data: bytes) -> bool:
    """Whether carried signatures are about the manifest that the target has.

    If it is not, and nothing else will sign, IntegrityError is raised.
    """
    if is_about(ours, manifest, data):
        return True
    if target.signer:
        return False
    message = f"{manifest.stem} in {target.url} has a different manifest than the signed one"
    raise IntegrityError(message, hint="it was built twice; push it there with --sign-key")


def _joined(theirs: Envelope, ours: Envelope) -> Envelope:
    """Return the signatures of both sides where they are over the same statement, else theirs."""
    if theirs.message != ours.message:
        return theirs
    # Theirs stay first and in order: hosts may have this envelope already.
    fresh = (one for one in ours.signatures if one not in theirs.signatures)
    return msgspec.structs.replace(theirs, signatures=(*theirs.signatures, *fresh))


def _signed(
    envelope: Envelope | None, target: Registry, source: ArtifactSource, data: bytes
) -> Envelope:
    """Add the signatures of our keys, or sign what is unsigned.

    Ours stand beside others only when we know one of these: else we would vouch for what
    another publisher claims about the build.
    """
    manifest, signer = source.manifest, target.signer
    assert signer is not None
    if envelope is None or not envelope.signatures:
        materials = read_materials(manifest, source.companions.lock)
        return attest(manifest, data, materials, signer, _image_of(target, manifest))
    known = (
        *(key.public for key in signer.keys),
        *(target.trust.keys_for("release") if target.trust else ()),
    )
    if is_about(envelope, manifest, data) and signers_of(envelope, known):
        return countersign(envelope, signer.keys)
    message = f"{manifest.stem} in {target.url} is signed by unknown keys"
    hint = f"add your signature with --trusted-key, or remove {folder_of(manifest)}{ATTESTATION}"
    raise IntegrityError(message, hint=hint)


def _image_of(target: Registry, manifest: Manifest) -> str | None:
    """Return the digest of an archive's image where the registry has one; it is there by now."""
    images = target.store.images
    return images.image_digest(archive_key(manifest)) if images else None


def _require_same_build(target: Registry, ours: Manifest) -> None:
    """Raise IntegrityError unless what another push has published meanwhile is ours, lock too."""
    published = target.published(folder_of(ours))
    if published is None or published.lock_digest != ours.lock_digest:
        raise _different(ours, "lock", target.url)
    _require_same(published, ours, target.url)


def _require_same(published: Manifest, ours: Manifest, url: str) -> None:
    for field in SAME_ARTIFACT:
        if _said(published, field) != _said(ours, field):
            raise _different(ours, field, url)


def _said(manifest: Manifest, field: str) -> object:
    """Return a field, without what older manifests do not have."""
    if field == "archive":
        # It follows from the archive's bytes, which the other digests bind.
        return msgspec.structs.replace(manifest.archive, tar_sha256="")
    return getattr(manifest, field)


def _different(manifest: Manifest, what: str, url: str) -> IntegrityError:
    """Describe two artifacts that share an id: the same files, packed or described differently."""
    message = f"{manifest.stem} is in {url} already, with a different {what}"
    ref = f"{manifest.name}@{manifest.id}"
    hint = f"nothing is ever overwritten: use the existing one, `envferry fetch {ref}`"
    return IntegrityError(message, hint=hint)
