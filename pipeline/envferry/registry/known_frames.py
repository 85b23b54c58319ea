"""Which bytes of a new archive a store has already: frames of unchanged packages are the same."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from msgspec.structs import replace

from envferry.archive.identity import check_manifest
from envferry.archive.proven_bytes import ProvenBytes
from envferry.archive.reader import Archive, FileSource
from envferry.errors import IntegrityError, NotFound, SpecError, StoreError
from envferry.registry.layout import archive_key
from envferry.stores.port import KnownRange
from envferry.stores.receive import content_of_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envferry.models import Manifest
    from envferry.registry.published_archive import PublishedArchive
    from envferry.stores.source import ContentSource

log = logging.getLogger(__name__)


@contextmanager
def opened_file(
    path: Path, manifest: Manifest, before: PublishedArchive | None, *, is_noted: bool
) -> Iterator[tuple[ContentSource, tuple[KnownRange, ...]]]:
    """Yield an archive file to send, and what of it the archive `before` has.

    It becomes a value only if its digests are the manifest's. That these belong to its index is
    sure where who packed it noted both (`is_noted`): then frames alone are proof. Raises
    IntegrityError for an archive that its manifest does not describe.
    """
    facts = manifest.archive
    with content_of_file(path, (facts.xxh128, facts.blake3)) as found, FileSource(path) as file:
        content = replace(found, tar_sha256=facts.tar_sha256)
        if before is None:
            yield content, ()
            return
        proven, known = _compared(file, manifest, before)
        yield replace(content, read_proven=proven.read_at if is_noted else None), known


def _compared(
    file: FileSource, manifest: Manifest, before: PublishedArchive
) -> tuple[ProvenBytes, tuple[KnownRange, ...]]:
    """Return the bytes of a file, and what `before` has of them; two indexes are in memory here."""
    ours = Archive(file)
    check_manifest(ours, manifest)
    return ProvenBytes(ours), find_known(ours, before)


def find_known(ours: Archive, published: PublishedArchive) -> tuple[KnownRange, ...]:
    """Return the runs of an archive that a published one has.

    Only its index is read. When it cannot be, nothing is known: a push must not fail for that.
    """
    try:
        theirs = Archive(published)
        check_manifest(theirs, published.manifest)
        return known_ranges(ours, theirs, archive_key(published.manifest))
    except (IntegrityError, NotFound, SpecError, StoreError) as error:
        log.info("everything is sent: %s", error)
        return ()


def known_ranges(ours: Archive, theirs: Archive, key: str) -> tuple[KnownRange, ...]:
    """Return the runs of frames that both archives have, in the order of ours."""
    # By the digest of the compressed bytes: these are what is copied.
    frames = [(frame.blake3, frame.size) for frame in theirs.index.frames]
    # Not strict: `offsets` has one entry more than there are frames, the end of the last.
    places = dict(zip(frames, theirs.offsets, strict=False))
    by_offset = dict(zip(theirs.offsets, frames, strict=False))
    runs: list[KnownRange] = []
    for frame, offset in zip(ours.index.frames, ours.offsets, strict=False):
        wanted = (frame.blake3, frame.size)
        last = runs[-1] if runs else None
        following = last.key_offset + last.length if last and last.end == offset else None
        # Neighbours in both archives become one run: a copy has a least length. An archive may have
        # a frame twice (two packages with equal files), of which one is the neighbour.
        if last and following is not None and by_offset.get(following) == wanted:
            runs[-1] = KnownRange(last.offset, last.length + frame.size, key, last.key_offset)
        elif wanted in places:
            runs.append(KnownRange(offset, frame.size, key, places[wanted]))
    return tuple(runs)
