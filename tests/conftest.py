"""What all tests share."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from pathlib import Path

# A shell's background jobs ignore it, and so would all that tests start, and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is slow, not wrong.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def require(name: str, available: object) -> None:
    """Skip a test whose program is missing, or fail it when ENVFERRY_REQUIRE names the program."""
    if available:
        return
    if name in os.environ.get("ENVFERRY_REQUIRE", "").split(","):
        pytest.fail(f"{name} is required here and is missing")
    pytest.skip(f"{name} is missing")


@pytest.fixture
def envs(tmp_path: Path) -> Path:
    """Return an empty envs directory."""
    path = tmp_path / "envs"
    path.mkdir()
    return path
