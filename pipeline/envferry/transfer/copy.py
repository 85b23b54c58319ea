"""One artifact from another registry into this one: every byte is checked on its way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from blake3 import blake3
from msgspec.structs import replace

from envferry.errors import IntegrityError, NotFound, SpecError
from envferry.registry.layout import archive_key
from envferry.registry.publish import ArtifactSource, Companions, publish_artifact
from envferry.stores.local import require_room

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from envferry.models import Manifest
    from envferry.registry import Registry
    from envferry.stores.source import ContentSource

WRONG = (IntegrityError, NotFound, SpecError)
"""What is the fault of one artifact, or tag; the others are copied all the same."""


def require_room_for(target: Registry, manifests: Iterable[Manifest], what: str) -> None:
    """Raise HostError when the target's disk has no room for these archives."""
    sizes = {archive_key(manifest): manifest.archive.size for manifest in manifests}
    require_room(target.store, sizes, what)


class ArtifactCopier(msgspec.Struct, frozen=True, kw_only=True):
    """Brings artifacts to a registry."""

    target: Registry
    journals: Path
    """A directory of this machine where interrupted uploads are noted."""
    advance: Callable[[int], None]
    """Gets the bytes of archives that are done; from any thread."""

    def copy(self, source: Registry, manifest: Manifest) -> bool:
        """Copy an artifact; return whether anything was written."""
        # Before anything is written: a source that lacks the archive
        # leaves no half artifact behind.
        source.require_archive(manifest)
        content = replace(source.archive_content(manifest), journal=self.journal(manifest))
        return self.publish(manifest, Companions.of(source, manifest), content)

    def journal(self, manifest: Manifest) -> Path:
        """Return where an upload of an archive to the target is noted."""
        # By place and not by URL: one bucket name may be on two servers.
        place = f"{self.target.store.place} {archive_key(manifest)}"
        return self.journals / (
            f"{manifest.archive.file}.{blake3(place.encode()).hexdigest()[:16]}.upload"
        )

    def publish(self, manifest: Manifest, companions: Companions, content: ContentSource) -> bool:
        """Write what is missing of an artifact, then look whether it stayed; see `publish.py`."""
        source = ArtifactSource(manifest=manifest, companions=companions, archive=content)
        wrote = publish_artifact(self.target, source, self.advance)
        self.target.require_whole(manifest)
        return wrote
