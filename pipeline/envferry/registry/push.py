"""Stage 4, push: Artifact -> PushedArtifact."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from envferry.archive.identity import check_manifest
from envferry.archive.reader import Archive, FileSource
from envferry.artifacts import SBOM, sbom_path, verify_artifact
from envferry.base.retry import RetryPolicy, Transient, persistently
from envferry.errors import NotFound
from envferry.models import DEFAULT_TAG, PushedArtifact
from envferry.registry import WasRemoved, check_tag

if TYPE_CHECKING:
    from envferry.models import Artifact, Manifest
    from envferry.progress import Progress
    from envferry.registry import Registry

log = logging.getLogger(__name__)

REPEATS = RetryPolicy(attempts=3, first_pause=0)


def push_artifact(
    artifact: Artifact, *, registry: Registry, tags: tuple[str, ...], progress: Progress
) -> PushedArtifact:
    """Publish an artifact and point `tags` and `latest` to it.

    Nothing is sent before the archive's bytes were compared with the manifest; the tags move last.
    Raises IntegrityError for a damaged artifact, or when the id is taken by a different one.
    """
    manifest = artifact.manifest
    wanted = _wanted(tags)
    verify_artifact(artifact, progress=progress)
    with FileSource(artifact.archive_path) as source:
        check_manifest(Archive(source), manifest)
    uploaded = _publish_persistently(artifact, registry, wanted, progress)
    return _pushed(manifest, registry, wanted, uploaded=uploaded)


def tag_published(
    manifest: Manifest, *, registry: Registry, tags: tuple[str, ...]
) -> PushedArtifact:
    """Point `tags` and `latest` to an artifact that the registry has already, as a push does."""
    wanted = _wanted(tags)
    registry.require_installable(manifest)
    for tag in wanted:
        registry.move_tag(manifest.name, manifest.platform, tag, manifest.id)
    registry.require_whole(manifest)
    return _pushed(manifest, registry, wanted, uploaded=False)


def _wanted(tags: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(check_tag(tag) for tag in (*tags, DEFAULT_TAG)))


def _pushed(
    manifest: Manifest, registry: Registry, tags: tuple[str, ...], *, uploaded: bool
) -> PushedArtifact:
    return PushedArtifact(
        registry=registry.url,
        name=manifest.name,
        platform=manifest.platform,
        id=manifest.id,
        size=manifest.archive.size,
        tags=tags,
        uploaded=uploaded,
    )


def _publish_persistently(
    artifact: Artifact, registry: Registry, tags: tuple[str, ...], progress: Progress
) -> bool:
    """Publish once more what somebody pruned meanwhile; raise WasRemoved if that repeats."""

    def attempt() -> bool:
        try:
            return _publish(artifact, registry, tags, progress)
        except (WasRemoved, NotFound) as error:
            log.info("published again: %s", error)
            raise Transient(error) from error

    try:
        return persistently(attempt, REPEATS)
    except (WasRemoved, NotFound) as error:
        message = f"{artifact.manifest.stem} is removed from {registry.url} whenever it is pushed"
        hint = "find out who runs `envferry prune` there, then push again"
        raise WasRemoved(message, hint=hint) from error


def _publish(
    artifact: Artifact, registry: Registry, tags: tuple[str, ...], progress: Progress
) -> bool:
    """Write an artifact, then move the tags, then look whether it is still there."""
    manifest = artifact.manifest
    uploaded = registry.publish(artifact, progress=progress)
    sbom = sbom_path(artifact)
    if sbom.exists() and registry.attachment(manifest, SBOM) is None:
        registry.attach(manifest, SBOM, sbom.read_bytes())
    for tag in tags:
        registry.move_tag(manifest.name, manifest.platform, tag, manifest.id)
    registry.require_whole(manifest)
    return uploaded
