"""Open what people name: registries and archives whose signatures are in order."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from envferry.artifacts import ARCHIVE_SUFFIX, MANIFEST_SUFFIX, read_artifact, read_proof
from envferry.base.files import absolute_path
from envferry.install.records.actor import current_actor
from envferry.install.records.env_home import IMAGE_SUFFIX
from envferry.install.records.installation import Origin
from envferry.install.unchanged import is_signed_by, settled_installation
from envferry.names import Ref, current_platform
from envferry.redaction import fit_to_show
from envferry.registry.published_archive import PublishedArchive
from envferry.registry.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.archive.reader import Source
    from envferry.install.plan import InstallOptions
    from envferry.install.records.installation import Installation
    from envferry.models import Manifest
    from envferry.progress import Progress
    from envferry.trust.attestations import VerifiedArtifact
    from envferry.trust.host_trust import Trust


def is_file_ref(ref: str) -> bool:
    """Whether a ref is the path of an archive, a manifest or an image."""
    return ref.endswith((ARCHIVE_SUFFIX, MANIFEST_SUFFIX, IMAGE_SUFFIX)) or "/" in ref


def open_trusting(url: str, trust: Trust) -> Registry:
    """Open a registry that hands out nothing unsigned, if any key is trusted."""
    return Registry.open(url, trust=trust.if_any)


@contextmanager
def opened_archive(
    ref: str, registry: str | Registry, trust: Trust
) -> Iterator[tuple[Source, Manifest]]:
    """Open an archive on a disk, or one in a registry, if its signatures are in order."""
    from envferry.archive.reader import FileSource

    if is_file_ref(ref):
        artifact = read_artifact(Path(ref))
        # Before the archive is opened: an index is parsed only when its signatures are in order.
        check_file(Path(ref), artifact.manifest, trust)
        with FileSource(artifact.archive_path) as source:
            yield source, artifact.manifest
        return
    wanted = Ref.parse(ref)
    place = registry if isinstance(registry, Registry) else Registry.open(registry)
    # Also where a caller has opened the registry: it may have been opened without any keys.
    place = replace(place, trust=trust)
    platform = current_platform()
    manifest = place.manifest(wanted.name, platform, place.resolve(wanted, platform))
    # One request, which names a missing archive; later it would show up as a failed range read.
    place.require_archive(manifest)
    yield PublishedArchive(place, manifest), manifest


def settled(ref: str, registry: str, trust: Trust, options: InstallOptions) -> Installation | None:
    """Return what is current, if it is what a ref means now and an install would leave it so.

    One request tells what a tag means, none is needed for an id; the rest is in this host's
    records. None where these leave a doubt. Raises IntegrityError for what was revoked, and for a
    tag that is not in order.
    """
    if is_file_ref(ref):
        return None
    wanted, platform = Ref.parse(ref), current_platform()
    there = settled_installation(wanted.name, options)
    if there is None or not _is_accepted(there, trust):
        return None
    place = replace(Registry.open(registry), trust=trust)
    id_ = wanted.version if wanted.is_id else place.resolve(wanted, platform)
    trust.forbid_revoked(wanted.name, platform, id_)
    return there if there.id == id_ else None


def _is_accepted(installation: Installation, trust: Trust) -> bool:
    """Whether those who are trusted now had signed an installation, by its record."""
    keys, names = [key.id for key in trust.keys_for("release")], trust.identities.accepted
    needs_keys = trust.asks_release_keys
    return (not needs_keys or is_signed_by(installation, keys, trust.least_for("release"))) and (
        not names or is_signed_by(installation, [*map(str, names)], 1)
    )


def check_file(path: Path, manifest: Manifest, trust: Trust) -> None:
    """Check who signed an artifact on a disk."""
    trust.check_artifact(manifest, read_proof(path))


def origin_of(ref: str, registry: str, signed_by: tuple[str, ...] = ()) -> Origin:
    """Return what the record of an installation says of its origin.

    `signed_by` has the ids of the trusted keys that signed it.
    """
    actor = current_actor()
    if is_file_ref(ref) or Path(ref).is_file():
        source, tag = str(absolute_path(Path(ref))), None
    else:
        parsed = Ref.parse(ref)
        # Absolute: the record is read later, from any working directory.
        source = registry if "://" in registry else str(absolute_path(Path(registry)))
        tag = None if parsed.is_id else parsed.version
    return Origin(
        time=actor.time,
        user=actor.user,
        # Records are kept and shown, and a URL may hold a login or a token.
        source=fit_to_show(source),
        ref=ref,
        tag=tag,
        signed_by=signed_by,
    )


def verify_signed_file(path: Path, trust: Trust, *, progress: Progress) -> VerifiedArtifact:
    """Check who signed an artifact on a disk, and every byte of its archive."""
    from envferry.archive.identity import check_manifest
    from envferry.archive.reader import Archive, FileSource
    from envferry.artifacts import verify_artifact

    artifact = read_artifact(path)
    # Signatures before bytes: what is refused anyway is not read to its end.
    verified = trust.verify_artifact(artifact.manifest, read_proof(path))
    verify_artifact(artifact, progress=progress)
    with FileSource(artifact.archive_path) as source:
        check_manifest(Archive(source), artifact.manifest)
    return verified


def verify_signed(
    manifest: Manifest, registry: Registry, trust: Trust, *, progress: Progress
) -> VerifiedArtifact:
    """Check who signed an artifact in a registry, and every byte of its archive."""
    verified = trust.verify_artifact(manifest, registry.proof(manifest))
    registry.verify_archive(manifest, progress=progress)
    # Digests only say that the archive is the one that was packed, not that a host would take it.
    registry.require_installable(manifest)
    return verified
