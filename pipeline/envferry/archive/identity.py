"""Whether an archive is the one that its manifest describes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blake3 import blake3

from envferry.errors import IntegrityError

if TYPE_CHECKING:
    from envferry.archive.reader import Archive
    from envferry.models import Manifest


def check_manifest(archive: Archive, manifest: Manifest) -> None:
    """Raise IntegrityError, naming every difference, unless a manifest describes this archive.

    The index binds every frame and every file; the manifest binds the index. What both say, such
    as the name, is compared: people are shown the manifest, the index is what gets installed.
    """
    index, facts = archive.index, manifest.archive
    compared = {
        "name": (index.name, manifest.name),
        "platform": (index.platform, manifest.platform),
        "prefix": (index.prefix, manifest.prefix),
        "id": (index.id, manifest.id),
        "size": (archive.source.size, facts.size),
        "size of the tar stream": (index.tar_size, facts.tar_size),
        "BLAKE3 of the index": (blake3(archive.index_frame).hexdigest(), facts.index_blake3),
    }
    differences = [
        f"{what} is {found!r}, expected {expected!r}"
        for what, (found, expected) in compared.items()
        if found != expected
    ]
    if differences:
        message = f"{archive.name} does not match its manifest: {'; '.join(differences)}"
        raise IntegrityError(
            message, hint="copy or fetch both again, or pack the environment again"
        )
