"""How often something is tried again, and after how long: one policy for servers of every kind."""

from __future__ import annotations

import random
import re
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

BUSY_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that another attempt may not meet: RFC 9110, 15.6; RFC 6585, 4; RFC 8470, 5.2."""


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Pauses double from one failure to the next, each shortened by chance: clients spread out."""

    attempts: int = 6
    unreachable_attempts: int = 3
    """How often a server is tried that takes no connection at all."""
    first_pause: float = 0.3
    """Seconds."""
    longest_pause: float = 5
    """Seconds; a server that asks for more gets it, up to `patience`."""
    patience: float = 120
    """Seconds that a server may ask to be left alone; one that asks for more is given up."""


POLICY = RetryPolicy()
"""For whatever asks a server for something."""
RACES = RetryPolicy(attempts=24, first_pause=0.02, longest_pause=1)
"""For what several writers change at once: in each round, one of them succeeds."""


class Transient(Exception):
    """What an attempt raises when another one may succeed; `error` is raised when none is left."""

    def __init__(
        self, error: Exception, *, asked: float | None = None, is_unreachable: bool = False
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.asked = asked
        """Seconds that the server asks to be left alone."""
        self.is_unreachable = is_unreachable


class FailureCount:
    """The failures of one thing that is attempted."""

    def __init__(
        self, policy: RetryPolicy = POLICY, draw: Callable[[], float] = random.random
    ) -> None:
        self.policy = policy
        self.draw = draw
        self.failures = 0
        self.unreachable = 0

    def forget(self) -> None:
        """Start again: something was achieved meanwhile."""
        self.failures = self.unreachable = 0

    def pause_after(self, failure: Transient) -> float | None:
        """Return how many seconds to wait before another attempt; None when there is to be none."""
        policy = self.policy
        self.failures += 1
        self.unreachable += failure.is_unreachable
        is_last = self.failures >= policy.attempts
        if is_last or self.unreachable >= policy.unreachable_attempts:
            return None
        asked = failure.asked or 0.0
        if asked > policy.patience:
            return None
        usual = min(policy.longest_pause, policy.first_pause * 2 ** (self.failures - 1))
        shortened: float = usual * (0.5 + self.draw() / 2)
        # What a server asks for is a minimum (RFC 9110, 10.2.3), so chance does not shorten it.
        return max(asked, shortened)


def persistently(
    attempt: Callable[[], T],
    policy: RetryPolicy = POLICY,
    wait: Callable[[float], object] = time.sleep,
) -> T:
    """Attempt something again while it raises Transient and the policy allows another attempt."""
    tally = FailureCount(policy)
    while True:
        try:
            return attempt()
        except Transient as failure:
            pause = tally.pause_after(failure)
            if pause is None:
                # The library's exception is the cause; `failure` only asked for another attempt.
                raise failure.error from (failure.error.__cause__ or failure.__cause__)
        # Outside the handler: an interrupt while waiting must not carry the failure as its
        # context.
        wait(pause)


def asked_seconds(header: str | None, now: datetime | None = None) -> float | None:
    """Return how long a `Retry-After` header asks to wait: seconds or a date (RFC 9110, 10.2.3).

    None without such a header, or when it is not valid.
    """
    from email.utils import parsedate_to_datetime

    text = (header or "").strip()
    if re.fullmatch(r"\d{1,9}", text, re.ASCII):
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    # asctime's form, which HTTP still allows (RFC 9110, 5.6.7), has no zone and means UTC.
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return max(0.0, (moment - (now or datetime.now(timezone.utc))).total_seconds())


def waiting_words(asked: float | None) -> str:
    """Say that a server asks to wait, for the message of an error; empty when it does not."""
    return f" and asks to wait {asked:.0f} s" if asked else ""
