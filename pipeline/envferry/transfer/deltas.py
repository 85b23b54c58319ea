"""Deltas: the bytes of a new archive that a site's artifacts lack, and how to rebuild it.

    v1/deltas/NAME/PLATFORM/ID/NAME-PLATFORM-ID.delta    the bytes that no base has
    v1/deltas/NAME/PLATFORM/ID/{conda-lock.yml,manifest.json,…}
    v1/deltas/NAME/PLATFORM/ID/tags/TAG                  signed records, as they are
    v1/deltas/NAME/PLATFORM/ID/delta.json                written last

Nothing of it is trusted: what comes out must have the BLAKE3 that the manifest says.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated

import msgspec

from envferry.registry.layout import DELTAS, artifact_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from envferry.models import Manifest

RECORD = "delta.json"
Count = Annotated[int, msgspec.Meta(ge=0)]


class Base(msgspec.Struct, frozen=True, order=True):
    """An artifact that the site must have."""

    name: str
    platform: str
    id: str

    @classmethod
    def of(cls, manifest: Manifest) -> Base:
        """Return what names an artifact."""
        return cls(manifest.name, manifest.platform, manifest.id)

    @property
    def folder(self) -> str:
        """Where it is in a registry."""
        return artifact_folder(self.name, self.platform, self.id)

    def __str__(self) -> str:
        return f"{self.name}@{self.id} ({self.platform})"


class ByteRun(msgspec.Struct, frozen=True, array_like=True):
    """Bytes of the new archive, and where they are; runs follow each other."""

    length: Count
    base: int
    """The number of the base that has them; -1: the delta file."""
    offset: Count
    """Where in the base's archive, or in the delta file."""


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """`delta.json`."""

    artifact: Base
    bases: tuple[Base, ...]
    size: Count
    """Bytes of the delta file."""
    blake3: str
    """Of the delta file."""
    runs: tuple[ByteRun, ...]
    schema: int = 1


def delta_folder(artifact: Base) -> str:
    """Return where the delta of an artifact is."""
    # Only for its checks: names from a disk must not lead to other folders.
    artifact_folder(artifact.name, artifact.platform, artifact.id)
    return f"{DELTAS}{artifact.name}/{artifact.platform}/{artifact.id}/"


def delta_key(artifact: Base) -> str:
    """Return the key of a delta file."""
    stem = f"{artifact.name}-{artifact.platform}-{artifact.id}"
    return f"{delta_folder(artifact)}{stem}.delta"


class Pieces(msgspec.Struct, frozen=True):
    """Runs as one sequence of bytes that can be read anywhere."""

    starts: list[int]
    places: list[tuple[int, int, int]]
    """Base, offset there, length."""

    @classmethod
    def of(cls, runs: Sequence[ByteRun], only_base: int | None = None) -> Pieces:
        """Return all runs; or those that are in the delta file, by where the archive has them."""
        places, position = [], 0
        for run in runs:
            if only_base is None:
                places.append((run.base, run.offset, run.length))
            elif run.base == only_base:
                places.append((run.base, position, run.length))
            position += run.length
        # One more than there are places: the last is the end.
        starts = [0, *accumulate(length for _, _, length in places)]
        return cls(starts, places)

    def places_of(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Yield where some bytes are: base, offset there, length."""
        number, end = bisect_right(self.starts, offset) - 1, offset + length
        while offset < end:
            base, start, size = self.places[number]
            inside = offset - self.starts[number]
            count = min(size - inside, end - offset)
            # Runs of no bytes are valid, and lie nowhere.
            if count:
                yield base, start + inside, count
            offset += count
            number += 1

    def read(self, offset: int, length: int, read_at: Callable[[int, int, int], bytes]) -> bytes:
        """Return bytes from the pieces that hold them; `read_at` takes base, offset, length."""
        pieces = [read_at(*place) for place in self.places_of(offset, length)]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
