"""Which bytes of a new archive a store has already: frames of unchanged packages are the same."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from envferry.archive.identity import check_manifest
from envferry.archive.reader import Archive, FileSource
from envferry.errors import IntegrityError, NotFound, SpecError, StoreError
from envferry.stores.port import KnownRange

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.registry.published_archive import PublishedArchive

log = logging.getLogger(__name__)


def find_known(path: Path, published: PublishedArchive, key: str) -> tuple[KnownRange, ...]:
    """Return the runs of an archive file that a published archive at `key` has.

    Only its index is read. When it cannot be, nothing is known: a push must not fail for that.
    """
    try:
        theirs = Archive(published)
        check_manifest(theirs, published.manifest)
        with FileSource(path) as source:
            return known_ranges(Archive(source), theirs, key)
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
