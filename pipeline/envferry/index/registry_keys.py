"""What a registry holds now, by key only: in full, or in as few requests as it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from envferry.names import ID_PATTERN, NAME_PATTERN
from envferry.registry.inventory import Folder, list_inventory
from envferry.registry.layout import ENVS, TAGS
from envferry.trust.signed_tags import TagName

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from envferry.registry import Registry
    from envferry.stores.port import Listed

Place = tuple[str, str, str]
"""Name, platform and id of an artifact."""


class RegistryKeys(msgspec.Struct, frozen=True, kw_only=True):
    """Which artifacts and tags are there."""

    folders: dict[Place, Folder | None]
    """The files of each artifact; None when only their folder was seen."""
    tags: dict[TagName, Listed]


def list_fully(registry: Registry, pool: Executor) -> RegistryKeys:
    """List every key: what a repair, a late signature or half a removal has changed shows, too."""
    names = [*_below(registry, ENVS, NAME_PATTERN.fullmatch)]
    # One listing an environment: the pages of a single one can only follow each other.
    surveys = [*pool.map(lambda name: list_inventory(registry, name), names)]
    return RegistryKeys(
        folders={
            (one.name, one.platform, one.id): one for found in surveys for one in found.folders
        },
        tags={name: listed for found in surveys for name, listed in found.tags.items()},
    )


def list_quickly(registry: Registry, pool: Executor) -> RegistryKeys:
    """List folders and tags: one request for an environment, not one for 160 of its artifacts.

    Tags come first: what one of them points to is published already, so it is seen afterwards.
    """
    tags = {name: listed for listed in registry.store.list(TAGS) if (name := _tag_name(listed.key))}
    tops = [f"{ENVS}{name}/" for name in _below(registry, ENVS, NAME_PATTERN.fullmatch)]
    inner = pool.map(lambda top: (top, _below(registry, top, NAME_PATTERN.fullmatch)), tops)
    middles = [f"{top}{platform}/" for top, platforms in inner for platform in platforms]
    leaves = pool.map(lambda top: (top, _below(registry, top, ID_PATTERN.fullmatch)), middles)
    places = [(*_two(top), id_) for top, ids in leaves for id_ in ids]
    return RegistryKeys(folders=dict.fromkeys(places), tags=tags)


def list_folder(registry: Registry, place: Place) -> Folder:
    """List the files of one artifact."""
    folder = Folder(*place)
    for listed in registry.store.list(folder.key):
        folder.files[listed.key.removeprefix(folder.key)] = listed
    return folder


def _below(registry: Registry, top: str, accept: Callable[[str], object]) -> list[str]:
    """Return the names of the folders directly below `top` that the format allows."""
    found = (listed.key for listed in registry.store.list_level(top))
    # `list_level` gives folders a slash at the end.
    names = (key[len(top) : -1] for key in found if key.endswith("/"))
    return sorted(name for name in names if accept(name))


def _two(top: str) -> tuple[str, str]:
    """Return name and platform of `v1/envs/NAME/PLATFORM/`."""
    name, platform = top[len(ENVS) : -1].split("/")
    return name, platform


def _tag_name(key: str) -> TagName | None:
    parts = key[len(TAGS) :].split("/")
    if len(parts) != 3 or not all(map(NAME_PATTERN.fullmatch, parts)):
        return None
    return (
        None
        if ID_PATTERN.fullmatch(parts[2])
        else TagName(name=parts[0], platform=parts[1], tag=parts[2])
    )
