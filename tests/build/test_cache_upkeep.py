"""Listing, verifying and pruning the download cache."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from envferry.base.files import exclusive_lock
from envferry.build.cache_locks import cache_lock
from envferry.build.cache_upkeep import (
    Pruned,
    list_entries,
    list_indexes,
    prune_entries,
    prune_indexes,
    remove_leftovers,
    verify_entries,
)
from envferry.build.downloads import DownloadCache
from envferry.errors import TargetOccupied
from envferry.lock.conda.repodata import ChannelIndexes, cached_indexes
from envferry.lock.conda.repodata_server import RepodataServer
from envferry.progress import Silent
from tests.support.builds import locked
from tests.support.repodata_channels import record, write_channel


@pytest.fixture
def cache(tmp_path: Path) -> DownloadCache:
    """A cache with three downloads: c was used last, a long ago."""
    cache = DownloadCache(tmp_path / "downloads")
    for number, name in enumerate("abc"):
        file = tmp_path / f"{name}-1.0-0.conda"
        file.write_text(name * 1000)
        found = cache.fetch_all([locked(file)], progress=Silent())
        (path,) = found.values()
        os.utime(path.with_name(".lock"), (1000 * number, 1000 * number))
    return cache


def names(cache: DownloadCache) -> list[str]:
    return [entry.path.name[0] for entry in list_entries(cache.root)]


def test_what_was_used_last_comes_first(cache: DownloadCache, tmp_path: Path) -> None:
    assert names(cache) == ["c", "b", "a"]
    assert {entry.size for entry in list_entries(cache.root)} == {1000}
    cache.fetch_all([locked(tmp_path / "a-1.0-0.conda")], progress=Silent(), offline=True)
    assert names(cache) == ["a", "c", "b"]
    assert list_entries(tmp_path / "nowhere") == []


def test_damaged_downloads_are_found_and_removed(cache: DownloadCache) -> None:
    done: list[int] = []
    assert verify_entries(cache.root, done.append) == []
    assert sum(done) == 3000
    entry = list_entries(cache.root)[1]
    entry.path.write_text("b" * 999 + "B")
    assert [item.path for item in verify_entries(cache.root, done.append)] == [entry.path]
    assert names(cache) == ["c", "a"]


def test_verifying_disturbs_nobody(cache: DownloadCache) -> None:
    before = list_entries(cache.root)
    assert verify_entries(cache.root, lambda count: None) == []
    assert list_entries(cache.root) == before
    # A build that finds a damaged one removes it, too.
    assert verify_entries(cache.root, lambda _: before[-1].path.unlink(missing_ok=True)) == []
    assert list_entries(cache.root) == before[:-1]


def test_what_is_no_download_is_left_alone(cache: DownloadCache) -> None:
    top = cache.root / "sha256"
    strangers = [top / "zz/file", top / "zz/nothing/file", cache.root / "README"]
    for path in strangers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not ours")
    (top / "zz/nothing/link").symlink_to("nowhere")
    (list_entries(cache.root)[0].path.parent / "folder").mkdir()
    assert len(names(cache)) == 3
    assert verify_entries(cache.root, lambda count: None) == []
    assert prune_entries(cache.root, older_than=1e12).files == 3
    assert all(path.exists() for path in strangers)


def test_what_nobody_used_for_long_goes(cache: DownloadCache) -> None:
    partial = list_entries(cache.root)[0].path.with_name(".half.whl.partial")
    partial.write_text("half")
    pruned = prune_entries(cache.root, older_than=1500)
    assert (pruned.files, pruned.size) == (3, 2004)
    assert names(cache) == ["c"]
    prune_entries(cache.root, older_than=1e12)
    assert [path.name for path in cache.root.rglob("*")] in (
        ["sha256", ".lock"],
        [".lock", "sha256"],
    )


def test_a_download_of_two_names_goes_once(cache: DownloadCache, tmp_path: Path) -> None:
    again = (tmp_path / "a-1.0-0.conda").rename(tmp_path / "a-1.0-0_1.conda")
    cache.fetch_all([locked(again)], progress=Silent())
    assert prune_entries(cache.root, older_than=1e12).files == 4
    assert names(cache) == []


def test_repositories_and_records_of_wheels_go_too(cache: DownloadCache) -> None:
    for number, name in enumerate(("old", "new")):
        repository = cache.root / "git" / name
        repository.mkdir(parents=True)
        (repository / ".lock").touch()
        (repository / "HEAD").write_text("ref: refs/heads/main\n")
        os.utime(repository / ".lock", (1000 * number, 1000 * number))
        record = cache.root / "made" / f"{name}.json"
        record.parent.mkdir(exist_ok=True)
        record.touch()
        os.utime(record, (1000 * number, 1000 * number))
    pruned = prune_entries(cache.root, older_than=500)
    assert (pruned.files, pruned.size) == (2, 1021)
    assert [path.name for path in (cache.root / "git").iterdir()] == ["new"]
    assert [path.name for path in (cache.root / "made").iterdir()] == ["new.json"]


def test_nothing_goes_while_a_build_uses_it(cache: DownloadCache) -> None:
    with cache_lock(cache.root, shared=True):
        with pytest.raises(TargetOccupied, match="is using the cache"):
            prune_entries(cache.root, older_than=1e12)
        verify_entries(cache.root, lambda count: None)
    assert len(names(cache)) == 3


def test_leftovers_of_killed_builds_go(tmp_path: Path) -> None:
    (tmp_path / "demo.v2-linux-64.partial/envs").mkdir(parents=True)
    (tmp_path / "demo.v2-linux-64").mkdir()
    closed = tmp_path / "other-linux-64.again/closed/to all"
    closed.mkdir(parents=True)
    closed.parent.chmod(0)
    with exclusive_lock(tmp_path / "demo.v2-linux-64.lock", "it"), pytest.raises(TargetOccupied):
        list(remove_leftovers(tmp_path))
    left = [path.name for path in remove_leftovers(tmp_path)]
    assert left == ["demo.v2-linux-64.partial", "other-linux-64.again"]
    assert (tmp_path / "demo.v2-linux-64").exists()
    assert list(remove_leftovers(tmp_path / "nowhere")) == []


VERIFY_AS_ANOTHER = """
import os, sys
from pathlib import Path
from envferry.build.cache_upkeep import list_entries, verify_entries
os.setgroups([])
os.setgid(6000)
os.setuid(5002)
root = Path(sys.argv[1])
before = list_entries(root)
assert verify_entries(root, lambda count: None) == []
assert list_entries(root) == before
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="changes its user")
def test_anybody_of_its_group_verifies_a_shared_cache(cache: DownloadCache, tmp_path: Path) -> None:
    """The times of files are their owner's to set."""
    for path in (cache.root, *cache.root.rglob("*")):
        os.chown(path, 5001, 6000)
        path.chmod(0o2775 if path.is_dir() else 0o664)
    for path in (tmp_path, *tmp_path.parents):
        if path != Path("/tmp") and path.is_relative_to("/tmp"):
            path.chmod(0o755)
    subprocess.run([sys.executable, "-c", VERIFY_AS_ANOTHER, cache.root], check=True)


