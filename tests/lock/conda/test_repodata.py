"""Indexes of channels: of any size and form, the records of a few packages come out of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from envferry.build.downloads import DownloadCache
from envferry.errors import SpecError, StoreError
from envferry.lock.conda import repodata_server, repodata_shards, repodata_text
from envferry.lock.conda.repodata import channel_urls, extract, needed_name, reachable
from envferry.lock.conda.repodata_server import RepodataServer
from envferry.lock.conda.repodata_shards import ShardedIndex
from envferry.lock.conda.repodata_text import RepodataFile, name_of
from tests.support.channel_indexes import FORMS, indexes
from tests.support.repodata_channels import LINUX, record, repodata, write_channel

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = st.sampled_from(['"},"', '"packages": {', '}, "x-1-0.conda": {', "plain", "größe", "\\"])
EXTRAS = st.fixed_dictionaries(
    {},
    optional={
        "license": TEXTS,
        "track_features": st.sampled_from(["", "mkl"]),
        "timestamp": st.integers(0, 2**50),
        "nested": st.dictionaries(TEXTS, st.dictionaries(TEXTS, st.integers()), max_size=2),
    },
)
RECORDS = st.lists(
    st.tuples(
        st.sampled_from(["a", "a-b", "numpy", "python_abi", "zlib"]),
        st.integers(0, 30),
        st.sampled_from([".conda", ".tar.bz2"]),
        EXTRAS,
    ),
    max_size=40,
)


def names_in(home: Path, channels: list[Path], *names: str) -> list[str]:
    """Return the files that are extracted for some packages, in order of priority."""
    folder = home / "extracts"
    folder.mkdir(exist_ok=True)
    tiers = extract(indexes(home), [str(item) for item in channels], LINUX, names, folder)
    found: list[str] = []
    for item in (item for tier in tiers for item in tier):
        with open(item.path, "rb") as stream:  # noqa: PTH123
            content = json.load(stream)
        found += [*content["packages"], *content["packages.conda"]]
    return found


@settings(deadline=None, max_examples=80)
@given(
    items=RECORDS,
    piece=st.sampled_from([64, 300, 1500, 1 << 18]),
    indent=st.sampled_from([None, 0, 2]),
    turned=st.booleans(),
    wanted=st.sets(st.sampled_from(["a", "a-b", "numpy", "python_abi", "zlib", "absent"])),
)
def test_records_are_those_that_a_parser_of_json_finds(
    tmp_path_factory: pytest.TempPathFactory,
    items: list[tuple[str, int, str, dict[str, Any]]],
    piece: int,
    indent: int | None,
    turned: bool,
    wanted: set[str],
) -> None:
    records = [
        record(name, f"{number}.0", ending=ending, **more) for name, number, ending, more in items
    ]
    content = repodata(records, removed=["a-0-0.conda"])
    if turned:
        content = dict(reversed(content.items()))
    path = tmp_path_factory.mktemp("index") / "repodata.json"
    path.write_text(json.dumps(content, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repodata_text, "PIECE_BYTES", piece)
        file = RepodataFile.scan(path)
        found = {item.file_name: json.loads(item.text) for item in file.records(wanted)}
        assert file.info() == content["info"]
    whole = content["packages"] | content["packages.conda"]
    assert found == {key: value for key, value in whole.items() if value["name"] in wanted}


@pytest.mark.parametrize("data", [b"", b"<html>login</html>", b'{"packages": {"a-1-0.conda": {"na'])
def test_what_is_no_index_is_named(tmp_path: Path, data: bytes) -> None:
    folder = write_channel(tmp_path / "channel")
    (folder / LINUX / "repodata.json").write_bytes(data)
    with pytest.raises(StoreError, match=r"linux-64: failed to parse repodata\.json"):
        names_in(tmp_path, [folder], "a")


@pytest.mark.parametrize("form", FORMS)
def test_what_is_needed_comes_along_and_nothing_else(tmp_path: Path, form: str) -> None:
    folder = write_channel(
        tmp_path / "channel",
        record(
            "app", "1", depends=["lib >=2 *_cp311", "python[version='>=3.9']", "__glibc >=2.17"]
        ),
        record("lib", "2", depends=["app"], ending=".tar.bz2"),
        record("python", "3.11", depends=["defaults::deep"]),
        record("deep", "1", subdir="noarch"),
        record("other", "1", depends=["app"]),
        form=form,
    )
    assert sorted(names_in(tmp_path, [folder], "app")) == [
        *("app-1-0.conda", "deep-1-0.conda", "lib-2-0.tar.bz2", "python-3.11-0.conda"),
    ]


def test_only_the_shards_that_are_needed_are_read(tmp_path: Path) -> None:
    folder = write_channel(tmp_path / "channel", record("a", "1"), record("b", "1"), form="shards")
    server = RepodataServer(tmp_path / "cache", DownloadCache(tmp_path / "downloads"))
    asked: list[str] = []

    def fetch(url: str, digest: str) -> bytes:
        asked.append(digest)
        return server.shard(url, digest)

    listed = folder / LINUX / "repodata_shards.msgpack.zst"
    index = ShardedIndex.parse(listed.read_bytes(), listed.as_uri(), fetch)
    assert [item.file_name for item in index.records({"a", "absent"})] == ["a-1-0.conda"]
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("content", "fault"),
    [(b"another", "does not match its checksum"), (None, "does not exist, though its channel")],
)
def test_a_shard_of_a_folder_is_the_one_that_is_listed(
    tmp_path: Path, content: bytes | None, fault: str
) -> None:
    folder = write_channel(tmp_path / "channel", record("a", "1"), form="shards")
    (shard,) = (path for path in (folder / LINUX).iterdir() if len(path.name) > 64)
    shard.unlink()
    if content:
        shard.write_bytes(content)
    with pytest.raises(StoreError, match=fault):
        names_in(tmp_path, [folder], "a")


def test_an_index_of_several_frames(tmp_path: Path) -> None:
    """Parallel compressors write a frame for each piece of a file."""
    packed = "repodata.json.zst"
    folder = write_channel(tmp_path / "channel", record("a", "1"), form=packed)
    path = folder / LINUX / packed
    content = zstandard.ZstdDecompressor().decompress(path.read_bytes())
    pieces = content[:50], content[50:]
    path.write_bytes(b"".join(zstandard.ZstdCompressor().compress(piece) for piece in pieces))
    assert names_in(tmp_path, [folder], "a") == ["a-1-0.conda"]


@pytest.mark.parametrize("form", FORMS[1:])
def test_an_index_that_unpacks_to_too_much(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repodata_server, "MAX_INDEX_BYTES", 1 << 20)
    monkeypatch.setattr(repodata_shards, "MAX_BYTES", 1 << 20)
    large = record("a", "1", license="x" * (2 << 20))
    folder = write_channel(tmp_path / "channel", large, form=form)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 10_000
    with pytest.raises(StoreError, match=r"unpacks to more than 1\.05 MB"):
        names_in(tmp_path, [folder], "a")


def test_an_index_that_nests_too_deeply(tmp_path: Path) -> None:
    folder = write_channel(tmp_path / "channel", record("a", "1"))
    deep = '"nested": ' + "[" * 100_000 + "]" * 100_000 + ', "name"'
    path = folder / LINUX / "repodata.json"
    path.write_text(path.read_text().replace('"name"', deep))
    with pytest.raises(StoreError, match="failed to parse"):
        names_in(tmp_path, [folder], "a")


def test_packages_may_lie_elsewhere(tmp_path: Path) -> None:
    """CEP 15: `base_url`, from the index's own place or in full."""
    for number, (base, place) in enumerate(
        (("https://mirror.example/x/", "https://mirror.example/x/"), ("../files/", None))
    ):
        folder = write_channel(tmp_path / str(number), record("a", "1"), info={"base_url": base})
        target = tmp_path / f"extract{number}"
        target.mkdir()
        ((linux, _),) = extract(indexes(tmp_path), [str(folder)], LINUX, ["a"], target)
        with open(linux.path, "rb") as stream:  # noqa: PTH123
            info = json.load(stream)["info"]
        assert info["base_url"] == (place or f"{folder.as_uri()}/files/")


