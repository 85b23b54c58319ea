"""Values that arrive in pieces: what stays of one that broke off, and what does not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import xxhash
from blake3 import blake3

from pipeline.errors import IntegrityError, StoreError
from pipeline.stores.arriving import REQUEST_BYTES, Incoming
from pipeline.stores.directory import DirectoryStore
from pipeline.stores.partial import PIECE_BYTES
from pipeline.stores.port import Incomplete
from tests.packed import random_bytes

if TYPE_CHECKING:
    from pathlib import Path

DATA = random_bytes(3, 2 * REQUEST_BYTES + 1000)


class Source:
    """Bytes that end for a while where they are cut off."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.end = REQUEST_BYTES
        self.asked: list[int] = []

    def read_at(self, offset: int, length: int) -> bytes:
        """Return some bytes."""
        self.asked.append(offset)
        if offset >= self.end:
            raise self.error
        return DATA[offset : offset + length]

    def read_into(self, offset: int, memory: memoryview) -> None:
        """Fill memory with some bytes."""
        memory[:] = self.read_at(offset, len(memory))

    def incoming(self, *, near: bool) -> Incoming:
        """Return all bytes as they arrive from a disk, or from a server."""
        return Incoming(
            name="big",
            size=len(DATA),
            token="big",
            read_at=self.read_at,
            read_into=self.read_into if near else None,
            digests=(xxhash.xxh3_128_hexdigest(DATA), blake3(DATA).hexdigest()),
        )


@pytest.mark.parametrize("near", [True, False])
@pytest.mark.parametrize("error", [StoreError("lost"), Incomplete("the disk was pulled out")])
def test_what_has_arrived_is_not_asked_for_again(
    tmp_path: Path, error: Exception, near: bool
) -> None:
    store, source = DirectoryStore(tmp_path), Source(error)
    with pytest.raises(type(error)):
        store.create("a/big", source.incoming(near=near))
    source.end, source.asked = len(DATA), []
    store.create("a/big", source.incoming(near=near))
    assert min(source.asked) == REQUEST_BYTES
    assert store.read("a/big") == DATA
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["big"]


@pytest.mark.parametrize("near", [True, False])
def test_nothing_stays_of_wrong_bytes(tmp_path: Path, near: bool) -> None:
    source = Source(StoreError("never"))
    source.end = len(DATA)
    wrong = replace(source.incoming(near=near), digests=("0" * 32, "0" * 64))
    with pytest.raises(IntegrityError, match="XXH3-128 is"):
        DirectoryStore(tmp_path).create("a/big", wrong)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_pieces_that_a_power_loss_took_are_asked_for_again(tmp_path: Path) -> None:
    store, source = DirectoryStore(tmp_path), Source(StoreError("lost"))
    with pytest.raises(StoreError, match="lost"):
        store.create("a/big", source.incoming(near=True))
    with (tmp_path / "a/.big.partial").open("r+b") as stream:
        stream.seek(PIECE_BYTES)
        stream.write(bytes(PIECE_BYTES))
    source.end, source.asked = len(DATA), []
    store.create("a/big", source.incoming(near=True))
    assert min(source.asked) == PIECE_BYTES
    assert 2 * PIECE_BYTES not in source.asked
    assert store.read("a/big") == DATA
