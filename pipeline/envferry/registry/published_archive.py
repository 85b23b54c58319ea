"""An archive where it is published, read by ranges: no file of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from envferry.names import DEFAULT_TAG
from envferry.registry.layout import artifact_folder, tag_key
from envferry.registry.tags import find_tag

if TYPE_CHECKING:
    from envferry.models import Manifest
    from envferry.registry.registry import Registry


class PublishedArchive(msgspec.Struct, frozen=True):
    """An archive in a registry, as the archive reader takes it."""

    registry: Registry
    manifest: Manifest

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"{self.manifest.archive.file} in {self.registry.url}"

    @property
    def size(self) -> int:
        """The bytes of the archive."""
        return self.manifest.archive.size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`."""
        return self.registry.read_archive(self.manifest, offset, length)


def latest_archive(registry: Registry, name: str, platform: str) -> PublishedArchive | None:
    """Return the archive that `latest` of an environment points to; None where there is none.

    Signatures are not checked: what is read of it must be proven.
    """
    record = find_tag(registry, tag_key(name, platform, DEFAULT_TAG))
    manifest = record and registry.published(artifact_folder(name, platform, record.id))
    return PublishedArchive(registry, manifest) if manifest else None
