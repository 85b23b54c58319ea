"""An archive where it is published, read by ranges: no file of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

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
