"""Export: artifacts, their tags and public keys into a registry folder that is carried by hand."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from envferry.base.files import require_space, write_bytes
from envferry.base.json import to_json
from envferry.base.text import plural
from envferry.errors import NotFound, TargetOccupied, UsageError
from envferry.registry import Registry
from envferry.registry.layout import DELTAS, ENVS, folder_of
from envferry.stores.directory import DirectoryStore
from envferry.stores.local import require_room
from envferry.stores.opening import open_store
from envferry.stores.port import KeyTaken
from envferry.stores.split import MARKER, SplitMarker, SplitStore
from envferry.transfer.copy import ArtifactCopier, require_room_for
from envferry.transfer.delta_write import DeltaPlan, plan_delta, write_delta
from envferry.transfer.deltas import Base, delta_folder, delta_key
from envferry.transfer.mirror import copy_all
from envferry.transfer.tag_copy import TransferredTag, copy_tag, tags_to_copy

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from envferry.models import Manifest
    from envferry.names import Ref
    from envferry.progress import Progress
    from envferry.stores.port import Store
    from envferry.trust.signed_tags import SignedTagRecord, TagName
    from envferry.trust.signing import PublicKey

KEYS = "keys"
TOOL = "tool"
OURS = ("v1", KEYS, TOOL, "audit")
LAYOUT = ("oci-layout", "index.json", "blobs")
"""What an image layout has."""
DISK_FOLDERS = ("lost+found", "System Volume Information")
"""What disks have by themselves; as what is hidden."""


class ExportRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be carried."""

    refs: tuple[Ref, ...]
    platform: str
    since: tuple[Ref, ...] = ()
    """What the site has; empty: whole artifacts are carried."""
    tags: tuple[str, ...] = ()
    """Only these tags; all that point to the artifacts if empty."""
    part_bytes: int | None = None
    """Where large files are cut."""
    as_images: bool = False
    """Whether the folder becomes an OCI image layout."""
    keys: tuple[tuple[PublicKey, bytes], ...] = ()
    """Public keys, and their PEM."""


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What the folder contains now."""

    directory: str
    artifacts: tuple[str, ...]
    """NAME-PLATFORM-ID."""
    since: tuple[str, ...]
    """What the site must have."""
    archive_bytes: int
    """The bytes of the archives."""
    carried_bytes: int
    """How many of them are carried: all, or the deltas'."""
    tags: tuple[TransferredTag, ...]
    keys: tuple[str, ...]


def export_artifacts(
    source: Registry, directory: Path, request: ExportRequest, *, journals: Path, progress: Progress
) -> Exported:
    """Write a registry folder with artifacts, or deltas, their tags, and keys; all verified.

    To do it again completes what is missing. Raises NotFound for a ref that is unknown,
    TargetOccupied when something else is in the folder, HostError when the disk is too small.
    """
    manifests, bases, found = _ordered(source, request)
    _require_ours(directory, source, request)
    target = Registry(_open_target(directory, request))
    # All plans first: they need the indexes only, and say whether there is room.
    if bases:
        plans = [plan_delta(source, manifest, bases) for manifest in manifests]
        carried = sum(plan.size for plan in plans)
        sizes = {delta_key(Base.of(plan.manifest)): plan.size for plan in plans}
        # Before the first byte: a full disk would show up only after much of the copying.
        require_room(target.store, sizes, f"exporting {plural(len(plans), 'delta')}")
        _write_deltas(source, target, plans, progress)
        tags = tuple(_note_tag(target, name, record) for name, record in found.items())
    else:
        carried = sum(manifest.archive.size for manifest in manifests)
        missing = [one for one in manifests if not target.published(folder_of(one))]
        what = f"exporting {plural(len(missing), 'artifact')}"
        if request.as_images:
            # An image layout has `disk = None`, so `require_room_for` does not look at it.
            require_space(directory, sum(one.archive.size for one in missing), what)
        require_room_for(target, missing, what)
        with progress.task(f"export {plural(len(manifests), 'artifact')}", carried) as advance:
            copy_all(
                ArtifactCopier(target=target, journals=journals, advance=advance), source, manifests
            )
        tags = tuple(copy_tag(target, name, record) for name, record in found.items())
    for key, data in request.keys:
        write_bytes(directory / KEYS / f"{key.id}.pub", data, mode=None)
    return replace(
        _exported(directory, request, manifests, bases), carried_bytes=carried, tags=tags
    )


def preview_export(source: Registry, directory: Path, request: ExportRequest) -> Exported:
    """Say what an export would write, whatever already exists; its tags are left out.

    Nothing is written. Raises what an export would before it begins.
    """
    manifests, bases, _ = _ordered(source, request)
    _require_ours(directory, source, request)
    found = _exported(directory, request, manifests, bases)
    if not bases:
        return found
    sizes = (plan_delta(source, manifest, bases).size for manifest in manifests)
    return replace(found, carried_bytes=sum(sizes))


def _ordered(
    source: Registry, request: ExportRequest
) -> tuple[list[Manifest], list[Manifest], dict[TagName, SignedTagRecord]]:
    """Return the artifacts to carry, those that the site has, and the tags to carry."""
    asked = [(ref, _find(source, ref, request.platform)) for ref in request.refs]
    # Each once: two tags may point to one artifact.
    manifests = list({manifest.stem: manifest for _, manifest in asked}.values())
    bases = [_find(source, ref, request.platform) for ref in request.since]
    found: dict[TagName, SignedTagRecord] = {}
    for ref, manifest in asked:
        found |= _tags(source, ref, manifest, request)
    _require_tags(request, found)
    return manifests, bases, found


