"""What all tests share."""

from __future__ import annotations

import os
import signal

import pytest

# A shell's background jobs ignore it, and so would all that tests start, and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def require(name: str, available: object) -> None:
    """Skip a test whose program is missing, or fail it when ENVFERRY_REQUIRE names the program."""
    if available:
        return
    if name in os.environ.get("ENVFERRY_REQUIRE", "").split(","):
        pytest.fail(f"{name} is required here and is missing")
    pytest.skip(f"{name} is missing")
