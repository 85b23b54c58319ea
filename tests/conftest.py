"""What all tests share."""

from __future__ import annotations

import os

import pytest


def require(name: str, available: object) -> None:
    """Skip a test whose program is missing, or fail it when ENVFERRY_REQUIRE names the program."""
    if available:
        return
    if name in os.environ.get("ENVFERRY_REQUIRE", "").split(","):
        pytest.fail(f"{name} is required here and is missing")
    pytest.skip(f"{name} is missing")
