"""Values in the repositories of a registry: found by key, read in pieces, and listed."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import msgspec

from envferry.base.workers import Workers
from envferry.errors import IntegrityError
from envferry.stores.oci.documents import (
    CREATED,
    EMPTY,
    KEY,
    Descriptor,
    ImageManifest,
    read_manifest,
)
from envferry.stores.oci.key_tags import (
    HASHED_PREFIX,
    INTERNAL,
    Names,
    Place,
    environment_of,
    environments_in,
)
from envferry.stores.port import FOLDER_TIME, Listed, check_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.stores.oci.port import Repositories

READERS = 12


class StoredValue(msgspec.Struct, frozen=True):
    """A key as it is stored: a small manifest, whose layers are the value."""

    place: Place
    digest: str
    manifest: ImageManifest

    @property
    def size(self) -> int:
        """Bytes, of all layers."""
        return sum(layer.size for layer in self.layers)

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        """What holds the value, in order; none for an empty one."""
        return tuple(one for one in self.manifest.layers if one.media_type != EMPTY)

    @property
    def created(self) -> datetime:
        """When it was written, as its writer says."""
        return _time((self.manifest.annotations or {}).get(CREATED, ""))


class StoredValues(msgspec.Struct, frozen=True):
    """What is stored below a path of a registry."""

    space: Repositories
    names: Names

    def find(self, key: str) -> StoredValue | None:
        """Return the value of a key; raise IntegrityError when its tag holds that of another."""
        place = self.names.place(check_key(key))
        value = self.at(place)
        # That a key has no value is not a fault: it then compares as equal.
        found = (value.manifest.annotations or {}).get(KEY) if value else key
        # Long keys are tags by their hash alone, and people can retag what they like.
        if found != key:
            message = f"{place.repository}/{place.tag} holds {found}, expected {key}"
            raise IntegrityError(message, hint="remove that tag there, then push again")
        return value

    def at(self, place: Place) -> StoredValue | None:
        """Return what a tag holds."""
        found = self.space.manifest(place.repository, place.tag)
        if found is None:
            return None
        what = f"{self.space.name}/{place.repository}:{place.tag}"
        return StoredValue(place, found.digest, read_manifest(found.data, what))

    def pieces(self, value: StoredValue, offset: int, length: int) -> Iterator[bytes]:
        """Yield a part of a value, from as many layers as it lies in."""
        start, end = 0, offset + length
        for layer in value.layers:
            first, last = max(offset, start), min(end, start + layer.size)
            if first < last:
                place = value.place.repository
                yield self.space.read_blob(place, layer, first - start, last - first)
            start += layer.size

    def list(self, prefix: str) -> Iterator[Listed]:
        """Yield values by the tags of their repositories, then their manifests."""
        return self._listed(self._tags(prefix), prefix)

    def list_level(self, prefix: str) -> Iterator[Listed]:
        """Yield values right below a prefix; for what lies deeper the tags say enough."""
        folders, here = set[str](), list[tuple[Place, str | None]]()
        for place, key in self._tags(prefix):
            # A tag that does not say its key is looked at below, by its manifest.
            rest = (key or "").removeprefix(prefix)
            if "/" in rest:
                folders.add(f"{prefix}{rest.partition('/')[0]}/")
            else:
                here.append((place, key))
        for listed in self._listed(iter(here), prefix):
            rest = listed.key.removeprefix(prefix)
            if "/" in rest:
                folders.add(f"{prefix}{rest.partition('/')[0]}/")
            else:
                yield listed
        yield from map(Listed.folder, sorted(folders))

    def _tags(self, prefix: str) -> Iterator[tuple[Place, str | None]]:
        """Yield where values below a prefix may be, with the key where the tag says it."""
        name = environment_of(prefix)
        if name is not None:
            yield from self.tags_of(name, prefix)
            return
        tags = list(self.space.tags(self.names.root))
        for tag in tags:
            key = self.names.key(tag, None)
            # Which key a hash is of, only the manifest says:
            # these are looked at, whatever the prefix.
            if tag.startswith(HASHED_PREFIX) or (key and key.startswith(prefix)):
                yield Place(self.names.root, tag), key
        # A longer prefix names an environment, and was answered above.
        if "v1/envs/".startswith(prefix) or "v1/tags/".startswith(prefix):
            for one in sorted(environments_in(iter(tags))):
                yield from self.tags_of(one, prefix)

    def tags_of(self, name: str, prefix: str = "") -> Iterator[tuple[Place, str | None]]:
        """Yield where values of an environment are, with the key where the tag says it."""
        repository = self.names.repository(name)
        for tag in self.space.tags(repository):
            if INTERNAL.fullmatch(tag):
                key = self.names.key(tag, name)
                if key is None or key.startswith(prefix):
                    yield Place(repository, tag), key

    def _listed(self, found: Iterator[tuple[Place, str | None]], prefix: str) -> Iterator[Listed]:
        def look(one: tuple[Place, str | None]) -> Listed | None:
            place, key = one
            try:
                value = self.at(place)
            except IntegrityError:
                if key is None:
                    raise
                # One damaged value must not hide all others.
                return Listed(key=key, size=0, modified=FOLDER_TIME, stamp="damaged")
            if value is None:
                return None  # removed meanwhile
            named = (value.manifest.annotations or {}).get(KEY, key or "")
            return Listed(key=named, size=value.size, modified=value.created, stamp=value.digest)

        with Workers(READERS, "list") as pool:
            for listed in pool.map(look, found):
                if listed and listed.key.startswith(prefix):
                    yield listed


def _time(text: str) -> datetime:
    with suppress(ValueError, OverflowError):
        # Python 3.10 does not read the `Z`.
        return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(timezone.utc)
    return FOLDER_TIME
