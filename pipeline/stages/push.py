"""Stage 4, push: Artifact -> PushedArtifact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.artifacts import SBOM, sbom_path, verify_artifact
from pipeline.models import DEFAULT_TAG, PushedArtifact
from pipeline.registry import check_tag

if TYPE_CHECKING:
    from pipeline.models import Artifact
    from pipeline.progress import Progress
    from pipeline.registry import Registry


def push_artifact(
    artifact: Artifact, *, registry: Registry, tags: tuple[str, ...], progress: Progress
) -> PushedArtifact:
    """Publish an artifact and point `tags` and `latest` to it.

    Nothing is sent before the archive's bytes were compared with the manifest; the tags move last.
    Raises IntegrityError for a damaged artifact, or when the id is taken by a different one.
    """
    manifest = artifact.manifest
    wanted = tuple(dict.fromkeys(check_tag(tag) for tag in (*tags, DEFAULT_TAG)))
    verify_artifact(artifact, progress=progress)
    uploaded = registry.publish(artifact, progress=progress)
    sbom = sbom_path(artifact)
    if sbom.exists() and registry.attachment(manifest, SBOM) is None:
        registry.attach(manifest, SBOM, sbom.read_bytes())
    for tag in wanted:
        registry.move_tag(manifest.name, manifest.platform, tag, manifest.id)
    return PushedArtifact(
        registry=registry.url,
        name=manifest.name,
        platform=manifest.platform,
        id=manifest.id,
        size=manifest.archive.size,
        tags=wanted,
        uploaded=uploaded,
    )
