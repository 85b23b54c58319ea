"""Which hosts are this machine."""

from __future__ import annotations

import pytest

from envferry.base.loopback import is_loopback


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("127.1.2.3", True), ("[::1]", True), ("10.0.0.1", False), ("", False)],
)
def test_what_this_machine_is(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
