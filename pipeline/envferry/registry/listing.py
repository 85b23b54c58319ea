"""What a registry holds: environments, tags, and what to say of a name that is unknown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from envferry.artifacts import ATTESTATION
from envferry.base.workers import Workers
from envferry.errors import NotFound, StoreError
from envferry.names import NAME_PATTERN, check_name
from envferry.registry.layout import DELTAS, ENVS, TAGS, artifact_folder, folder_of, is_manifest
from envferry.registry.tags import find_tag
from envferry.suggestions import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from envferry.models import Manifest, TagRecord
    from envferry.names import Ref
    from envferry.registry.registry import Registry

READERS = 8
"""Manifests and tags are small: the time goes into waiting for the store."""


class RegistryEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One artifact in a registry, as a listing shows it."""

    name: str
    platform: str
    id: str
    size: int
    """The bytes of its archive."""
    packages: int
    tags: tuple[str, ...]
    version: str | None = None
    published: datetime | None = None
    """When its manifest was published here, by the store's own clock, in UTC."""
    attested: bool = False
    """Whether an attestation lies beside it; who signed that is another question."""


def list_entries(registry: Registry, name: str | None) -> tuple[RegistryEntry, ...]:
    """Return all published artifacts (of one environment) with tags and time of arrival."""
    below = f"{check_name(name, 'environment name')}/" if name else ""
    there = {listed.key: listed.modified for listed in registry.store.list(f"{ENVS}{below}")}
    folders = sorted(key.split("/")[2:5] for key in there if is_manifest(key) and _is_named(key))
    tag_keys = sorted(
        listed.key for listed in registry.store.list(f"{TAGS}{below}") if _is_named(listed.key)
    )
    with Workers(READERS, "list") as pool:
        # Signatures are not checked: a listing says what is there, not what may be installed.
        manifests = pool.map(lambda folder: registry.described(*folder), folders)
        # Queued before the manifests are waited for: both are read at the same time.
        records = pool.map(lambda key: find_tag(registry, key), tag_keys)
        tags = dict(zip(tag_keys, records, strict=True))
        return tuple(_entry(manifest, tags, there) for manifest in manifests)


def list_tags(registry: Registry, name: str, platform: str) -> dict[str, str]:
    """Return all tags of an environment with the ids that they point to."""
    prefix = f"{TAGS}{check_name(name, 'environment name')}/{platform}/"
    keys = sorted(listed.key for listed in registry.store.list(prefix) if _is_named(listed.key))
    with Workers(READERS, "list") as pool:
        records = pool.map(lambda key: find_tag(registry, key), keys)
        return {
            key.removeprefix(prefix): record.id
            for key, record in zip(keys, records, strict=True)
            if record
        }


def _is_named(key: str) -> bool:
    """Whether every part of a key is one that we give: others may have put more there."""
    return all(map(NAME_PATTERN.fullmatch, key.split("/")))


def unknown(registry: Registry, ref: Ref, platform: str) -> NotFound:
    """Say that a ref is unknown and what is known instead."""
    message = f"{ref} is not in the registry {registry.url} for {platform}"
    known: dict[str, set[str]] = {}
    has_deltas = False
    try:
        if ref.is_id and (beside := _beside_manifest(registry, ref, platform)):
            message = f"the manifest of {ref} ({platform}) in {registry.url} is missing"
            hint = "copy that file again, or push the artifact again; `envferry check` says more"
            return NotFound(f"{message}, though there are {', '.join(beside)}", hint=hint)
        tags, ids = registry.tags(ref.name, platform), registry.ids(ref.name, platform)
        if not ids:
            for key in (listed.key for listed in registry.store.list(ENVS)):
                name, _, rest = key.removeprefix(ENVS).partition("/")
                known.setdefault(name, set()).add(rest.partition("/")[0])
            # Only to explain an empty registry: the disk of an export that has not been applied.
            has_deltas = not known and any(registry.store.list(DELTAS))
    except StoreError as error:
        # What would help cannot be found out; that the ref is unknown is certain all the same.
        return NotFound(message, hint=error.hint)
    if ids:
        listed = ", ".join([*(f"{tag} ({id_})" for tag, id_ in tags.items()), *ids])
        hint = did_you_mean(ref.version, [*tags, *ids], f"run `envferry ls {ref.name}`")
        return NotFound(f"{message}: there are {listed}", hint=hint)
    if has_deltas:
        hint = f"apply them to a registry first: `envferry apply {registry.url} --registry SITE`"
        return NotFound(f"{message}: it holds deltas only", hint=hint)
    if not known:
        hint = "check the path: `envferry export` and `push` write registries"
        return NotFound(f"{message}: it holds no environments at all", hint=hint)
    if ref.name in known:
        hint = "lock and release it for that platform, too: `platforms:` in its spec names them"
        others = ", ".join(sorted(known[ref.name]))
        return NotFound(f"{message}: it holds {ref.name} for {others} only", hint=hint)
    hint = did_you_mean(ref.name, sorted(known), "run `envferry ls`")
    return NotFound(f"{message}: it holds {', '.join(sorted(known))}", hint=hint)


def _beside_manifest(registry: Registry, ref: Ref, platform: str) -> list[str]:
    """Return the files of an artifact that has no manifest, as after a copy that broke off."""
    folder = artifact_folder(ref.name, platform, ref.version)
    return sorted(listed.key.removeprefix(folder) for listed in registry.store.list(folder))


def _entry(
    manifest: Manifest, tags: Mapping[str, TagRecord | None], there: Mapping[str, datetime]
) -> RegistryEntry:
    prefix, folder = f"{TAGS}{manifest.name}/{manifest.platform}/", folder_of(manifest)
    return RegistryEntry(
        name=manifest.name,
        platform=manifest.platform,
        id=manifest.id,
        size=manifest.archive.size,
        packages=len(manifest.packages),
        tags=tuple(
            key.removeprefix(prefix)
            for key, record in tags.items()
            if key.startswith(prefix) and record and record.id == manifest.id
        ),
        version=manifest.version,
        published=there[f"{folder}manifest.json"],
        attested=f"{folder}{ATTESTATION}" in there,
    )
