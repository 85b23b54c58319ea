"""Which python distributions conda packages bring: none is locked twice under two names."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from envferry.lock.pip.pip_inputs import python_distributions
from envferry.lock.pypi_names import NAMES_PATH, pypi_name, pypi_names
from envferry.models import LockedPackage

REFRESH = Path(__file__).parents[2] / "requirements" / "pypi_names.py"


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
        ("torchtriton", "triton"),
        ("cccl-python", "cuda-cccl"),
        ("filesystem-spec", "fsspec"),
    ],
)
def test_names(conda: str, pypi: str) -> None:
    assert canonicalize_name(pypi_name(conda)) == pypi
    assert python_distributions([conda_package(conda)]) == ({pypi: "1.0"}, set())


def test_a_project_of_several_names_is_all_of_them() -> None:
    provided, _ = python_distributions([conda_package("psycopg2", "2.9.9")])
    assert provided == {"psycopg2": "2.9.9", "psycopg2-binary": "2.9.9"}
    provided, _ = python_distributions([conda_package("py-opencv", "4.10.0")])
    assert provided["opencv-contrib-python-headless"] == "4.10.0"


@pytest.mark.parametrize("order", [1, -1])
def test_the_package_of_the_very_name_knows_the_version(order: int) -> None:
    chosen = [conda_package("mne", "1.9"), conda_package("mne-base", "1.8")]
    assert python_distributions(chosen[::order]) == ({"mne": "1.9"}, set())


def test_a_copy_inside_another_package_is_not_the_project() -> None:
    provided, unversioned = python_distributions([conda_package("flit-core", "3.9")])
    assert (provided, unversioned) == ({"flit-core": "3.9"}, set())


def test_versions_that_only_conda_reads_leave_the_name() -> None:
    assert python_distributions([conda_package("pytorch", "2.1_cu")]) == ({}, {"torch"})


def test_the_table_has_canonical_names_that_differ() -> None:
    table = json.loads(NAMES_PATH.read_bytes())
    assert len(table) > 800
    assert [*table] == sorted(table)
    for conda, names in table.items():
        assert conda == conda.lower()
        assert names == [canonicalize_name(name) for name in names]
        assert names != [canonicalize_name(conda)]
        assert pypi_names(conda) == tuple(names)


def test_refreshing_takes_what_is_no_copy() -> None:
    mapping = {
        "PyTorch": "torch",
        "same_name": "same-name",
        "nothing": None,
        "tomli": "tomli",
        "flit-core": "tomli",
        "fsspec": "fsspec",
        "filesystem-spec": "fsspec",
        "cuda-cccl": None,
        "cccl-python": "cuda-cccl",
        "mne": "mne",
        "mne-base": ["MNE"],
    }
    found = runpy.run_path(str(REFRESH))["differing_names"](mapping, ["filesystem-spec"])
    assert found == {
        "pytorch": ["torch"],
        "filesystem-spec": ["fsspec"],
        "cccl-python": ["cuda-cccl"],
        "mne-base": ["mne"],
    }


def test_the_index_of_a_channel_knows_better() -> None:
    package = conda_package(
        "own-tools",
        "2026.1",
        purls=["pkg:pypi/First.Part@1.5?platform=x", "pkg:pypi/second", "pkg:conda/own-tools"],
    )
    found, unversioned = python_distributions([package])
    assert found == {"first-part": "1.5", "second": "2026.1"}
    assert not unversioned
