from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from envferry.base.json import to_json
from envferry.errors import UsageError
from envferry.index import MatchSpec, RegistryIndex, queries, registry_index
from envferry.index.match_spec import compare_conda
from envferry.index.queries import Filter
from envferry.index.rows import IndexedArtifact
from envferry.registry import Registry
from tests.support.artifacts import PLATFORM
from tests.support.published import NUMPY, Made, publish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass
class CountingStore:
    """A store that notes what is read from it; all else is passed on."""

    store: Any
    reads: list[str] = field(default_factory=list)

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Note and pass on."""
        self.reads.append(key)
        data: bytes = self.store.read(key, offset, length)
        return data

    def __getattr__(self, name: str) -> object:
        return getattr(self.store, name)


@dataclass
class Site:
    """A registry, its index and where both lie."""

    registry: Registry
    index: RegistryIndex
    home: Path

    def publish(self, made: Made, *tags: str) -> str:
        """Push an artifact; return its id."""
        return publish(self.registry, self.home / "packed", made, *tags).id

    def refreshed(self, *, fully: bool = False) -> list[str]:
        """Refresh; return which keys were read for it."""
        store: Any = self.registry.store
        store.reads.clear()
        self.index.refresh(fully=fully)
        return list(store.reads)

    def ids(self, **wanted: Any) -> list[str]:
        """Refresh and list."""
        self.index.refresh()
        return [entry.id for entry in self.index.ask(queries.entries(Filter(**wanted)))]

    def path(self, id_: str, file: str = "manifest.json", name: str = "demo") -> Path:
        """Where a file of an artifact is."""
        return Path(self.registry.url) / f"v1/envs/{name}/{PLATFORM}/{id_}/{file}"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    opened = Registry.open(str(tmp_path / "registry"))
    store: Any = CountingStore(opened.store)
    registry = Registry(store)
    Path(registry.url).mkdir()
    site = Site(registry, RegistryIndex.open(registry, tmp_path / "cache"), tmp_path)
    yield site
    site.index.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registries of two artifacts are large ones."""
    monkeypatch.setattr(registry_index, "SMALL", 0)


def test_lists_what_was_pushed(site: Site) -> None:
    started = time.time()
    first = site.publish(Made(version="1.0"), "stable")
    second = site.publish(Made(seed=2, version="2.0"), "latest", "nightly")
    other = site.publish(Made(name="other", seed=3))
    assert set(site.ids()) == {first, second, other}
    entries = {entry.id: entry for entry in site.index.ask(queries.entries())}
    entry = entries[second]
    assert (entry.name, entry.version, entry.tags) == ("demo", "2.0", ("latest", "nightly"))
    assert (entry.size, entry.packages, entry.attested, entry.problem) == (1000, 3, False, None)
    assert entry.published is not None
    assert int(started) <= entry.published.timestamp() <= time.time() + 1
    assert site.ids(name="other") == [other]
    assert site.ids(tag="stable") == [first]
    assert set(site.ids(is_tagged=True)) == {first, second}
    assert site.ids(platform="linux-aarch64") == []
    names = [(one.name, one.versions, one.tags) for one in site.index.ask(queries.environments())]
    # The tag that moved last comes first.
    assert names == [("demo", 2, ("nightly", "latest", "stable")), ("other", 1, ())]
    assert site.index.ask(queries.totals).artifacts == 3


@pytest.mark.usefixtures("quick")
def test_only_what_is_new_is_read(site: Site) -> None:
    first = site.publish(Made(), "latest")
    assert len(site.refreshed()) == 2
    assert site.refreshed() == []
    second = site.publish(Made(seed=2), "latest")
    assert sorted(site.refreshed()) == [
        f"v1/envs/demo/{PLATFORM}/{second}/manifest.json",
        f"v1/tags/demo/{PLATFORM}/latest",
    ]
    assert {entry.id: entry.tags for entry in site.index.ask(queries.entries())} == {
        first: (),
        second: ("latest",),
    }


@pytest.mark.usefixtures("quick")
def test_what_is_removed_disappears(site: Site) -> None:
    first, second = site.publish(Made(), "old"), site.publish(Made(seed=2, packages=(NUMPY,)))
    assert set(site.ids()) == {first, second}
    for path in site.path(first).parent.iterdir():
        path.unlink()
    site.path(first).parent.rmdir()
    (Path(site.registry.url) / f"v1/tags/demo/{PLATFORM}/old").unlink()
    assert site.ids() == [second]
    assert site.index.ask(queries.all_tags()) == ()
    assert site.index.ask(queries.find(MatchSpec.parse("torch"))) == ()
    assert site.index.ask(queries.totals).packages == 1


@pytest.mark.usefixtures("quick")
def test_a_folder_without_a_manifest_is_not_published(site: Site) -> None:
    """It may be a push under way: it is looked at again, and shown once the manifest is there."""
    first, second = site.publish(Made()), site.publish(Made(seed=2))
    manifest = site.path(second).read_bytes()
    site.path(second).unlink()
    assert site.ids() == [first]
    assert site.refreshed() == []
    site.path(second).write_bytes(manifest)
    assert set(site.ids()) == {first, second}


