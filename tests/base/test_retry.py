"""How often, and after how long, something is tried again."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from envferry.base.retry import FailureCount, RetryPolicy, Transient, asked_seconds, persistently
from envferry.errors import StoreError

NOW = datetime(2026, 11, 28, 12, tzinfo=timezone.utc)
LAST = StoreError("no")


def pauses(policy: RetryPolicy, *failures: Transient, draw: float = 1.0) -> list[float | None]:
    tally = FailureCount(policy, lambda: draw)
    return [tally.pause_after(failure) for failure in failures]


def test_pauses_double_up_to_a_limit() -> None:
    policy = RetryPolicy(attempts=6, first_pause=1, longest_pause=5)
    assert pauses(policy, *[Transient(LAST)] * 6) == [1, 2, 4, 5, 5, None]
    assert pauses(policy, *[Transient(LAST)] * 3, draw=0.0) == [0.5, 1, 2]


def test_what_a_server_asks_for_is_given() -> None:
    policy = RetryPolicy(first_pause=1, longest_pause=5, patience=60)
    failures = [Transient(LAST, asked=seconds) for seconds in (0, 30, 60, 61)]
    assert pauses(policy, *failures) == [1, 30, 60, None]


def test_a_server_that_takes_no_connection_is_given_up_earlier() -> None:
    policy = RetryPolicy(attempts=9, unreachable_attempts=2, first_pause=0)
    unreachable = Transient(LAST, is_unreachable=True)
    assert pauses(policy, unreachable, Transient(LAST), unreachable) == [0, 0, None]


def test_what_was_achieved_meanwhile_counts() -> None:
    tally = FailureCount(RetryPolicy(attempts=2, first_pause=0))
    for _ in range(5):
        assert tally.pause_after(Transient(LAST)) == 0
        tally.forget()


def test_the_error_of_the_last_attempt_is_raised() -> None:
    waited: list[float] = []

    def attempt() -> str:
        if len(waited) < 2:
            raise Transient(LAST, asked=len(waited))
        return "done"

    assert persistently(attempt, RetryPolicy(attempts=3, first_pause=0), waited.append) == "done"
    waited = []
    with pytest.raises(StoreError, match="no"):
        persistently(attempt, RetryPolicy(attempts=2, first_pause=0), waited.append)
    assert waited == [0]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-3", None),
        ("0", 0),
        ("120", 120),
        ("Sat, 28 Nov 2026 12:00:30 GMT", 30),
        ("Sat, 28 Nov 2026 11:00:00 GMT", 0),
        ("Sat, 28 Nov 2026 12:00:30 -0000", 30),
        ("9" * 40, None),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert asked_seconds(header, NOW) == seconds


def test_a_date_counts_from_now() -> None:
    tomorrow = (datetime.now(timezone.utc) + timedelta(days=1)).strftime(
        "%a, %d %b %Y %H:%M:%S GMT"
    )
    assert 80_000 < (asked_seconds(tomorrow) or 0) <= 86_400
