"""The names of conda packages on Python indexes."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

NAMES_PATH = Path(__file__).with_name("pypi_names.json")


def pypi_name(conda_name: str) -> str:
    """Return the name that a conda package's python distribution has."""
    return pypi_names(conda_name)[0]


def pypi_names(conda_name: str) -> tuple[str, ...]:
    """Return every name that a conda package's python distribution has, its own first.

    A project may have several (psycopg2 and psycopg2-binary), which write the same files.
    """
    # The table has only packages whose names differ: others are taken to be called alike.
    return _pypi_names().get(conda_name.lower(), (conda_name,))


def is_known_to_differ(conda_name: str) -> bool:
    """Whether the table has a conda package, so that its name on Python indexes is certain."""
    return conda_name.lower() in _pypi_names()


@cache
def _pypi_names() -> dict[str, tuple[str, ...]]:
    """Return the conda packages whose python distribution has another name, with its names."""
    return {conda: tuple(names) for conda, names in json.loads(NAMES_PATH.read_bytes()).items()}
