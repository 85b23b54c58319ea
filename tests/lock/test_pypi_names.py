"""Which python distributions conda packages bring: none is locked twice under two names."""

from __future__ import annotations

import json
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from envferry.lock.pip_inputs import python_distributions
from envferry.lock.pypi_names import NAMES_PATH, pypi_name
from envferry.models import LockedPackage


def conda_package(name: str, version: str = "1.0", **record: Any) -> LockedPackage:
    return LockedPackage(
        manager="conda",
        name=name,
        version=version,
        platform="linux-64",
        url=f"https://c.example/linux-64/{name}-{version}-0.conda",
        md5="0" * 32,
        dependencies={"python": ""},
        record=record,
    )


@pytest.mark.parametrize(
    ("conda", "pypi"),
    [
        ("pytorch", "torch"),
        ("airflow", "apache-airflow"),
        ("python-blosc2", "blosc2"),
        ("cython-blis", "blis"),
        ("boruta_py", "boruta"),
        ("msg-extractor", "extract-msg"),
        ("numpy", "numpy"),
    ],
)
def test_names(conda: str, pypi: str) -> None:
    assert canonicalize_name(pypi_name(conda)) == pypi
    assert python_distributions([conda_package(conda)]) == ({pypi: "1.0"}, set())


def test_the_table_says_each_name_once() -> None:
    entries = json.loads(NAMES_PATH.read_bytes())
    assert all(entry["pypi_name"] == key for key, entry in entries.items())
    conda = [entry["conda_name"] for entry in entries.values()]
    assert len(conda) == len({*conda})
    assert [*entries] == sorted(entries)


def test_the_index_of_a_channel_knows_better() -> None:
    package = conda_package(
        "own-tools",
        "2026.1",
        purls=["pkg:pypi/First.Part@1.5?platform=x", "pkg:pypi/second", "pkg:conda/own-tools"],
    )
    found, unversioned = python_distributions([package])
    assert found == {"first-part": "1.5", "second": "2026.1"}
    assert not unversioned
