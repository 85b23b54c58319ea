"""What one artifact or tag of a registry is: published, under way, or damaged and how."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from envferry.artifacts import REGISTRY_MANIFEST
from envferry.base.json import from_json
from envferry.base.text import human_bytes
from envferry.errors import IntegrityError, NotFound, PipelineError, SpecError, StoreError
from envferry.index.file_rows import FileList, file_lists
from envferry.index.registry_keys import Place, list_folder
from envferry.names import ID_PATTERN
from envferry.registry.layout import tag_key
from envferry.stores.port import Unreachable
from envferry.trust.signed_tags import SignedTagRecord, TagName

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Executor

    from envferry.models import Manifest
    from envferry.registry import Registry
    from envferry.registry.inventory import Folder
    from envferry.stores.port import Listed

LARGEST_MANIFEST = 64 << 20
LARGEST_TAG = 1 << 20
LARGEST_NUMBER = (1 << 63) - 1
"""What SQLite holds; no archive is larger."""


class ArtifactState(msgspec.Struct, frozen=True, kw_only=True):
    """What was found in an artifact's folder; neither manifest nor problem: a push under way."""

    folder: Folder
    manifest: Manifest | None = None
    problem: str | None = None


class TagState(msgspec.Struct, frozen=True, kw_only=True):
    """What was found in a tag."""

    name: TagName
    listed: Listed
    record: SignedTagRecord | None = None
    problem: str | None = None

    @property
    def id(self) -> str:
        """Where it points to; empty when it is damaged."""
        return self.record.id if self.record else ""


def read_artifact_state(registry: Registry, place: Place, folder: Folder | None) -> ArtifactState:
    """Read an artifact's manifest; what is wrong with it is a finding, no error.

    A server that cannot be reached says nothing about an artifact: that is an error.
    """
    folder = folder or list_folder(registry, place)
    manifest = folder.files.get(REGISTRY_MANIFEST)
    # A push, or a removal, under way: neither is a fault.
    if manifest is None or folder.is_being_pruned:
        return ArtifactState(folder=folder)
    if manifest.size > LARGEST_MANIFEST:
        return ArtifactState(
            folder=folder, problem=f"its manifest has {human_bytes(manifest.size)}"
        )
    try:
        described = registry.described(*place)
        # SQLite would raise OverflowError for a larger number, in the middle of a batch.
        _require_numbers(described)
    except Unreachable:
        raise
    except NotFound:
        # Removed since it was listed.
        return ArtifactState(folder=folder)
    except (IntegrityError, SpecError, StoreError) as error:
        return ArtifactState(folder=folder, problem=error.message)
    except RecursionError:
        # msgspec raises it for JSON that is nested deeper than the interpreter's limit.
        return ArtifactState(folder=folder, problem="its manifest is nested too deeply")
    return ArtifactState(folder=folder, manifest=described)


class ArtifactFiles(msgspec.Struct, frozen=True, kw_only=True):
    """The files of an artifact, or why they are not known."""

    place: Place
    lists: tuple[FileList, ...] = ()
    size: int = 0
    """The bytes that were read for it."""
    problem: str = ""


def read_file_lists(registry: Registry, place: Place) -> ArtifactFiles:
    """Read the index of an archive; what is wrong with it is a finding, no error.

    A server that cannot be reached is an error, as in `read_artifact_state`.
    """
    try:
        # Signatures are not checked here: the index says what is
        # there, pages check what they show.
        manifest = registry.described(*place)
        index = registry.open_archive(manifest).index
    except Unreachable:
        raise
    except PipelineError as error:
        return ArtifactFiles(place=place, problem=error.message)
    return ArtifactFiles(place=place, lists=file_lists(index), size=manifest.archive.index_size)


def read_tags(
    registry: Registry, tags: Mapping[TagName, Listed], pool: Executor
) -> tuple[TagState, ...]:
    """Read tags; those that are gone meanwhile are left out."""
    found = pool.map(lambda item: _read_tag(registry, *item), tags.items())
    return tuple(one for one in found if one is not None)


def stamp_of(folder: Folder) -> str:
    """Return what differs when an artifact should be looked at again."""
    manifest = folder.files.get(REGISTRY_MANIFEST)
    # A late attestation and the begin of a removal leave the manifest as it is.
    marks = (folder.attested, folder.is_being_pruned)
    return f"{manifest.stamp if manifest else ''} {marks}"


def _read_tag(registry: Registry, name: TagName, listed: Listed) -> TagState | None:
    key = tag_key(name.name, name.platform, name.tag)
    try:
        # By the listed size, before it is read: anything may lie under a key.
        if listed.size > LARGEST_TAG:
            msg = f"{key} has {human_bytes(listed.size)}: it is not a tag"
            raise IntegrityError(msg)
        record = from_json(registry.store.read(key), SignedTagRecord, key)
        if not ID_PATTERN.fullmatch(record.id) or not 0 <= record.counter <= LARGEST_NUMBER:
            msg = f"{key} is damaged: it points to {record.id[:40]!r}"
            raise IntegrityError(msg)
    except Unreachable:
        raise
    except NotFound:
        return None
    except PipelineError as error:
        return TagState(name=name, listed=listed, problem=error.message)
    except RecursionError:
        return TagState(name=name, listed=listed, problem=f"{key} is nested too deeply")
    return TagState(name=name, listed=listed, record=record)


def _require_numbers(manifest: Manifest) -> None:
    """Raise IntegrityError when a size is not valid."""
    sizes = (
        manifest.archive.size,
        manifest.archive.tar_size,
        *(package.size for package in manifest.packages),
    )
    if not all(0 <= size <= LARGEST_NUMBER for size in sizes):
        msg = f"the manifest of {manifest.stem} gives a size that is not valid"
        raise IntegrityError(msg)