def _exported(
    directory: Path, request: ExportRequest, manifests: list[Manifest], bases: list[Manifest]
) -> Exported:
    """Describe an export of whole archives without tags."""
    size = sum(manifest.archive.size for manifest in manifests)
    return Exported(
        directory=str(directory),
        artifacts=tuple(manifest.stem for manifest in manifests),
        since=tuple(str(Base.of(base)) for base in bases),
        archive_bytes=size,
        carried_bytes=size,
        tags=(),
        keys=tuple(key.id for key, _ in request.keys),
    )


def _find(source: Registry, ref: Ref, platform: str) -> Manifest:
    return source.manifest(ref.name, platform, source.resolve(ref, platform))


def _tags(
    source: Registry, ref: Ref, manifest: Manifest, request: ExportRequest
) -> dict[TagName, SignedTagRecord]:
    """Return the tags that point to an artifact; at least the one that it was named by."""
    name, platform = manifest.name, manifest.platform
    found = tags_to_copy(source, name, platform, request.tags)
    if not ref.is_id and not request.tags:
        # A source that cannot list has given `latest` alone.
        found |= tags_to_copy(source, name, platform, (ref.version,))
    return {name: record for name, record in found.items() if record.id == manifest.id}


def _require_tags(request: ExportRequest, found: dict[TagName, SignedTagRecord]) -> None:
    for tag in request.tags:
        if not any(name.tag == tag for name in found):
            message = f"the tag {tag} points to nothing that is exported"
            hint = f"run `envferry ls {request.refs[0].name}` to see what tags point to"
            raise NotFound(message, hint=hint)


def _require_ours(directory: Path, source: Registry, request: ExportRequest) -> None:
    """Raise TargetOccupied unless a folder is new, empty, or an export already.

    Raises UsageError for the folder of the registry that is exported from.
    """
    # By place: links and relative paths name the same folder in several ways.
    if DirectoryStore(directory).place == source.store.place:
        message = f"{directory} is the registry itself"
        raise UsageError(message, hint="name the folder of a disk to export to")
    if directory.exists() and not directory.is_dir():
        message = f"{directory} is a file"
        raise TargetOccupied(message, hint="name a folder to export to")
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    is_layout, is_begun = LAYOUT[0] in names, "v1" in names
    if is_layout != request.as_images and (is_layout or is_begun):
        message = f"{directory} is {'an OCI image layout' if is_layout else 'a registry folder'}"
        hint = "add --oci" if is_layout else "leave out --oci"
        raise TargetOccupied(message, hint=f"{hint}, or export to another folder")
    allowed = (*OURS, *DISK_FOLDERS, *(LAYOUT if request.as_images else ()))
    strange = sorted(name for name in names if name not in allowed and not name.startswith("."))
    if strange:
        message = f"{directory} holds other files: {', '.join(strange[:5])}"
        raise TargetOccupied(message, hint=f"export to a folder in it: {directory}/envferry")


def _open_target(directory: Path, request: ExportRequest) -> Store:
    """Open the folder's store, and mark it if files are to be split, or are images."""
    part_bytes = request.part_bytes
    if request.as_images:
        from envferry.stores.oci.image_layout import LayoutRepositories

        LayoutRepositories.create(directory)
        return open_store(str(directory))
    there = open_store(str(directory))
    if split_at := there.disk and there.disk.part_bytes:
        if part_bytes not in (None, split_at):
            message = f"{directory} is split at {split_at} bytes already"
            raise TargetOccupied(message, hint="export to another folder")
        return there
    store = DirectoryStore(directory)
    if part_bytes is None:
        return store
    is_begun = any((directory / top).exists() for top in (ENVS, DELTAS))
    if is_begun and not (directory / MARKER).exists():
        message = f"{directory} holds an export that is not split"
        raise TargetOccupied(message, hint="leave out --split, or export to another folder")
    with suppress(KeyTaken):  # by another export at the same moment
        # Before any value: a reader must know that there are parts before it finds some.
        store.create(MARKER, to_json(SplitMarker(part_bytes=part_bytes)))
        return SplitStore(store, part_bytes)
    return _open_target(directory, request)


def _write_deltas(
    source: Registry, target: Registry, plans: Sequence[DeltaPlan], progress: Progress
) -> None:
    total = sum(plan.size for plan in plans)
    with progress.task(f"export {plural(len(plans), 'delta')}", total) as advance:
        for plan in plans:
            write_delta(source, target.store, plan, advance)


def _note_tag(target: Registry, name: TagName, record: SignedTagRecord) -> TransferredTag:
    """Write a tag's record beside a delta: what it points to is not in this folder."""
    base = Base(name.name, name.platform, record.id)
    key, data = f"{delta_folder(base)}tags/{name.tag}", to_json(record)
    stat = target.store.stat(key)
    # A second export changes no file that is right already.
    if stat is None or target.store.read(key) != data:
        target.store.replace(key, data, stat.version if stat else None)
    return TransferredTag(
        name=name.name, platform=name.platform, tag=name.tag, id=record.id, outcome="moved"
    )