def test_indexes_of_channels_are_listed_and_pruned(tmp_path: Path) -> None:
    root = tmp_path / "repodata"
    channel = write_channel(tmp_path / "c", record("a", "1"), form="repodata.json.zst")
    server = RepodataServer(root, DownloadCache(tmp_path / "downloads"))
    assert ChannelIndexes(server).index(f"{channel.as_uri()}/linux-64/") is not None
    (found,) = list_indexes(root)
    assert found.url == (channel / "linux-64/repodata.json.zst").as_uri()
    assert found.size == found.path.stat().st_size > 0
    assert prune_indexes(root, older_than=found.used - 1).files == 0
    assert prune_indexes(root, older_than=time.time() + 60).size >= found.size
    assert list_indexes(root) == []
    assert ChannelIndexes(server).index(f"{channel.as_uri()}/linux-64/") is not None


def test_indexes_that_are_read_are_not_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read piece by piece, from names in a folder that a prune removes."""
    monkeypatch.setenv("ENVFERRY_CACHE", str(tmp_path / "cache"))
    root, soon = tmp_path / "cache/repodata", time.time() + 60
    channel = write_channel(tmp_path / "c", record("a", "1"), form="repodata.json.zst")
    assert prune_indexes(root, older_than=soon) == Pruned(files=0, size=0)
    with cached_indexes() as indexes:
        index = indexes.index(f"{channel.as_uri()}/linux-64/")
        assert index
        for dry_run in (True, False):
            with pytest.raises(TargetOccupied, match="is using the cache"):
                prune_indexes(root, older_than=soon, dry_run=dry_run)
        assert len(list(index.records({"a"}))) == 1
    waiting = threading.Event()

    def read_again() -> int:
        waiting.set()
        with cached_indexes() as indexes:
            index = indexes.index(f"{channel.as_uri()}/linux-64/")
            return len(list(index.records({"a"}))) if index else 0

    with ThreadPoolExecutor(1) as threads, cache_lock(root, shared=False):
        future = threads.submit(read_again)
        assert waiting.wait(10)
        with pytest.raises(TargetOccupied):  # another prune
            prune_indexes(root, older_than=soon)
        time.sleep(0.1)
        assert not future.done()
    assert future.result() == 1
    assert prune_indexes(root, older_than=soon).files > 0
    assert list_indexes(root) == []