@pytest.mark.usefixtures("quick")
def test_half_a_removal_is_seen_by_a_full_listing(site: Site) -> None:
    first, second = site.publish(Made()), site.publish(Made(seed=2))
    assert set(site.ids()) == {first, second}
    site.path(second).unlink()
    assert set(site.ids()) == {first, second}
    site.index.refresh(fully=True)
    assert site.ids() == [first]


@pytest.mark.usefixtures("quick")
def test_a_signature_that_comes_later_is_seen(site: Site) -> None:
    """A push writes manifest, attestation and tag: a listing may fall between the first two."""
    first = site.publish(Made())
    site.ids()
    site.path(first, "attestation.json").write_bytes(b"{}")
    site.registry.move_tag("demo", PLATFORM, "latest", first)
    site.index.refresh()
    (entry,) = site.index.ask(queries.entries())
    assert entry.attested


@pytest.mark.parametrize(
    ("age", "pause", "is_due"), [(0, 0, True), (1000, 50, False), (1000, 101, True)]
)
def test_patience_with_what_is_not_right(age: float, pause: float, is_due: bool) -> None:
    known = IndexedArtifact("unfinished", False, "", first_seen=0, looked_at=age)
    assert known.is_due(age + pause) == is_due
    assert not IndexedArtifact("published", False, "", 0, age).is_due(age + pause)


HOSTILE: tuple[Callable[[dict[str, Any]], object], ...] = (
    lambda it: b"",
    lambda it: b"\xff\xfe",
    lambda it: b"[" * 1_000_000,
    lambda it: {**it, "schema": 99},
    lambda it: {**it, "name": "../../etc"},
    lambda it: {**it, "id": "0123456789ab"},
    lambda it: {**it, "packages": [{"name": "x", "version": "1", "kind": "pypi", "size": -1}]},
    lambda it: {**it, "packages": [{"name": "x", "version": "1", "kind": "pypi", "size": 2**70}]},
    lambda it: {**it, "archive": {**it["archive"], "size": 2**63}},
    lambda it: {**it, "packages": "none"},
)


@pytest.mark.parametrize("spoil", HOSTILE)
def test_a_damaged_manifest_is_shown_as_damaged(
    site: Site, spoil: Callable[[dict[str, Any]], object]
) -> None:
    good, bad = site.publish(Made()), site.publish(Made(seed=2))
    before = site.path(bad).read_bytes()
    spoiled = spoil(msgspec.json.decode(before))
    site.path(bad).write_bytes(spoiled if isinstance(spoiled, bytes) else to_json(spoiled))
    assert set(site.ids()) == {good, bad}
    problems = {entry.id: entry.problem for entry in site.index.ask(queries.entries())}
    assert problems[good] is None
    assert problems[bad]
    site.path(bad).write_bytes(before)
    site.index.refresh()
    assert site.index.ask(queries.totals).damaged == 0


@pytest.mark.parametrize(
    "data", [b"", b"{}", b'{"id": "../..", "counter": 1}', b"[" * 60_000, b"[" * 100_000]
)
def test_damaged_tags(site: Site, data: bytes) -> None:
    id_ = site.publish(Made(), "good", "bad")
    (Path(site.registry.url) / f"v1/tags/demo/{PLATFORM}/bad").write_bytes(data)
    site.index.refresh()
    tags = {tag.tag: tag for tag in site.index.ask(queries.all_tags())}
    assert (tags["good"].id, tags["good"].problem) == (id_, None)
    assert tags["bad"].id is None
    assert tags["bad"].problem


def test_foreign_files_are_passed_over(site: Site) -> None:
    id_ = site.publish(Made(), "stable")
    top = Path(site.registry.url) / "v1"
    for key in ("envs/README", "envs/demo/notes.txt", "envs/demo/linux-64/x/y", "tags/x", "z/a"):
        (top / key).parent.mkdir(parents=True, exist_ok=True)
        (top / key).write_bytes(b"")
    assert site.ids() == [id_]
    site.index.refresh(fully=True)
    assert site.ids() == [id_]


@pytest.mark.parametrize("content", [b"not a database" * 100, b"", None])
def test_a_damaged_or_foreign_index_is_made_anew(
    site: Site, tmp_path: Path, content: bytes | None
) -> None:
    id_ = site.publish(Made())
    site.ids()
    path = site.index.database.path
    assert path is not None
    site.index.close()
    if content is None:
        path.unlink()
        foreign = sqlite3.connect(path)
        foreign.execute("CREATE TABLE theirs (x)")
        foreign.commit()
        foreign.close()
    else:
        path.write_bytes(content)
    site.index = RegistryIndex.open(site.registry, tmp_path / "cache")
    assert site.ids() == [id_]


