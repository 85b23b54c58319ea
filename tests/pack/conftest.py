"""Environments to pack."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.environments import conda_record, pip_record
from tests.support.packed_twice import PackedTwice, add_large_packages

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a small conda environment with a python and a pip package."""
    tree = tmp_path / "miniconda/envs/demo"
    python = b"\x7fELF\0" + str(tree).encode() + b"/lib\0" + bytes(300)
    paths = [{"_path": "bin/python", "prefix_placeholder": "x" * 255, "file_mode": "binary"}]
    files = {"bin/python": python, "bin/tool": b"#!/bin/sh\necho it runs\n"}
    conda_record(tree, "python", files, version="3.11.7", paths_data={"paths": paths})
    (tree / "conda-meta/python-1.0-h1_0.json").rename(tree / "conda-meta/python-3.11.7-h1_0.json")
    (tree / "bin/tool").chmod(0o555)
    pip_record(tree, "wheel", {"wheel/__init__.py": b"x = 1\n"})
    (tree / "conda-meta/history").write_text("")
    return tree


@pytest.fixture(params=[True, False], ids=["all-read", "changed-read"])
def two(tree: Path, tmp_path: Path, request: pytest.FixtureRequest) -> PackedTwice:
    """Return an environment to pack twice, by reading all of it and by reading what has changed."""
    add_large_packages(tree)
    return PackedTwice(tree, tmp_path, reads_all=request.param)
