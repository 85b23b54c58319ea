"""Times of files, as far as a file system keeps them itself."""

from __future__ import annotations

import shutil
from pathlib import Path

from envferry.base.file_times import boot_id, has_own_times, next_tick


def test_file_systems_without_ctimes_of_their_own_are_not_believed(tmp_path: Path) -> None:
    assert has_own_times(tmp_path)
    assert not has_own_times(Path("/proc"))
    assert not has_own_times(tmp_path / "nowhere")
    assert len(boot_id()) == 36


def test_a_tick_is_later_than_every_file(tmp_path: Path) -> None:
    for number in range(20):
        path = tmp_path / str(number)
        path.write_bytes(b"")
        assert next_tick(tmp_path, ".hidden-") > path.stat().st_ctime_ns
    shutil.rmtree(tmp_path)