def test_an_index_that_is_damaged_while_it_is_open(site: Site) -> None:
    ids = {site.publish(Made(seed=seed)) for seed in range(8)}
    site.ids()
    path = site.index.database.path
    assert path is not None
    with path.open("r+b") as stream:
        stream.seek(4096)
        stream.write(b"\xaa" * 8192)
    site.index.database.connection.execute("PRAGMA shrink_memory")
    assert {entry.id for entry in site.index.ask(queries.entries())} == ids
    assert set(site.ids()) == ids


def test_without_a_place_to_write_the_index_is_in_memory(site: Site, tmp_path: Path) -> None:
    id_ = site.publish(Made())
    (tmp_path / "file").write_bytes(b"")
    site.index.close()
    site.index = RegistryIndex.open(site.registry, tmp_path / "file")
    assert site.index.database.path is None
    assert site.ids() == [id_]


def test_registries_have_indexes_of_their_own(site: Site, tmp_path: Path) -> None:
    site.publish(Made())
    site.ids()
    other = Registry.open(str(tmp_path / "other"))
    publish(other, tmp_path / "packed", Made(name="other", seed=7))
    with closing(RegistryIndex.open(other, tmp_path / "cache")) as other_index:
        other_index.refresh()
        assert [one.name for one in other_index.ask(queries.environments())] == ["other"]


def test_processes_at_once(site: Site, tmp_path: Path) -> None:
    ids = {site.publish(Made(seed=seed), "latest") for seed in range(12)}
    program = (
        "import sys\nfrom pathlib import Path\nfrom envferry.index import RegistryIndex, queries\n"
        "from envferry.registry import Registry\n"
        "index = RegistryIndex.open(Registry.open(sys.argv[1]), Path(sys.argv[2]))\n"
        "for _ in range(5):\n    index.refresh(fully=True)\n"
        "sys.stdout.write(' '.join(one.id for one in index.ask(queries.entries())))\n"
    )
    argv = [sys.executable, "-c", program, site.registry.url, str(tmp_path / "cache")]
    children = [
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for child in children:
        output, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors
        assert set(output.split()) == ids


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        ("torch", 1),
        ("torch>=2.8", 1),
        ("torch==2.8.*", 1),
        ("Torch == 2.8.0", 1),
        ("torch>2.8", 0),
        ("torch[opt]<3,>=2", 1),
        ("numpy<2", 2),
        ("numpy=1.26", 2),
        ("numpy 1.26.*", 2),
        ("numpy!=1.26.4", 0),
        ("numpy~=1.20", 2),
        ("openssl<1.1.1x", 1),
        ("openssl<1.1.1w", 0),
        ("openssl=1.1.1", 1),
        ("openssl=1.1", 1),
        ("openssl==1.1.1*", 1),
        ("openssl=1.1.10", 0),
        ("openssl!=1.1.*", 0),
        ("openssl=1.1.1w=h7*", 1),
        ("openssl=1.1.1w=h8*", 0),
        ("openssl==1.1.1w=h7*", 1),
        ("openssl 1.1.1w h7*", 1),
        ("openssl 1.1.* h7*", 1),
        ("numpy=1.26=*", 0),
        ("numpy==1.26=*", 0),
        ("numpy 1.26 *", 0),
        ("open*", 1),
        ("_*", 0),
        ("none", 0),
    ],
)
def test_finds_packages(site: Site, wanted: str, count: int) -> None:
    full, small = site.publish(Made(), "stable"), site.publish(Made(seed=2, packages=(NUMPY,)))
    site.ids()
    found = site.index.ask(queries.find(MatchSpec.parse(wanted)))
    assert len(found) == count
    assert {match.id for match in found} <= {full, small}
    if count == 1:
        assert (found[0].id, found[0].tags) == (full, ("stable",))


@pytest.mark.parametrize("text", ["", ">=2", "torch>=", "torch>=2.*", "a b c d", "torch>>2", "-"])
def test_what_names_no_package(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        MatchSpec.parse(text)
    assert "torch>=2.8" in caught.value.hint


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("0.4", "0.4.1.rc"),
        ("0.4.1.rc", "0.4.1"),
        ("0.5a1", "0.5b3"),
        ("0.5b3", "0.5"),
        ("0.9.6", "0.960923"),
        ("1.0", "1.1dev1"),
        ("1.1dev1", "1.1a1"),
        ("1.1.0", "1.1.post1"),
        ("1.1.post1", "1!0.1"),
        ("1.1.1u", "1.1.1w"),
        ("2023c", "2024a"),
        ("2.8.0+1", "2.8.0.1"),
    ],
)
def test_condas_order(older: str, newer: str) -> None:
    """The examples of conda's own documentation, and letters as OpenSSL and tzdata have them."""
    assert compare_conda(older, newer) < 0 < compare_conda(newer, older)
    assert compare_conda(older, older) == 0
