"""Indexes behind http: sent once, in the form that costs least, and only what is needed."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
import zstandard

from envferry.build.downloads import DownloadCache
from envferry.errors import StoreError
from envferry.lock.conda import repodata_server
from envferry.lock.conda.repodata import ChannelIndexes, extract
from envferry.lock.conda.repodata_server import RepodataServer
from envferry.lock.lock_options import LockOptions
from envferry.lock.stage import lock_spec
from envferry.progress import Expected
from envferry.specs.reading import read_spec
from tests.support.repodata_channels import LINUX, record, write_channel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@dataclass
class Served:
    """A channel on a server, and what it was asked for."""

    url: str = ""
    answers: list[tuple[str, int]] = field(default_factory=list)
    """File names and status codes."""

    def files(self, status: int) -> list[str]:
        """Return what was answered with a status, and forget it."""
        found = [name for name, code in self.answers if code == status]
        self.answers.clear()
        return sorted(found)


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """Serve a folder; `If-Modified-Since` is obeyed."""
    served = Served()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *words: Any) -> None:
            super().__init__(*words, directory=str(folder))

        def log_request(self, code: Any = "-", size: Any = "-") -> None:
            served.answers.append((self.path.rsplit("/", 1)[-1], int(code)))

        def log_error(self, *words: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        served.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()


def ask(home: Path, url: str, *names: str) -> list[str]:
    """Return what an extract of a channel holds, with a indexes of its own."""
    folder = home / "extract"
    folder.mkdir(exist_ok=True, parents=True)
    for old in folder.iterdir():
        old.unlink()
    indexes = ChannelIndexes(RepodataServer(home / "repodata", DownloadCache(home / "downloads")))
    tiers = extract(indexes, [url], LINUX, names, folder)
    texts = "".join(path.read_text() for path in folder.iterdir())
    assert len(tiers) == 1
    return [name for name in ("app", "lib", "other") if f'"{name}-1-0.conda"' in texts]


RECORDS = (record("app", "1", depends=["lib"]), record("lib", "1"), record("other", "1"))


@pytest.mark.parametrize("form", ["repodata.json", "repodata.json.zst"])
def test_an_index_is_sent_once(tmp_path: Path, form: str) -> None:
    channel = write_channel(tmp_path / "channel", *RECORDS, form=form)
    with serving(channel) as served:
        assert ask(tmp_path, served.url, "app") == ["app", "lib"]
        assert served.files(200) == [form, form]
        assert ask(tmp_path, served.url, "other") == ["other"]
        assert (served.files(304), served.files(200)) == ([form, form], [])


def test_shards_are_asked_for_by_need_and_kept(tmp_path: Path) -> None:
    channel = write_channel(tmp_path / "channel", *RECORDS, form="shards")
    index = "repodata_shards.msgpack.zst"
    with serving(channel) as served:
        assert ask(tmp_path, served.url, "app") == ["app", "lib"]
        assert len([name for name in served.files(200) if name != index]) == 2
        assert ask(tmp_path, served.url, "app") == ["app", "lib"]
        assert served.files(200) == []
        assert ask(tmp_path, served.url, "other") == ["other"]
        assert len(served.files(200)) == 1


def test_shards_win_over_the_whole(tmp_path: Path) -> None:
    channel = write_channel(tmp_path / "channel", *RECORDS)
    write_channel(channel, *RECORDS, form="shards")
    with serving(channel) as served:
        assert ask(tmp_path, served.url, "other") == ["other"]
        assert "repodata.json" not in served.files(200)


def test_how_far_it_is_is_said(tmp_path: Path) -> None:
    channel = write_channel(tmp_path / "channel", *RECORDS, form="shards")
    done: list[int] = []
    with serving(channel) as served:
        server = RepodataServer(tmp_path / "repodata", DownloadCache(tmp_path / "downloads"))
        server.advance = done.append
        (tmp_path / "extract").mkdir()
        extract(ChannelIndexes(server), [served.url], LINUX, ["app"], tmp_path / "extract")
    # Two lists of shards and two shards; the list of noarch is not empty either.
    assert len(done) == server.expected.items == 4
    assert sum(done) == server.expected.known_bytes


def test_a_shard_that_is_not_the_one_that_is_listed(tmp_path: Path) -> None:
    channel = write_channel(tmp_path / "channel", *RECORDS, form="shards")
    for path in (channel / LINUX).glob("*.msgpack.zst"):
        if len(path.name) > 64:
            path.write_bytes(b"another")
    with serving(channel) as served, pytest.raises(StoreError, match="does not match its checksum"):
        ask(tmp_path, served.url, "app")


def test_nothing_there(tmp_path: Path) -> None:
    with serving(tmp_path) as served, pytest.raises(StoreError, match="has no index"):
        ask(tmp_path, served.url, "app")


def test_an_index_of_several_frames_and_one_that_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = "repodata.json.zst"
    channel = write_channel(tmp_path / "channel", *RECORDS, form=form)
    path = channel / LINUX / form
    plain = zstandard.decompress(path.read_bytes())
    path.write_bytes(zstandard.compress(plain[:100]) + zstandard.compress(plain[100:]))
    with serving(channel) as served:
        assert ask(tmp_path, served.url, "app") == ["app", "lib"]
        monkeypatch.setattr(repodata_server, "MAX_INDEX_BYTES", 1 << 20)
        path.write_bytes(zstandard.compress(plain + b" " * (2 << 20)))
        with pytest.raises(StoreError, match="unpacks to more than"):
            ask(tmp_path / "other", served.url, "app")


class Told:
    """Progress that is kept: of each task what was told, and whether all that was expected came."""

    def __init__(self, asked: Callable[[], int]) -> None:
        self.asked = asked
        self.tasks: list[tuple[str, int, bool]] = []

    @contextmanager
    def task(
        self, label: str, total_bytes: int | Expected | None = None
    ) -> Iterator[Callable[[int], None]]:
        """Open a task as slowly as a terminal's bar does when it is shown for the first time."""
        before, done = self.asked(), [0]
        for _ in range(20):
            time.sleep(0.02)
            if self.asked() > before:
                break

        def advance(count: int) -> None:
            done[0] += count

        yield advance
        known = total_bytes.known_bytes if isinstance(total_bytes, Expected) else 0
        self.tasks.append((label, done[0], done[0] == known))


def test_what_is_fetched_is_told_before_it_is_solved(tmp_path: Path) -> None:
    """Of all platforms together, as they are fetched side by side; the solver's time is no rate."""
    mac = "osx-arm64"
    records = (
        *RECORDS,
        record("app", "1", subdir=mac, depends=["lib"]),
        record("lib", "1", subdir=mac),
    )
    channel = write_channel(tmp_path / "channel", *records, form="shards")
    with serving(channel) as served:
        path = tmp_path / "a.yml"
        path.write_text(f"name: a\nchannels: ['{served.url}']\ndependencies: [app]\n")
        options = LockOptions(platforms=(LINUX, mac))
        told = Told(lambda: len(served.answers))
        lock = lock_spec(read_spec(path), options=options, progress=told)
    assert len(lock.packages) == 4
    fetched, *solved = [task for task in told.tasks if "pip" not in task[0]]
    assert fetched[0] == "locking a: what the channels have"
    assert fetched[1] > 0
    assert fetched[2]
    assert solved == [
        *((f"locking a: conda packages for {platform}", 0, True) for platform in (LINUX, mac)),
        ("locking a: conda-lock's content hash", 0, True),
    ]
