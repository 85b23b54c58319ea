"""Mirror: what one registry has and another lacks is copied, verified, tags last."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import msgspec
from msgspec.structs import replace

from envferry.artifacts import ARCHIVE_SUFFIX, ATTESTATION, REGISTRY_MANIFEST
from envferry.base.text import plural
from envferry.base.workers import Workers
from envferry.errors import NotFound, UsageError
from envferry.names import current_platform
from envferry.registry.inventory import Folder, list_inventory
from envferry.stores.port import CannotList
from envferry.transfer.copy import WRONG, ArtifactCopier, require_room_for
from envferry.transfer.tag_copy import TransferredTag, copy_tag, tags_to_copy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from envferry.errors import PipelineError
    from envferry.models import Manifest
    from envferry.progress import Progress
    from envferry.registry import Registry
    from envferry.trust.signed_tags import SignedTagRecord, TagName

SMALL_BYTES = 16 << 20
"""Archives up to here are copied side by side, larger ones piece by piece, one after the other."""
SMALL_AT_ONCE = 4
READERS = 8
FAULTS_SHOWN = 10
DONE = "everything intact was copied"
Environment: TypeAlias = tuple[str, str]
"""Name and platform."""


class MirrorRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be mirrored."""

    names: tuple[str, ...] = ()
    """Environments; all if empty."""
    tags: tuple[str, ...] = ()
    """Only what these point to, and only these tags; all if empty."""
    keep: int | None = None
    """Of each environment and platform, only the versions that the source got last."""
    platform: str | None = None
    """Only this one; for a source that cannot list, this machine's if None."""


class Mirrored(msgspec.Struct, frozen=True, kw_only=True):
    """What a mirror did, or would do."""

    source: str
    target: str
    copied: tuple[str, ...]
    """NAME-PLATFORM-ID of the artifacts that the target lacked, as a whole or in part."""
    copied_bytes: int
    """The bytes of their archives, existing ones not counted."""
    present: int
    """How many the target had already."""
    tags: tuple[TransferredTag, ...]
    """What became of the tags; empty for a dry run."""
    dangling: tuple[str, ...] = ()
    """Tags of the source that point to what is not published there, and where to."""


class MirrorPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What one registry lacks of another."""

    source: Registry
    target: Registry
    missing: tuple[Manifest, ...]
    missing_bytes: int
    present: int
    tags: dict[TagName, SignedTagRecord]
    dangling: tuple[str, ...]
    faults: dict[str, PipelineError]
    """What is wrong with those that cannot be copied, by NAME-PLATFORM-ID or `the tag NAME@TAG`."""

    def report(self, tags: tuple[TransferredTag, ...] = ()) -> Mirrored:
        """Say what is to be copied, or was."""
        return Mirrored(
            source=self.source.url,
            target=self.target.url,
            copied=tuple(manifest.stem for manifest in self.missing),
            copied_bytes=self.missing_bytes,
            present=self.present,
            tags=tags,
            dangling=self.dangling,
        )

    def require_sound(self) -> None:
        """Raise what is wrong with those that cannot be copied."""
        require_none(self.faults, done="")


def mirror_registry(
    source: Registry,
    target: Registry,
    request: MirrorRequest,
    *,
    journals: Path,
    progress: Progress,
) -> Mirrored:
    """Copy what the target lacks, then move its tags forward; what broke off goes on.

    Signatures are checked where the source has trusted keys. Raises IntegrityError when bytes or
    signatures are wrong, after all that is right was copied.
    """
    plan = plan_mirror(source, target, request)
    require_room_for(target, plan.missing, f"mirroring {plural(len(plan.missing), 'artifact')}")
    found, faults = follow_plan(plan, journals=journals, progress=progress)
    require_none(faults)
    return found


def follow_plan(
    plan: MirrorPlan, *, journals: Path, progress: Progress
) -> tuple[Mirrored, dict[str, PipelineError]]:
    """Copy what is missing, then move the tags forward; return what is wrong with the rest, too."""
    size = sum(manifest.archive.size for manifest in plan.missing)
    with progress.task(f"mirror {plural(len(plan.missing), 'artifact')}", size) as advance:
        copier = ArtifactCopier(target=plan.target, journals=journals, advance=advance)
        faults = plan.faults | copy_each(copier, plan.source, plan.missing)
    tags = tuple(
        copy_tag(plan.target, name, record)
        for name, record in plan.tags.items()
        # A tag must not point to what could not be copied.
        if f"{name.name}-{name.platform}-{record.id}" not in faults
    )
    found = plan.report(tags)
    copied = tuple(manifest.stem for manifest in plan.missing if manifest.stem not in faults)
    return replace(found, copied=copied), faults


def copy_each(
    copier: ArtifactCopier, source: Registry, manifests: Sequence[Manifest]
) -> dict[str, PipelineError]:
    """Copy artifacts, small ones side by side; memory does not grow with their number.

    Returns what is wrong with those that are damaged, by NAME-PLATFORM-ID.
    """
    faults: dict[str, PipelineError] = {}

    def copy(manifest: Manifest) -> None:
        try:
            copier.copy(source, manifest)
        except WRONG as error:
            # From several threads: each writes a key of its own.
            faults[manifest.stem] = error

    with Workers(SMALL_AT_ONCE, "mirror") as pool:
        # Small ones wait for the server; a large one has several requests of its own.
        list(pool.map(copy, (one for one in manifests if one.archive.size <= SMALL_BYTES)))
    for manifest in manifests:
        if manifest.archive.size > SMALL_BYTES:
            copy(manifest)
    return faults


def copy_all(copier: ArtifactCopier, source: Registry, manifests: Sequence[Manifest]) -> None:
    """Copy artifacts; raise what is wrong with those that are damaged, after the others."""
    require_none(copy_each(copier, source, manifests))


def require_none(faults: Mapping[str, PipelineError], done: str = DONE) -> None:
    """Raise the first of some errors, damage before all else.

    It names what else has one, and says what was `done`.
    """
    if not faults:
        return
    # IntegrityError has the highest code of WRONG.
    stem, *others = sorted(faults, key=lambda one: (-faults[one].exit_code, one))
    first, shown = faults[stem], others[:FAULTS_SHOWN]
    if others[FAULTS_SHOWN:]:
        shown.append(f"{len(others) - FAULTS_SHOWN:,} more")
    message = first.message + (f" (also wrong: {', '.join(shown)})" if shown else "")
    raise type(first)(message, hint="; ".join(filter(None, (first.hint, done))))


def plan_mirror(source: Registry, target: Registry, request: MirrorRequest) -> MirrorPlan:
    """Find out what the target lacks; nothing is copied."""
    # By place, not URL: links and relative paths name one directory in several ways.
    if source.store.place == target.store.place:
        message = f"{source.url} cannot be mirrored to itself"
        raise UsageError(message, hint="name another registry")
    folders, environments = _folders(source, request)
    published = {(folder.name, folder.platform, folder.id) for folder in folders}
    faults: dict[str, PipelineError] = {}
    with Workers(READERS, "plan") as pool:
        found = pool.map(
            lambda env: tags_to_copy(source, env[0], env[1], request.tags, faults),
            sorted(environments),
        )
        tags = {name: record for some in found for name, record in some.items()}
        wanted = _chosen(folders, tags, request)
        # By environment: the rest of a large target is not listed.
        there = _there(target, {folder.name for folder in wanted})
        lacking = [folder for folder in wanted if not _has(there.get(folder), folder)]

        def look(folder: Folder) -> Manifest | None:
            try:
                return source.manifest(folder.name, folder.platform, folder.id)
            except WRONG as error:
                faults[f"{folder.name}-{folder.platform}-{folder.id}"] = error
                return None

        looks = tuple(pool.map(look, lacking))
    missing = tuple(manifest for manifest in looks if manifest)
    # With faults, a tag may be missing because it could not be read.
    if not faults:
        _require_tags(source, request, tags)
    chosen = {(folder.name, folder.platform, folder.id) for folder in wanted}
    return MirrorPlan(
        source=source,
        target=target,
        missing=missing,
        missing_bytes=sum(
            one.archive.size
            for one, folder in zip(looks, lacking, strict=True)
            if one and not _has_archive(there.get(folder), one)
        ),
        present=len(wanted) - len(lacking),
        tags={
            name: record
            for name, record in tags.items()
            if (name.name, name.platform, record.id) in chosen
        },
        faults=faults,
        dangling=tuple(
            f"the tag {name} points to {record.id}"
            for name, record in tags.items()
            if (name.name, name.platform, record.id) not in published
        ),
    )


def _folders(source: Registry, request: MirrorRequest) -> tuple[list[Folder], set[Environment]]:
    """Return the published artifacts of a source, and the environments that may have tags.

    Of a source that cannot list, what tags point to.
    """
    try:
        surveys = [list_inventory(source, name) for name in request.names or (None,)]
    except CannotList:
        folders = _folders_by_tag(source, request)
        return folders, {(folder.name, folder.platform) for folder in folders}
    folders = [folder for found in surveys for folder in found.folders if folder.published]
    environments = {(folder.name, folder.platform) for folder in folders}
    environments |= {(tag.name, tag.platform) for found in surveys for tag in found.tags}
    if request.platform:
        folders = [folder for folder in folders if folder.platform == request.platform]
        environments = {env for env in environments if env[1] == request.platform}
    for name in request.names:
        if not any(env[0] == name for env in environments):
            message = f"{name} is not in the registry {source.url}"
            raise NotFound(message, hint=f"run `envferry ls --registry {source.url}`")
    return folders, environments


def _folders_by_tag(source: Registry, request: MirrorRequest) -> list[Folder]:
    if not request.names:
        message = f"{source.url} is a web server: what it holds cannot be listed"
        hint = "name the environments, and with --tag the tags: `envferry mirror SRC DST NAME…`"
        raise UsageError(message, hint=hint)
    platform = request.platform or current_platform()
    found: dict[Folder, None] = {}
    for name in request.names:
        records = tags_to_copy(source, name, platform, request.tags)
        if not records:
            asked = ", ".join(request.tags or ("latest",))
            message = f"{name} has no tag {asked} in the registry {source.url} for {platform}"
            raise NotFound(message, hint="name another with --tag")
        found |= dict.fromkeys(Folder(name, platform, record.id) for record in records.values())
    return list(found)


def _chosen(
    folders: list[Folder], tags: dict[TagName, SignedTagRecord], request: MirrorRequest
) -> list[Folder]:
    """Return what is to be in the target: with `keep` the newest, and what tags point to."""
    tagged = {(name.name, name.platform, record.id) for name, record in tags.items()}
    if request.tags:
        folders = [one for one in folders if (one.name, one.platform, one.id) in tagged]
    if request.keep is None:
        return folders
    newest: set[Folder] = set()
    for env in {(folder.name, folder.platform) for folder in folders}:
        versions = [folder for folder in folders if (folder.name, folder.platform) == env]
        # By the source's clock: the target's times say when a copy was made.
        versions.sort(key=lambda one: one.published.timestamp() if one.published else 0.0)
        newest.update(versions[-request.keep :])
    return [one for one in folders if one in newest or (one.name, one.platform, one.id) in tagged]


def _there(target: Registry, names: set[str]) -> dict[Folder, Folder]:
    """Return what the target has of some environments; nothing, if it is not there yet."""
    try:
        found = [
            folder for name in sorted(names) for folder in list_inventory(target, name).folders
        ]
    except NotFound:
        return {}
    except CannotList as error:
        message = f"{target.url} is a web server, which can only be read"
        hint = "the target is a directory or s3://BUCKET/PREFIX"
        raise UsageError(message, hint=hint) from error
    return {folder: folder for folder in found}


def _has(there: Folder | None, wanted: Folder) -> bool:
    """Whether the target has a whole artifact, by names and sizes alone."""
    if there is None or not there.published or not wanted.files:
        return False
    # What belongs to no artifact is not copied.
    for name in wanted.files.keys() - set(wanted.foreign):
        listed = wanted.files[name]
        found = there.files.get(name)
        # Lock and SBOM may be those of another build of the same archive, and are not replaced.
        must_match = name.endswith(ARCHIVE_SUFFIX) or name in (REGISTRY_MANIFEST, ATTESTATION)
        if found is None or (must_match and found.size != listed.size):
            return False
    return True


def _has_archive(there: Folder | None, manifest: Manifest) -> bool:
    """Whether the target has an archive, though its artifact may lack something else."""
    return there is not None and manifest.archive.file in there.files


def _require_tags(
    source: Registry, request: MirrorRequest, tags: dict[TagName, SignedTagRecord]
) -> None:
    for tag in request.tags:
        if not any(name.tag == tag for name in tags):
            message = f"no environment in {source.url} has the tag {tag}"
            raise NotFound(message, hint=f"run `envferry ls --registry {source.url}`")
