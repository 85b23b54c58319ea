"""Artifacts on disk: an archive with its manifest, checksum and lock beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from blake3 import blake3

from envferry.base.files import digest_file, write_bytes
from envferry.base.json import decode_json, from_json, to_json
from envferry.errors import IntegrityError, NotFound, UsageError
from envferry.models import Artifact, Manifest
from envferry.names import ID_PATTERN, NAME_PATTERN
from envferry.suggestions import did_you_mean_file

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.progress import Progress

ARCHIVE_SUFFIX = ".tar.zst"
MANIFEST_SUFFIX = ".manifest.json"
ATTESTATION = "attestation.json"
SBOM = "sbom.cdx.json"
SIGSTORE = "manifest.json.sigstore.json"
"""As sigstore's own programs call the bundle beside a file."""
MOST_BYTES = 64 << 20
"""Of a manifest, lock or attestation: ten times what a thousand packages need."""
REGISTRY_MANIFEST = "manifest.json"
"""What a manifest is called in a registry, where each artifact has a folder of its own."""


def read_artifact(path: Path) -> Artifact:
    """Read the artifact that `path` belongs to: its `.tar.zst` or its `.manifest.json`.

    Raises NotFound when a part of it is missing, IntegrityError when the manifest is damaged or
    describes another archive. The archive's own bytes are not read: `verify_artifact` does that.
    """
    manifest_path = _manifest_beside(path)
    manifest = decode_manifest(_read_whole(manifest_path), str(manifest_path))
    artifact = Artifact(directory=manifest_path.parent, manifest=manifest)
    # The checksums would tell a renamed archive, too, but only after gigabytes were read.
    if path.name.endswith(ARCHIVE_SUFFIX) and path.name != artifact.archive_path.name:
        message = f"{manifest_path} describes {manifest.archive.file}, not {path.name}"
        raise IntegrityError(message, hint="restore the original file names")
    if not artifact.archive_path.is_file():
        message = f"the archive {artifact.archive_path} is missing"
        raise NotFound(message, hint="copy all files of the artifact, or fetch it again")
    return artifact


def decode_manifest(data: bytes, what: str) -> Manifest:
    """Decode a manifest and check that its names can be file names; `what` names it in errors."""
    manifest = from_json(data, Manifest, what)
    names = NAME_PATTERN.fullmatch(manifest.name) and NAME_PATTERN.fullmatch(manifest.platform)
    if not names or not ID_PATTERN.fullmatch(manifest.id):
        message = f"{what} is damaged: {manifest.stem!r} does not have the form NAME-PLATFORM-ID"
        raise IntegrityError(message, hint="copy or fetch it again")
    # The file's name is joined to a directory later, so only this one is accepted.
    expected = f"{manifest.stem}{ARCHIVE_SUFFIX}"
    if manifest.archive.file != expected:
        message = f"{what} names the archive {manifest.archive.file!r}, expected {expected!r}"
        raise IntegrityError(message, hint="copy or fetch it again")
    return manifest


def verify_artifact(artifact: Artifact, *, progress: Progress) -> None:
    """Read the archive and the lock; raise IntegrityError when they are not the manifest's."""
    require_present(artifact)
    facts, path = artifact.manifest.archive, artifact.archive_path
    with progress.task(f"check {facts.file}", facts.size) as advance:
        require_digests(artifact.manifest, digest_file(path, advance), str(path))


def require_present(artifact: Artifact) -> None:
    """Raise IntegrityError unless the archive has its length and the lock is the manifest's."""
    path = artifact.archive_path
    if not path.is_file():
        message = f"the archive {path} is missing"
        raise NotFound(message, hint="copy all files of the artifact, or fetch it again")
    require_size(artifact.manifest.archive.size, path.stat().st_size, str(path))
    read_lock(artifact)


def read_lock(artifact: Artifact) -> bytes:
    """Return the lock beside an archive, checked against the manifest."""
    path = artifact.lock_path
    if not path.is_file():
        message = f"the lock {path} is missing"
        raise NotFound(message, hint="copy all files of the artifact, or fetch it again")
    data = _read_whole(path)
    check_lock(artifact.manifest, data, str(path))
    return data


def check_lock(manifest: Manifest, data: bytes, what: str) -> None:
    """Raise IntegrityError unless `data` is the lock that the manifest binds."""
    found = blake3(data).hexdigest()
    if found != manifest.lock_digest:
        message = f"{what}: BLAKE3 is {found}, the manifest says {manifest.lock_digest}"
        raise IntegrityError(message, hint="pack the environment again, or fetch it again")


def check_sbom(data: bytes, what: str) -> None:
    """Raise IntegrityError unless `data` is a CycloneDX list, which no manifest binds."""
    hint = "run `envferry check` on the registry it comes from: it says how to repair it"
    try:
        found = decode_json(data, object)
    except msgspec.MsgspecError as error:
        msg = f"{what} is damaged: {error}"
        raise IntegrityError(msg, hint=hint) from error
    if not isinstance(found, dict) or found.get("bomFormat") != "CycloneDX":
        msg = f"{what} is not a CycloneDX document"
        raise IntegrityError(msg, hint=hint)