def test_a_channel_without_an_index(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="has no index"):
        names_in(tmp_path, [tmp_path / "nothere"], "a")


def test_places_of_channels() -> None:
    assert channel_urls("conda-forge") == ("https://conda.anaconda.org/conda-forge/",)
    assert channel_urls("https://u:p@h.example/c") == ("https://u:p@h.example/c/",)
    assert channel_urls("defaults")[1] == "https://conda.anaconda.org/r/"
    with pytest.raises(SpecError, match=r"one of the channels is not valid: htps://h\.example/c"):
        channel_urls("htps://h.example/c")


@pytest.mark.parametrize(
    ("need", "name"),
    [
        ("numpy >=1.2,<3 *_0", "numpy"),
        ("numpy[version='>=1']", "numpy"),
        ("conda-forge::NumPy=1", "numpy"),
        ("ruamel.yaml==0.18", "ruamel.yaml"),
        ("__cuda >=12", ""),
    ],
)
def test_names_of_needs(need: str, name: str) -> None:
    assert needed_name(need) == name


def test_names_of_files() -> None:
    assert name_of("a-b-c-1.0-h0_0.tar.bz2") == "a-b-c"
    assert name_of("README") == ""


def test_a_record_that_is_damaged_is_named(tmp_path: Path) -> None:
    folder = write_channel(tmp_path / "c", {**record("a", "1"), "depends": None})
    url = folder.as_uri()
    index = indexes(tmp_path).index(f"{url}/{LINUX}/")
    assert index is not None
    with pytest.raises(StoreError, match=r"failed to parse repodata.json.*depends"):
        reachable({(f"{url}/", LINUX): index}, ["a"])
