"""Threads for what waits for servers: failures and interrupts end them."""

from __future__ import annotations

import threading
import time

import pytest

from envferry.base.workers import Workers


def test_all_is_waited_for() -> None:
    done: list[int] = []
    with Workers(2, "test") as pool:
        for number in range(5):
            pool.submit(done.append, number)
    assert sorted(done) == [0, 1, 2, 3, 4]


def test_what_has_not_begun_when_the_block_fails_never_does() -> None:
    done: list[int] = []

    def fail() -> None:
        with Workers(1, "test") as pool:
            pool.submit(time.sleep, 0.2)
            pool.submit(done.append, 1)
            msg = "no"
            raise ValueError(msg)

    with pytest.raises(ValueError, match="no"):
        fail()
    assert done == []


def test_an_interrupt_waits_for_what_ends_soon_only() -> None:
    silence, done = threading.Event(), threading.Event()

    def finish() -> None:
        time.sleep(0.1)
        done.set()

    def interrupt() -> None:
        with Workers(2, "test") as pool:
            pool.submit(finish)
            pool.submit(silence.wait)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert done.is_set()
    silence.set()  # only now: whoever waited for it would still wait
