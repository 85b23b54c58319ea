"""New files go to the disk while others are made, and all of them at the end."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envferry.base import write_back
from envferry.base.write_back import flushing, sync_file_system

if TYPE_CHECKING:
    from collections.abc import Callable

SHARED_MEMORY = Path("/dev/shm")


def descriptors() -> int:
    """Return how many files this process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_nothing_is_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Also where there is no disk to write to."""
    folder = tmp_path if place == "disk" else SHARED_MEMORY
    if not os.access(folder, os.W_OK):
        pytest.skip("no /dev/shm")
    monkeypatch.setattr(write_back, "PERIOD_SECONDS", 0.0)
    before, others = descriptors(), set(threading.enumerate())
    with flushing(str(folder)):
        assert len(set(threading.enumerate()) - others) == 1
        for number in range(100):
            (tmp_path / str(number)).write_bytes(bytes(5000))
    assert descriptors() == before
    assert set(threading.enumerate()) <= others


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_fails_in_between_is_told(tmp_path: Path, error: type[BaseException]) -> None:
    """The thread ends by itself then, and closes what it has open."""
    before, others = descriptors(), set(threading.enumerate())
    threads: list[threading.Thread] = []

    def fail() -> None:
        with flushing(str(tmp_path)):
            threads.extend(set(threading.enumerate()) - others)
            raise error

    with pytest.raises(error):
        fail()
    (thread,) = threads
    thread.join()
    assert descriptors() == before


@pytest.mark.parametrize("flush", [sync_file_system, lambda path: flushing(path).__enter__()])
def test_a_place_that_is_gone_is_named(tmp_path: Path, flush: Callable[[str], None]) -> None:
    before = descriptors()
    with pytest.raises(FileNotFoundError, match="gone"):
        flush(str(tmp_path / "gone"))
    assert descriptors() == before
