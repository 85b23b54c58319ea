"""Commands load what they need when they need it: hosts start them often."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOADED = """
import importlib, sys
importlib.import_module(sys.argv[1])
print(*sorted(set(sys.argv[2:]) & set(sys.modules)))
"""
LATE = (
    "envferry.api",
    "envferry.index.database",
    "envferry.lock.stage",
    "envferry.pack.stage",
    "sqlite3",
)


@pytest.mark.parametrize("module", ["build", "follow", "host", "installed", "release", "upkeep"])
def test_a_command_is_described_without_what_it_runs(module: str) -> None:
    argv = [sys.executable, "-c", LOADED, f"envferry.cli.{module}", *LATE]
    finished = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert finished.stdout == "\n"
