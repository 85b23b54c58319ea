"""What every store must do, as a suite of tests."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import pytest

from envferry.errors import NotFound, StoreError, UsageError
from envferry.stores.port import KeyTaken, LostRace, Store

if TYPE_CHECKING:
    import http.server

    Serve = Callable[[type[http.server.SimpleHTTPRequestHandler]], str]

LARGE = 40_000_000


NOBODY = 65534


def succeeds(write: Callable[..., object], *arguments: object) -> bool:
    """Whether a write wins; the two ways to lose are the only other outcomes."""
    try:
        write(*arguments)
    except (KeyTaken, LostRace):
        return False
    return True


class StoreSuite:
    """What every store that can write must do."""

    completes_atomically = True
    """Whether large values, too, have one winner of many at the same moment."""
    decides_races = True
    """Whether values have one winner at all; else the store is for one writer at a time."""
    replaces_atomically = True
    """Whether who reads a value while it is replaced gets the old one or the new one."""

    def test_a_missing_key(self, store: Store) -> None:
        assert store.stat("a/b") is None
        store.create("a/c", b"there")
        with pytest.raises(NotFound, match="a/b"):
            store.read("a/b")
        store.delete("a/b")

    def test_reads_what_was_created(self, store: Store) -> None:
        store.create("a/b.json", b"0123456789")
        assert store.read("a/b.json") == b"0123456789"
        assert store.read("a/b.json", 4) == b"456789"
        assert store.read("a/b.json", 4, 3) == b"456"
        assert store.read("a/b.json", 4, 0) == b""
        stat = store.stat("a/b.json")
        assert stat is not None
        assert stat.size == 10

    def test_an_empty_value(self, store: Store) -> None:
        store.create("empty", b"")
        assert store.read("empty") == b""

    @pytest.mark.parametrize(("offset", "length"), [(8, 3), (10, 1), (50, 1)])
    def test_a_short_value_is_an_error(self, store: Store, offset: int, length: int) -> None:
        store.create("short", b"0123456789")
        with pytest.raises(StoreError, match="short"):
            store.read("short", offset, length)

    def test_create_never_overwrites(self, store: Store) -> None:
        store.create("once", b"first")
        with pytest.raises(KeyTaken, match="once"):
            store.create("once", b"second")
        assert store.read("once") == b"first"

    def test_a_large_file_and_its_progress(self, store: Store, tmp_path: Path) -> None:
        source = tmp_path / "large"
        source.write_bytes(os.urandom(LARGE))
        done: list[int] = []
        store.create_from_file("large", source, done.append)
        assert sum(done) == LARGE
        assert len(done) > 1
        assert store.read("large") == source.read_bytes()
        assert store.read("large", LARGE - 5, 5) == source.read_bytes()[-5:]

    def test_a_failed_create_leaves_nothing(self, store: Store, tmp_path: Path) -> None:
        source = tmp_path / "large"
        source.write_bytes(bytes(LARGE))

        def interrupt(done_bytes: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            store.create_from_file("large", source, interrupt)
        assert store.stat("large") is None
        assert list(store.list()) == []
        store.create_from_file("large", source)

    @pytest.mark.parametrize("size", [10, 17 << 20])
    def test_one_of_many_creators_wins(self, store: Store, tmp_path: Path, size: int) -> None:
        sources = [tmp_path / str(number) for number in range(4)]
        for number, source in enumerate(sources):
            source.write_bytes(bytes([number]) * size)
        # A server that ignores conditions may even mix what two clients write at once.
        with ThreadPoolExecutor(4 if self.decides_races else 1) as pool:
            won = list(
                pool.map(lambda source: succeeds(store.create_from_file, "race", source), sources)
            )
        if not self.decides_races:
            assert store.read("race") in [source.read_bytes() for source in sources]
            return
        if size == 10 or self.completes_atomically:
            assert won.count(True) == 1
        winners = [source for source, has_won in zip(sources, won, strict=True) if has_won]
        assert store.read("race") in [source.read_bytes() for source in winners]

    def test_replace_compares_versions(self, store: Store) -> None:
        first = store.replace("tag", b"1", None)
        second = store.replace("tag", b"2", first)
        stat = store.stat("tag")
        assert stat is not None
        assert stat.version == second != first
        for stale in (first, None):
            with pytest.raises(LostRace, match="tag"):
                store.replace("tag", b"3", stale)
        with pytest.raises(LostRace):
            store.replace("none", b"3", first)
        assert store.read("tag") == b"2"
        assert store.stat("none") is None

    def test_one_of_many_replacers_wins(self, store: Store) -> None:
        version = store.replace("tag", b"start", None)
        values = [f"value {number}".encode() for number in range(8)]
        with ThreadPoolExecutor(8) as pool:
            won = list(
                pool.map(lambda value: succeeds(store.replace, "tag", value, version), values)
            )
        if self.decides_races:
            assert won.count(True) == 1
        assert store.read("tag") in [
            value for value, has_won in zip(values, won, strict=True) if has_won
        ]

    def test_readers_see_a_whole_value_while_it_is_replaced(self, store: Store) -> None:
        if not self.replaces_atomically:
            pytest.skip("this server shows a value that is being written")
        version = store.replace("tag", b"0", None)
        done = Event()

        def read_all_the_time() -> list[bytes]:
            found = [store.read("tag")]
            while not done.is_set():
                found.append(store.read("tag"))
                assert [listed.key for listed in store.list()] == ["tag"]
            return found

        with ThreadPoolExecutor(3) as pool:
            readers = [pool.submit(read_all_the_time) for _ in range(3)]
            try:
                for number in range(1, 20):
                    version = store.replace("tag", str(number).encode(), version)
            finally:
                done.set()
        for reader in readers:
            values = [int(value) for value in reader.result()]
            assert values == sorted(values)

    def test_lists_below_a_prefix(self, store: Store) -> None:
        for key in ("v1/a/x", "v1/a/y", "v1/ab", "v2/a"):
            store.create(key, b"")
        assert sorted(listed.key for listed in store.list("v1/a/")) == ["v1/a/x", "v1/a/y"]
        assert sorted(listed.key for listed in store.list()) == [
            "v1/a/x",
            "v1/a/y",
            "v1/ab",
            "v2/a",
        ]
        assert list(store.list("v3/")) == []
        with pytest.raises(UsageError):
            list(store.list("v1/a"))

    def test_lists_one_level(self, store: Store) -> None:
        for key in ("v1/a/x", "v1/a/y", "v1/ab", "v2/a"):
            store.create(key, b"12")
        found = {one.key: one.size for one in store.list_level("v1/")}
        assert found == {"v1/a/": 0, "v1/ab": 2}
        assert sorted(one.key for one in store.list_level()) == ["v1/", "v2/"]
        assert list(store.list_level("v3/")) == []

    def test_deletes(self, store: Store) -> None:
        store.create("a/b/c", b"")
        store.create("a/d", b"")
        store.delete("a/b/c")
        assert [listed.key for listed in store.list()] == ["a/d"]
        store.create("a/b/c", b"again")

    def test_deletes_empty_folders(self, store: Store) -> None:
        for key in ("v1/a/x/1", "v1/a/x/2", "v1/b/y"):
            store.create(key, b"")
        store.delete_folder("v1/a/x/")
        assert sorted(one.key for one in store.list("v1/a/")) == ["v1/a/x/1", "v1/a/x/2"]
        for key in ("v1/a/x/1", "v1/a/x/2"):
            store.delete(key)
        for folder in ("v1/a/x/", "v1/a/", "v1/"):
            store.delete_folder(folder)
        assert [one.key for one in store.list_level("v1/")] == ["v1/b/"]
        assert [one.key for one in store.list()] == ["v1/b/y"]

    @pytest.mark.parametrize(
        "key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", ".a", "a\nb"]
    )
    def test_keys_stay_inside(self, store: Store, key: str) -> None:
        calls: list[Callable[[str], object]] = [store.stat, store.read]
        if key != "a/":  # a folder
            calls.append(store.delete)
        for call in calls:
            with pytest.raises(UsageError, match="key"):
                call(key)
        with pytest.raises(UsageError):
            store.create(key, b"")
        with pytest.raises(UsageError):
            store.replace(key, b"", None)
