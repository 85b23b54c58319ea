"""Values that arrive in pieces: what stays of one that broke off, and what does not."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import xxhash
from blake3 import blake3
from msgspec.structs import replace

from envferry.errors import IntegrityError, StoreError
from envferry.process import run
from envferry.stores.directory import DirectoryStore
from envferry.stores.partial import PIECE_BYTES
from envferry.stores.port import Incomplete, KeyTaken
from envferry.stores.receive import REQUEST_BYTES
from envferry.stores.source import ContentSource
from tests.support.packed import random_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.stores.source import Piece

DATA = random_bytes(3, 2 * REQUEST_BYTES + 1000)


FULL_DISK = """
import subprocess, sys
from pathlib import Path
from envferry.errors import HostError, StoreError
from envferry.stores.directory import DirectoryStore
from tests.stores.test_receive import DATA, Source

store, source = DirectoryStore(Path(sys.argv[1])), Source(StoreError("never"))
source.end = len(DATA)
try:
    store.receive("big", source.content(is_local=sys.argv[2] == "1"))
except HostError as error:
    assert "No space left" in error.message and "free space" in error.hint
else:
    raise AssertionError("there was room")
subprocess.run(["mount", "-o", "remount,nr_inodes=9", sys.argv[1]], check=True)
source.asked.clear()
store.receive("big", source.content(is_local=sys.argv[2] == "1"))
assert store.read("big") == DATA
assert [path.name for path in Path(sys.argv[1]).iterdir()] == ["big"]
sys.stdout.write(f"again: {source.asked}")
"""


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

    def content(self, *, is_local: bool) -> ContentSource:
        """Return all bytes as they arrive from a disk, or from a server."""
        return ContentSource(
            name="big",
            size=len(DATA),
            token="big",
            read_at=self.read_at,
            read_into=self.read_into if is_local else None,
            digests=(xxhash.xxh3_128_hexdigest(DATA), blake3(DATA).hexdigest()),
        )


@pytest.mark.parametrize("is_local", [True, False])
@pytest.mark.parametrize("error", [StoreError("lost"), Incomplete("the disk was pulled out")])
def test_what_has_arrived_is_not_asked_for_again(
    tmp_path: Path, error: Exception, is_local: bool
) -> None:
    store, source = DirectoryStore(tmp_path), Source(error)
    with pytest.raises(type(error)):
        store.receive("a/big", source.content(is_local=is_local))
    source.end, source.asked = len(DATA), []
    store.receive("a/big", source.content(is_local=is_local))
    assert min(source.asked) == REQUEST_BYTES
    assert store.read("a/big") == DATA
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["big"]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounts a disk")
@pytest.mark.parametrize("is_local", [True, False])
def test_a_disk_without_room_for_the_name(tmp_path: Path, is_local: bool) -> None:
    """What has arrived on a disk that is full to the last name stays."""
    mount = 'mount -t tmpfs -o nr_inodes=3 tmpfs "$1" && shift && exec "$@"'
    child = (sys.executable, "-c", FULL_DISK, tmp_path, str(int(is_local)))
    assert run(["unshare", "-m", "sh", "-c", mount, "sh", tmp_path, *child]).stdout == "again: []"


@pytest.mark.parametrize("is_local", [True, False])
def test_what_came_too_late_does_not_stay(tmp_path: Path, is_local: bool) -> None:
    store, source = DirectoryStore(tmp_path), Source(StoreError("never"))
    source.end = len(DATA)

    def overtake(data: Piece) -> None:
        with suppress(KeyTaken):
            store.create("big", b"first")

    with pytest.raises(KeyTaken):
        store.receive("big", replace(source.content(is_local=is_local), watch=overtake))
    assert [path.name for path in tmp_path.iterdir()] == ["big"]


def test_a_folder_that_is_pruned_meanwhile(tmp_path: Path) -> None:
    """Whoever removes empty folders may do so between the making of one and its first file."""
    store, source, done = DirectoryStore(tmp_path), Source(StoreError("never")), threading.Event()
    source.end = len(DATA)

    def prune() -> None:
        while not done.wait(0.0002):
            with suppress(OSError):
                (tmp_path / "a/b").rmdir()

    content = replace(source.content(is_local=True), size=100, digests=None)
    pruner = threading.Thread(target=prune)
    pruner.start()
    try:
        for number in range(300):
            store.receive(f"a/b/{number}", content)
            store.delete(f"a/b/{number}")
    finally:
        done.set()
        pruner.join()


@pytest.mark.parametrize("is_local", [True, False])
def test_nothing_stays_of_wrong_bytes(tmp_path: Path, is_local: bool) -> None:
    source = Source(StoreError("never"))
    source.end = len(DATA)
    wrong = replace(source.content(is_local=is_local), digests=("0" * 32, "0" * 64))
    with pytest.raises(IntegrityError, match="XXH3-128 is"):
        DirectoryStore(tmp_path).receive("a/big", wrong)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_pieces_that_a_power_loss_took_are_asked_for_again(tmp_path: Path) -> None:
    store, source = DirectoryStore(tmp_path), Source(StoreError("lost"))
    with pytest.raises(StoreError, match="lost"):
        store.receive("a/big", source.content(is_local=True))
    with (tmp_path / "a/.big.partial").open("r+b") as stream:
        stream.seek(PIECE_BYTES)
        stream.write(bytes(PIECE_BYTES))
    source.end, source.asked = len(DATA), []
    store.receive("a/big", source.content(is_local=True))
    assert min(source.asked) == PIECE_BYTES
    assert 2 * PIECE_BYTES not in source.asked
    assert store.read("a/big") == DATA
