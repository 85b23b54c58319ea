"""Where archives are cut into layers."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envferry.archive.reader import Archive, FileSource
from envferry.errors import UsageError
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.layer_cuts import _partition, cut_points
from envferry.registry.push import push_artifact
from tests.support.packed import pack, random_bytes

if TYPE_CHECKING:
    from pathlib import Path


def price(weights: list[int], starts: list[int]) -> int:
    runs = pairwise([*starts, len(weights)])
    return sum((end - start) * sum(weights[start:end]) for start, end in runs)


def least_price(weights: list[int], count: int) -> int:
    """Try all partitions into at most `count` runs."""
    if count == 1 or len(weights) <= 1:
        return len(weights) * sum(weights)
    return min(
        least_price(weights[:cut], count - 1) + (len(weights) - cut) * sum(weights[cut:])
        for cut in range(len(weights) + 1)
    )


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=9), st.integers(1, 5))
@settings(deadline=None)
def test_no_other_cuts_make_updates_cheaper(weights: list[int], count: int) -> None:
    starts = _partition(weights, count)
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert len(starts) <= count
    assert price(weights, starts) == least_price(weights, count)


PACKAGES = {f"p{number:02d}": (40_000 if number % 5 else 900_000) for number in range(30)}


def index_of(directory: Path, changes: dict[str, int]) -> tuple[Archive, list[str]]:
    """Pack the packages, some in another size; return the archive, and what starts each layer."""
    contents = {
        name: random_bytes(number + changes.get(name, 0), size + changes.get(name, 0))
        for number, (name, size) in enumerate(PACKAGES.items())
    }
    artifact = pack(directory, contents)
    with FileSource(artifact.archive_path) as source:
        archive = Archive(source)
    cuts = cut_points(archive.index, 8)
    starts = {archive.offsets[one.first_frame]: one.name for one in archive.index.packages}
    return archive, [starts.get(cut, "the end") for cut in cuts]


def test_cuts_are_where_packages_begin_and_stay_there(tmp_path: Path) -> None:
    """Of eight layers the first has no package and the last one the index."""
    _, before = index_of(tmp_path / "a", {})
    assert len(before) == 7
    assert before[0] == "p00"
    assert before[-1] == "the end"
    _, after = index_of(tmp_path / "b", {"p03": 500, "p10": 7000})
    assert after == before


@pytest.mark.parametrize("count", [2, 3, 100])
def test_as_many_layers_as_there_can_be(tmp_path: Path, count: int) -> None:
    archive, _ = index_of(tmp_path, {})
    expected = {2: 2, 3: 2, 100: len(PACKAGES) + 1}
    assert len(cut_points(archive.index, count)) == expected[count]


def test_a_store_that_keeps_archives_whole_has_no_layers(tmp_path: Path) -> None:
    from msgspec.structs import replace

    registry = replace(Registry.open(str(tmp_path / "registry")), layers=4)
    artifact = pack(tmp_path / "packed", {"a": b"x"})
    with pytest.raises(UsageError, match="--layers is for oci://"):
        push_artifact(artifact, registry=registry, tags=(), progress=Silent())
