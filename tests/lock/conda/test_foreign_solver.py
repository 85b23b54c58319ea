"""A solver of the user's own says which version it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from envferry.errors import UsageError
from envferry.lock.conda.foreign_solver import solver_version

if TYPE_CHECKING:
    from pathlib import Path


def solver_that_says(directory: Path, words: str) -> Path:
    """Write a program that answers `--version`."""
    path = directory / "solver"
    path.write_text(f"#!/bin/sh\n{words}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("words", "version"),
    [
        ("echo conda 24.11.0", "24.11.0"),
        ("echo conda 4.8.2", "4.8.2"),
        ("echo 1.5.8", "1.5.8"),
        ("echo mamba 1.5.8; echo conda 23.11.0", "23.11.0"),
        ("true", "of unknown version"),
    ],
)
def test_versions(tmp_path: Path, words: str, version: str) -> None:
    assert solver_version(solver_that_says(tmp_path, words)) == version


@pytest.mark.parametrize("words", ["echo conda 4.3.16 >&2", "echo conda 4.8.1"])
def test_a_conda_that_is_too_old(tmp_path: Path, words: str) -> None:
    with pytest.raises(UsageError, match=r"is conda 4\.\d\.\d+, .*expected 4\.8\.2 or newer"):
        solver_version(solver_that_says(tmp_path, words))
