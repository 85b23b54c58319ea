"""The names of conda packages on Python indexes."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

NAMES_PATH = Path(__file__).with_name("pypi_names.json")


def pypi_name(conda_name: str) -> str:
    """Return the name that a conda package's python distribution has."""
    return _pypi_names().get(conda_name.lower(), conda_name)


def is_known_to_differ(conda_name: str) -> bool:
    """Whether the table has a conda package, so that its name on Python indexes is certain."""
    return conda_name.lower() in _pypi_names()


@cache
def _pypi_names() -> dict[str, str]:
    """Return the conda packages whose python distribution has another name, with that name."""
    entries = json.loads(NAMES_PATH.read_bytes())
    return {entry["conda_name"]: entry["pypi_name"] for entry in entries.values()}
