"""Times as records have them."""

from __future__ import annotations

import pytest

from envferry.base.times import LONG_AGO, parse_time, read_time, rfc3339


def test_times_are_in_utc() -> None:
    assert rfc3339(parse_time("2026-11-29T13:00:00+01:00")) == "2026-11-29T12:00:00Z"
    assert rfc3339(parse_time("2026-11-29T12:00:00")) == "2026-11-29T12:00:00Z"


@pytest.mark.parametrize(
    "text",
    ["", "x", "2026-13-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-01:00"],
)
def test_what_is_no_time_is_before_all_others(text: str) -> None:
    assert read_time(text) is None
    assert parse_time(text) == LONG_AGO
