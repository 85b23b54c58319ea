"""What lies where in a registry: one listing, sorted into artifacts, tags and the rest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from envferry.artifacts import ARCHIVE_SUFFIX, ATTESTATION, REGISTRY_MANIFEST
from envferry.errors import NotFound
from envferry.names import ID_PATTERN, NAME_PATTERN, check_name
from envferry.registry.layout import ATTACHMENTS, ENVS, LOCK_FILE, PRUNING, SIDE_PREFIXES, TAGS
from envferry.trust.signed_tags import TagName

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from envferry.registry.registry import Registry
    from envferry.stores.port import Listed


@dataclass(frozen=True, slots=True)
class Folder:
    """The files of one artifact, published or not."""

    name: str
    platform: str
    id: str
    files: dict[str, Listed] = field(default_factory=dict, compare=False)
    """By name; those of the format and others."""

    @property
    def key(self) -> str:
        """Where it is; ends in a slash."""
        return f"{ENVS}{self.name}/{self.platform}/{self.id}/"

    @property
    def published(self) -> datetime | None:
        """When its manifest was written; None when nothing is published here."""
        manifest = self.files.get(REGISTRY_MANIFEST)
        return manifest.modified if manifest else None

    @property
    def attested(self) -> bool:
        """Whether an attestation lies beside the manifest."""
        return ATTESTATION in self.files

    @property
    def is_being_pruned(self) -> bool:
        """Whether its removal has begun."""
        return PRUNING in self.files

    @property
    def foreign(self) -> tuple[str, ...]:
        """The files that belong to no artifact."""
        archive = f"{self.name}-{self.platform}-{self.id}{ARCHIVE_SUFFIX}"
        ours = (archive, f"{archive}.xxh128", LOCK_FILE, REGISTRY_MANIFEST, PRUNING, *ATTACHMENTS)
        return tuple(name for name in self.files if name not in ours)

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(listed.size for listed in self.files.values())

    @property
    def touched(self) -> datetime:
        """When the last of its files was written."""
        return max(listed.modified for listed in self.files.values())

    def __str__(self) -> str:
        return f"{self.name}@{self.id} ({self.platform})"


class Inventory(msgspec.Struct):
    """All that a registry (or one environment of it) holds, by key only: nothing is read."""

    folders: list[Folder] = msgspec.field(default_factory=list)
    """By name, platform and id."""
    tags: dict[TagName, Listed] = msgspec.field(default_factory=dict)
    foreign: list[Listed] = msgspec.field(default_factory=list)
    """What is not part of the format, by key."""


def list_inventory(registry: Registry, name: str | None = None) -> Inventory:
    """List a registry, or one environment of it."""
    if name is None:
        return _sort(registry.store.list())
    below = f"{check_name(name, 'environment name')}/"
    both = (registry.store.list(top + below) for top in (ENVS, TAGS))
    return _sort(listed for found in both for listed in found)


def require_known(found: Inventory, registry: Registry, names: Iterable[str]) -> None:
    """Raise NotFound for an environment that a registry has nothing of."""
    known = {folder.name for folder in found.folders} | {tag.name for tag in found.tags}
    for name in names:
        if name not in known:
            message = f"{name} is not in the registry {registry.url}"
            raise NotFound(message, hint=f"run `envferry ls --registry {registry.url}`")


def _sort(found: Iterable[Listed]) -> Inventory:
    result, folders = Inventory(), dict[tuple[str, ...], Folder]()
    # By key, whatever order a store lists in: `folders` and `foreign` keep this one.
    for listed in sorted(found, key=lambda listed: listed.key):
        # `v1/envs/` and `v1/tags/` have the same length, so one cut serves both.
        top, names = listed.key[: len(ENVS)], tuple(listed.key[len(ENVS) :].split("/"))
        if top == ENVS and len(names) == 4 and _is_artifact(names):
            folder = folders.setdefault(names[:3], Folder(*names[:3]))
            folder.files[names[3]] = listed
        elif top == TAGS and len(names) == 3 and _is_tag(names):
            name = TagName(name=names[0], platform=names[1], tag=names[2])
            result.tags[name] = listed
        elif not listed.key.startswith(SIDE_PREFIXES):
            result.foreign.append(listed)
    result.folders = list(folders.values())
    return result


def _is_artifact(names: tuple[str, ...]) -> bool:
    named = all(NAME_PATTERN.fullmatch(name) for name in names[:2])
    return named and bool(ID_PATTERN.fullmatch(names[2]))


def _is_tag(names: tuple[str, ...]) -> bool:
    named = all(NAME_PATTERN.fullmatch(name) for name in names)
    # `check_tag` refuses names that look like ids, so no command has written such a key.
    return named and not ID_PATTERN.fullmatch(names[2])