def require_size(expected: int, found: int, what: str) -> None:
    """Raise IntegrityError unless an archive is as long as its manifest says."""
    if found != expected:
        message = f"{what} has {found} bytes, the manifest says {expected}"
        raise IntegrityError(message, hint="copy or fetch it again")


def require_digests(manifest: Manifest, found: tuple[str, str], what: str) -> None:
    """Raise IntegrityError unless `found` (XXH3-128, BLAKE3) are the archive's digests."""
    expected = (manifest.archive.xxh128, manifest.archive.blake3)
    for algorithm, digest, wanted in zip(("XXH3-128", "BLAKE3"), found, expected, strict=True):
        if digest != wanted:
            message = f"{what} is damaged: {algorithm} is {digest}, the manifest says {wanted}"
            raise IntegrityError(message, hint="copy or fetch it again")


def checksum_line(manifest: Manifest) -> bytes:
    """Return the `.xxh128` sidecar in the GNU form that `xxhsum -c` reads: hash, blanks, file."""
    return f"{manifest.archive.xxh128}  {manifest.archive.file}\n".encode()


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What a signature check needs: a manifest's own bytes, and who signed them."""

    manifest_data: bytes
    attestation: bytes | None = None
    """A DSSE envelope; None for an artifact that no key signed."""
    sigstore: bytes | None = None
    """A Sigstore bundle; None for an artifact that no identity signed."""


def read_proof(path: Path) -> Proof:
    """Read the proof of the artifact that `path` belongs to, see `read_artifact`."""
    manifest_path = _manifest_beside(path)
    # Empty in a registry's folder, `NAME-PLATFORM-ID.` elsewhere: the files beside it start alike.
    stem = manifest_path.name[: -len(REGISTRY_MANIFEST)]
    paths = (manifest_path.with_name(stem + name) for name in (ATTESTATION, SIGSTORE))
    attestation, sigstore = (_read_whole(path) if path.is_file() else None for path in paths)
    return Proof(
        manifest_data=_read_whole(manifest_path), attestation=attestation, sigstore=sigstore
    )


def write_companions(
    artifact: Artifact, lock: bytes, proof: Proof | None = None, *, mode: int | None = 0o644
) -> None:
    """Write checksum, lock, signatures and manifest beside an archive, the manifest last.

    With a `proof` the manifest is written as it was: a signature is over its bytes. Their mode is
    that of the archive; None where that follows the umask.
    """
    write_bytes(artifact.checksum_path, checksum_line(artifact.manifest), mode)
    write_bytes(artifact.lock_path, lock, mode)
    signatures = {
        ATTESTATION: proof.attestation if proof else None,
        SIGSTORE: proof.sigstore if proof else None,
    }
    for name, signature in signatures.items():
        path = artifact.directory / f"{artifact.manifest.stem}.{name}"
        if signature:
            write_bytes(path, signature, mode)
        else:
            # One that lies there from an earlier pack may be about another manifest of this id.
            path.unlink(missing_ok=True)
    # Last: without a manifest, the other files are not an artifact.
    data = proof.manifest_data if proof else to_json(artifact.manifest)
    write_bytes(artifact.manifest_path, data, mode)


def sbom_path(artifact: Artifact) -> Path:
    """Return where an artifact's SBOM is, if it has one: `NAME-PLATFORM-ID.sbom.cdx.json`."""
    return artifact.directory / f"{artifact.manifest.stem}.{SBOM}"


def _read_whole(path: Path) -> bytes:
    """Read a file beside an archive: a foreign disk may claim any length for it."""
    with path.open("rb") as stream:
        # Both bounds: the length spares the read, and a file may grow or have no length.
        data = stream.read(MOST_BYTES + 1) if path.stat().st_size <= MOST_BYTES else None
    if data is None or len(data) > MOST_BYTES:
        message = f"{path} has more than {MOST_BYTES:,} bytes, more than this kind of file can have"
        raise IntegrityError(message, hint="copy or fetch it again")
    return data


def _manifest_beside(path: Path) -> Path:
    """Return the manifest that belongs to `path`, which must be there."""
    if path.name.endswith(MANIFEST_SUFFIX) or path.name == REGISTRY_MANIFEST:
        candidates: tuple[Path, ...] = (path,)
    elif path.name.endswith(ARCHIVE_SUFFIX):
        stem = path.name[: -len(ARCHIVE_SUFFIX)]
        # Beside the archive as `pack` and `fetch` write it, or as a registry's folder has it.
        candidates = (path.with_name(stem + MANIFEST_SUFFIX), path.with_name(REGISTRY_MANIFEST))
    elif path.is_dir():
        message = f"{path} is a folder, expected an artifact"
        raise UsageError(
            message, hint=f"if it is a registry, name an environment and `--registry {path}`"
        )
    else:
        message = f"{path} is not an artifact: its name ends in neither .tar.zst nor .manifest.json"
        otherwise = "name an archive file, or a ref such as demo@stable"
        raise UsageError(message, hint=did_you_mean_file(path, otherwise))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    missing = f"the manifest {candidates[0]}" if path.exists() else path
    message = f"{missing} does not exist"
    otherwise = "copy all files of the artifact, or fetch it again"
    raise NotFound(message, hint=otherwise if path.exists() else did_you_mean_file(path, otherwise))
