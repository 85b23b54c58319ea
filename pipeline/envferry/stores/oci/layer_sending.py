"""An archive in several layers: those that the registry has of another version are not sent."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec
import xxhash
from blake3 import blake3

from envferry.base.workers import Workers
from envferry.errors import IntegrityError
from envferry.stores.oci.documents import LAYER, Descriptor, read_manifest
from envferry.stores.oci.key_tags import ARCHIVE, FILE_TAG, environments_in
from envferry.stores.oci.sending import BlobDigests, SentBlob, send_blob
from envferry.stores.receive import REQUEST_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from envferry.stores.oci.key_tags import Names
    from envferry.stores.oci.port import Repositories
    from envferry.stores.source import ContentSource, Piece

READERS = 12
MOST_LOOKED_AT = 200
"""Archives whose layers are looked at; those of the same environment come first."""


class ReusedLayers(msgspec.Struct, frozen=True):
    """Layers that the registry has: by size, with a repository that has them."""

    by_size: Mapping[int, dict[str, str]]

    @classmethod
    def of(cls, space: Repositories, names: Names, repository: str) -> ReusedLayers:
        """Look at the archives of an environment, then at those of the others."""
        others = sorted(map(names.repository, environments_in(space.tags(names.root))))
        places = [
            (one, tag)
            for one in dict.fromkeys((repository, *others))
            for tag in space.tags(one)
            if (found := FILE_TAG.fullmatch(tag)) and found["file"] == ARCHIVE
        ]

        def look(place: tuple[str, str]) -> tuple[str, Sequence[Descriptor]]:
            found = space.manifest(*place)
            # Of a damaged manifest no layers are known, and no more than that is lost.
            with suppress(IntegrityError):
                if found:
                    return place[0], read_manifest(found.data, ":".join(place)).layers
            return place[0], ()

        by_size: dict[int, dict[str, str]] = defaultdict(dict)
        with Workers(READERS, "layers") as pool:
            for one, layers in pool.map(look, places[:MOST_LOOKED_AT]):
                for layer in layers:
                    # The first that has it; the environment's own repository, without a mount,
                    # comes first.
                    by_size[layer.size].setdefault(layer.digest, one)
        return cls(by_size)


class LayerSender(msgspec.Struct, frozen=True):
    """Brings the layers of one archive to a repository."""

    space: Repositories
    repository: str
    reused: ReusedLayers
    advance: Callable[[int], None]

    def send(self, content: ContentSource, cuts: tuple[int, ...]) -> tuple[SentBlob, ...]:
        """Send all layers; the bytes of the whole are compared with its digests, if it has any.

        One after the other: each byte is read once, but for layers that have the size of one that
        the registry has, and prove to be others.
        """
        inside = [one for one in cuts if 0 < one < content.size]
        runs = enumerate(pairwise((0, *inside, content.size)))
        fast, strong = xxhash.xxh3_128(), blake3()

        def watch(data: Piece) -> None:
            fast.update(data)
            strong.update(data)
            content.watch(data)

        sent = tuple(self._send(content.part(number, *_length(run), watch)) for number, run in runs)
        # Blobs that no manifest names yet: nothing wrong has become visible.
        content.require(fast.hexdigest(), strong.hexdigest())
        return sent

    def _send(self, part: ContentSource) -> SentBlob:
        """Send a layer, unless one of its size proves to be the same."""
        there = self.reused.by_size.get(part.size, {})
        if not there:
            return send_blob(self.space, self.repository, part, self.advance, media_type=LAYER)
        # Read to be hashed only where a layer of this length is there:
        # equal lengths are hardly chance.
        digest, diff_id = self._digests(part)
        if (source := there.get(digest)) and self._is_there(digest, source):
            self.advance(part.size)
            return SentBlob(Descriptor(LAYER, digest, part.size), diff_id)
        # Watched just now: twice would be wrong in the digests of the whole.
        seen = msgspec.structs.replace(part, watch=_unseen)
        return send_blob(self.space, self.repository, seen, self.advance, media_type=LAYER)

    def _is_there(self, digest: str, source: str) -> bool:
        """Whether the repository has a layer, if need be taken over from another one."""
        return self.space.has_blob(self.repository, digest) or (
            source != self.repository and self.space.mount(self.repository, digest, source)
        )

    def _digests(self, part: ContentSource) -> tuple[str, str]:
        with BlobDigests(part.name, decompresses=True) as digests:
            for data in _pieces(part):
                part.watch(data)
                digests.feed(data)
            return digests.result()


def _length(run: tuple[int, int]) -> tuple[int, int]:
    return run[0], run[1] - run[0]


def _pieces(part: ContentSource) -> Iterator[bytes]:
    """Yield the bytes of a layer."""
    for offset in range(0, part.size, REQUEST_BYTES):
        yield part.read_at(offset, min(REQUEST_BYTES, part.size - offset))


def _unseen(data: Piece) -> None:
    """Watch nothing."""
