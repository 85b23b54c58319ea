"""Stage 4, push: Artifact -> PushedArtifact."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from envferry.archive.identity import check_manifest
from envferry.archive.reader import Archive, FileSource
from envferry.artifacts import require_present, verify_artifact
from envferry.base.retry import RetryPolicy, Transient, persistently
from envferry.errors import NotFound
from envferry.names import DEFAULT_TAG
from envferry.registry import RemovedMeanwhile, check_tag
from envferry.registry.tags import preview_move
from envferry.trust.signed_tags import TagName

if TYPE_CHECKING:
    from collections.abc import Callable

    from envferry.models import Artifact, Manifest
    from envferry.pack.earlier_pack import PackNotes
    from envferry.progress import Progress
    from envferry.registry import Registry

log = logging.getLogger(__name__)

# No pause: `require_settled` has waited for the removal already.
REPEATS = RetryPolicy(attempts=3, first_pause=0)


class PushedArtifact(msgspec.Struct, frozen=True, kw_only=True):
    """What a push left in a registry."""

    registry: str
    name: str
    platform: str
    id: str
    size: int
    """The bytes of its archive."""
    tags: tuple[str, ...]
    """The tags that point to it now because of this push."""
    uploaded: bool
    """Whether anything was sent; False when the registry had it all."""


def push_artifact(
    artifact: Artifact,
    *,
    registry: Registry,
    tags: tuple[str, ...],
    progress: Progress,
    notes: PackNotes | None = None,
) -> PushedArtifact:
    """Publish an artifact and point `tags` and `latest` to it.

    The archive's bytes are compared with the manifest before they are sent, or on their way to a
    store that takes nothing which turns out wrong; the tags move last. Of an archive that this
    user's `notes` are about, what the store copies is not read.
    Raises IntegrityError for a damaged artifact, or when the id is taken by a different one.
    """
    wanted = check_tags(tags)
    _require_sound(artifact, registry, progress)
    uploaded = _publish_persistently(artifact, registry, wanted, progress, notes)
    return pushed_now(artifact.manifest, registry, wanted, uploaded=uploaded)


def push_untagged(
    artifact: Artifact, *, registry: Registry, progress: Progress, notes: PackNotes | None = None
) -> bool:
    """Publish an artifact and move no tag; return whether anything was sent."""
    _require_sound(artifact, registry, progress)
    return _publish_persistently(artifact, registry, (), progress, notes)


def _require_sound(artifact: Artifact, registry: Registry, progress: Progress) -> None:
    """Raise IntegrityError unless the archive's bytes and its index are what the manifest says.

    Where the bytes are compared while they are sent, nothing is read twice.
    """
    is_new = registry.published_at(artifact.manifest) is None
    if is_new and registry.store.compares_while_sending:
        require_present(artifact)
    else:
        verify_artifact(artifact, progress=progress)
    # In either case: what no host would install is not sent.
    with FileSource(artifact.archive_path) as source:
        check_manifest(Archive(source), artifact.manifest)


def tag_published(
    manifest: Manifest, *, registry: Registry, tags: tuple[str, ...], uploaded: bool = False
) -> PushedArtifact:
    """Point `tags` and `latest` to an artifact that the registry has already, as a push does.

    `uploaded` is what the result says: whether it was sent just now, by whomever.
    """
    wanted = check_tags(tags)
    # Others published it: what no host would install gets no tag here.
    registry.require_installable(manifest)
    for tag in wanted:
        registry.move_tag(manifest.name, manifest.platform, tag, manifest.id)
    registry.require_whole(manifest)
    return pushed_now(manifest, registry, wanted, uploaded=uploaded)


def preview_push(
    artifact: Artifact, *, registry: Registry, tags: tuple[str, ...]
) -> PushedArtifact:
    """Say what a push would do; `uploaded` says whether it would have to send the artifact.

    Writes nothing and reads no archive. Raises what stands against moving the tags.
    """
    manifest, wanted = artifact.manifest, check_tags(tags)
    for tag in wanted:
        name = TagName(name=manifest.name, platform=manifest.platform, tag=tag)
        preview_move(registry, name, manifest.id)
    is_there = registry.published_at(manifest) is not None
    return pushed_now(manifest, registry, wanted, uploaded=not is_there)


def check_tags(tags: tuple[str, ...]) -> tuple[str, ...]:
    """Return the tags that a push moves, `latest` among them; raise UsageError for bad names."""
    return tuple(dict.fromkeys(check_tag(tag) for tag in (*tags, DEFAULT_TAG)))


def pushed_now(
    manifest: Manifest, registry: Registry, tags: tuple[str, ...], *, uploaded: bool
) -> PushedArtifact:
    """Return the result of a push; asks and writes nothing."""
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
    artifact: Artifact,
    registry: Registry,
    tags: tuple[str, ...],
    progress: Progress,
    notes: PackNotes | None,
) -> bool:
    """Publish again what was pruned meanwhile; raise RemovedMeanwhile if that repeats."""
    is_noted = notes is not None and notes.vouch_for(artifact.manifest)
    publish = partial(registry.publish, artifact, progress=progress, is_noted=is_noted)

    def attempt() -> bool:
        try:
            return _publish(artifact.manifest, registry, tags, publish)
        except (RemovedMeanwhile, NotFound) as error:
            # NotFound, too: whichever step reads a file that has gone meanwhile misses it.
            log.info("published again: %s", error)
            raise Transient(error) from error

    try:
        return persistently(attempt, REPEATS)
    except (RemovedMeanwhile, NotFound) as error:
        message = f"{artifact.manifest.stem} is removed from {registry.url} whenever it is pushed"
        hint = "find out who runs `envferry prune` there, then push again"
        raise RemovedMeanwhile(message, hint=hint) from error


def _publish(
    manifest: Manifest, registry: Registry, tags: tuple[str, ...], publish: Callable[[], bool]
) -> bool:
    """Write an artifact, then move the tags, then look whether it is still there."""
    uploaded = publish()
    for tag in tags:
        registry.move_tag(manifest.name, manifest.platform, tag, manifest.id)
    # After the tags: a prune that had read them before they moved may have taken something.
    registry.require_whole(manifest)
    return uploaded
