"""Where an archive is cut into the layers of an image, so that versions share most of them.

Cuts are where packages begin: there a frame begins, too, and a tar member, so each layer is a tar
stream of its own, and all of them together are the archive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from envferry.archive.reader import Archive, FileSource, frame_offsets
from envferry.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from envferry.archive.index import Index
    from envferry.stores.port import Store
    from envferry.stores.source import ContentSource

LEAST_BYTES = 1 << 16
"""What smaller packages count as: a layer has a price of its own."""
ENDS = 2
"""Layers that hold no packages: the first (directories and files of no package), and the last
(what packing generated, the index), which is another in each version."""


class _Group(msgspec.Struct, frozen=True):
    """What starts at a byte of the archive."""

    start: int
    weight: int
    """Its size, rounded to a power of two: a new version is not cut elsewhere for a few bytes."""


def layered(store: Store, archive: Path | ContentSource, count: int) -> Store:
    """Return a store that keeps an archive in so many layers; raise UsageError if it has none."""
    if count == 1:
        return store
    if not store.images:
        message = f"{store.url} keeps archives whole: --layers is for oci://HOST/REPOSITORY"
        raise UsageError(message, hint="leave out --layers")
    return store.images.in_layers(_cuts_of(archive, count))


def _cuts_of(archive: Path | ContentSource, count: int) -> tuple[int, ...]:
    from pathlib import Path

    if isinstance(archive, Path):
        with FileSource(archive) as source:
            return cut_points(Archive(source).index, count)
    return cut_points(Archive(archive).index, count)


def cut_points(index: Index, count: int) -> tuple[int, ...]:
    """Return the bytes at which layers after the first begin: `count` layers, or fewer.

    Chosen is what makes a pull after the change of one package cheapest: the sum of bytes times
    packages over all layers is least. It follows from the index alone.
    """
    offsets = frame_offsets(index)
    # A package without frames has no place in the archive.
    begun = [(one, offsets[one.first_frame]) for one in index.packages if one.frames]
    owned = [(one, start) for one, start in begun if one.kind in ("conda", "pypi")]
    if not owned:
        return ()
    last = owned[-1][0]
    # Also after the last frame: `offsets` has the end of the archive's frames, too.
    end = offsets[last.first_frame + last.frames]
    groups = [
        _Group(start, _rounded(offsets[one.first_frame + one.frames] - start))
        for one, start in owned
    ]
    chosen = _partition([one.weight for one in groups], max(1, count - ENDS))
    cuts = {groups[number].start for number in chosen} | ({end} if count >= ENDS else set())
    # A cut at byte 0 would make an empty first layer.
    return tuple(sorted(cuts - {0}))


def _rounded(size: int) -> int:
    size = max(size, LEAST_BYTES)
    low = 1 << (size.bit_length() - 1)
    # The nearer power by ratio, in whole numbers: equal archives are cut alike everywhere.
    return low if size * size < 2 * low * low else 2 * low


def _partition(weights: Sequence[int], count: int) -> list[int]:
    """Return where runs begin: `count` runs, so that the sum of length times weight is least.

    Divide and conquer over the best last cut, which never moves left (the cost is Monge):
    count * n * log n steps. Of equal ones the first cut is taken.
    """
    sums = [0]
    for weight in weights:
        sums.append(sums[-1] + weight)
    size, count = len(weights), min(count, len(weights))

    def cost(start: int, end: int) -> int:
        return (end - start) * (sums[end] - sums[start])

    # One run up to each end; every round below adds one run.
    best = [cost(0, end) for end in range(size + 1)]
    cuts: list[list[int]] = []
    for _ in range(count - 1):
        before, best, chosen = best, [0] * (size + 1), [0] * (size + 1)
        waiting = [(1, size, 0, size - 1)]
        while waiting:
            low, high, first, final = waiting.pop()
            middle = (low + high) // 2
            options = range(first, min(final, middle - 1) + 1)
            cut = min(options, key=lambda one, end=middle: (before[one] + cost(one, end), one))  # type: ignore[misc]
            best[middle], chosen[middle] = before[cut] + cost(cut, middle), cut
            if low < middle:
                waiting.append((low, middle - 1, first, cut))
            if middle < high:
                waiting.append((middle + 1, high, cut, final))
        cuts.append(chosen)
    starts, end = [], size
    for chosen in reversed(cuts):
        end = chosen[end]
        starts.append(end)
    return sorted({0, *starts})
