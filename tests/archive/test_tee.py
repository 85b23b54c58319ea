"""One stream, several consumers: each gets all of it, in order, and memory is bounded."""

from __future__ import annotations

import errno
import threading
from functools import partial

import pytest

from envferry.archive.tee import PIECES_AHEAD, Tee

PIECES = [bytes([number]) * 3 for number in range(20)]
PATIENCE_SECONDS = 60


def test_each_consumer_gets_every_piece_in_order() -> None:
    fast, slow = bytearray(), bytearray()
    released: list[int] = []
    with Tee((fast.extend, slow.extend)) as tee:
        for number, piece in enumerate(PIECES):
            tee.feed(piece, partial(released.append, number))
    assert bytes(fast) == bytes(slow) == b"".join(PIECES)
    assert released == list(range(len(PIECES)))


def test_memory_is_free_only_when_the_slowest_has_done_with_it() -> None:
    """A piece that is overwritten too early would be an archive with a wrong digest."""
    go, taken = threading.Event(), list[bytes]()
    released: list[int] = []

    def slow(piece: bytes | memoryview) -> None:
        assert go.wait(PATIENCE_SECONDS)
        taken.append(bytes(piece))

    with Tee((slow, lambda piece: None)) as tee:
        for number in range(PIECES_AHEAD):
            tee.feed(PIECES[number], partial(released.append, number))
        assert not released
        go.set()
        tee.drain()
        assert released == list(range(PIECES_AHEAD))
        assert taken == PIECES[:PIECES_AHEAD]


def test_who_feeds_waits_for_the_slowest() -> None:
    go, fed = threading.Event(), list[bytes]()

    def feed_all(tee: Tee) -> None:
        for piece in PIECES:
            tee.feed(piece)
            fed.append(piece)

    with Tee((lambda piece: go.wait(PATIENCE_SECONDS),)) as tee:
        feeder = threading.Thread(target=feed_all, args=(tee,))
        feeder.start()
        feeder.join(0.2)
        assert len(fed) <= PIECES_AHEAD
        go.set()
        feeder.join(PATIENCE_SECONDS)
        assert len(fed) == len(PIECES)


def test_the_error_of_a_consumer_is_raised() -> None:
    def full(piece: bytes | memoryview) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def feed_all() -> None:
        with Tee((lambda piece: None, full)) as tee:
            for piece in PIECES:
                tee.feed(piece)

    with pytest.raises(OSError, match="No space left"):
        feed_all()


def test_an_error_at_the_end_is_not_lost() -> None:
    def full(piece: bytes | memoryview) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"), Tee((full,)) as tee:
        tee.feed(b"the only piece")
