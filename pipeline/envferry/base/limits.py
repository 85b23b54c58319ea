"""How much a server may send, and how slowly, before any of it has been verified.

All clients here (http.client, urllib3, botocore) read answers through the response class of
http.client, so the limits are set there: for status line, headers, chunk sizes and body alike.
"""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING, Any, cast

import msgspec

from envferry.errors import IntegrityError, StoreError

if TYPE_CHECKING:
    import http.client
    import socket
    from collections.abc import Iterator, Mapping

KIB, MIB = 1 << 10, 1 << 20
VALUE_BYTES: Mapping[str, int] = {
    "manifest.json": 16 * MIB,
    "attestation.json": 16 * MIB,
    "manifest.json.sigstore.json": 1 * MIB,
    "conda-lock.yml": 64 * MIB,
    "sbom.cdx.json": 64 * MIB,
    "delta.json": 256 * MIB,
    "split.json": 64 * KIB,
}
"""The most that a value of a registry has, by the last part of its key: ten times and more what
an environment of a thousand packages needs."""
SUFFIX_BYTES: Mapping[str, int] = {".xxh128": 4 * KIB, ".parts.json": 64 * MIB}
OTHER_VALUE_BYTES = 256 * MIB
TAG_BYTES = 64 * KIB
REPORT_BYTES = 256 * KIB
"""Of what a host reports: a thousand installations."""
HEADER_BYTES = MIB
"""Of all that comes before a body."""
TEXT_BYTES = 32 * MIB
"""Of an answer that is a listing, an error or a page: a listing has a thousand keys at a time."""
ANSWER_BYTES = 512 * MIB
"""Of any answer of a registry: archives are read in pieces of a few MiB."""
LISTED_KEYS = 10_000_000
PIECE_BYTES = 1 * MIB
LEAST_BYTES_PER_SECOND = 1024
WINDOW_SECONDS = 30
"""A server may be slower for this long."""


class ResponseTooLarge(OSError):
    """A server sends more than what was asked for can have."""


class ResponseTooSlow(TimeoutError):
    """A server sends next to nothing, and never stops: a timeout between bytes does not notice."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a server may do."""

    least_speed: int = LEAST_BYTES_PER_SECOND
    """Bytes per second over WINDOW_SECONDS of waiting; 0 for any."""
    window_seconds: float = WINDOW_SECONDS
    answer_bytes: int = ANSWER_BYTES
    text_bytes: int = TEXT_BYTES


USUAL_LIMITS = Limits()


def most_bytes(key: str) -> int:
    """Return how long a value may be that is read without knowing its length."""
    if key.startswith("v1/tags/"):
        return TAG_BYTES
    if key.startswith("v1/hosts/"):
        return REPORT_BYTES
    name = key.rpartition("/")[2]
    by_suffix = (most for suffix, most in SUFFIX_BYTES.items() if name.endswith(suffix))
    return VALUE_BYTES.get(name) or next(by_suffix, OTHER_VALUE_BYTES)


def is_always_small(key: str) -> bool:
    """Whether no value of this key is ever stored in parts: every file system takes it whole."""
    return most_bytes(key) <= MIB


def require_sane(size: int, key: str, where: str) -> None:
    """Raise IntegrityError when a value is longer than one of its kind can be.

    As for any other damage: one bloated manifest must not hide all others from `ls`.
    """
    if size > (most := most_bytes(key)):
        message = f"{key} in {where} has {size:,} bytes or more, at most {most:,} are expected"
        raise IntegrityError(message, hint="nothing of it was used; copy or push it again")


def limited(keys: Iterator[Any], where: str, most: int = LISTED_KEYS) -> Iterator[Any]:
    """Yield what a server lists; raise StoreError when it never comes to an end."""
    for number, key in enumerate(keys):
        if number >= most:
            message = f"{where} lists more than {most:,} values"
            raise StoreError(message, hint="ask the administrator of that server")
        yield key


def broken_limit(error: BaseException) -> str | None:
    """Return what was wrong with a server, if that is what an error was raised from."""
    found = (one for one in _causes(error) if isinstance(one, (ResponseTooLarge, ResponseTooSlow)))
    return next(map(str, found), None)


def has_cause(error: BaseException, kind: type[BaseException]) -> bool:
    """Whether an error was raised from one of a kind: libraries wrap what they pass on."""
    return any(isinstance(one, kind) for one in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    while one is not None:
        yield one
        reason = getattr(one, "reason", None)
        inner = reason if isinstance(reason, BaseException) else None
        # urllib3 keeps the cause as `reason`, without chaining it.
        one = one.__cause__ or one.__context__ or inner


def limited_response(limits: Limits) -> type[http.client.HTTPResponse]:
    """Return a class of responses with limits."""
    # TLS and the parser of e-mail come with it, which most commands on a host never need.
    import http.client

    class LimitedResponse(http.client.HTTPResponse):
        """Counts what it reads from its socket."""

        def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  (http.client's)
            super().__init__(sock, *arguments, **options)
            # http.client has buffered its socket already; nothing was read yet, so nothing is lost.
            raw = self.fp.detach()
            # Writing may take a server long, and what it sends meanwhile are blanks.
            is_read = options.get("method") in (None, "GET", "HEAD")
            self.counted = _CountedReader(raw, limits, is_read)
            self.fp = io.BufferedReader(self.counted)

        def begin(self) -> None:
            # http.client has a limit for the headers of one answer, but ignores `100 Continue`.
            self.counted.most = min(HEADER_BYTES, limits.answer_bytes)
            super().begin()
            kind = str(self.headers.get("Content-Type", "")).lower()
            is_text = any(word in kind for word in ("xml", "html", "text/"))
            most = limits.text_bytes if is_text else limits.answer_bytes
            self.counted.most = min(most, limits.answer_bytes)

    return LimitedResponse


def limited_connection(connection: type[Any], limits: Limits) -> type[Any]:
    """Return a class of connections (of http.client or of what builds on it) with limits."""
    # A class and not an instance: urllib3 and botocore make their connections themselves.
    return type(connection.__name__, (connection,), {"response_class": limited_response(limits)})


def limited_pools(pools: Mapping[str, type[Any]], limits: Limits) -> dict[str, type[Any]]:
    """Return urllib3's classes of connection pools, by scheme, with limits."""
    return {
        scheme: type(
            pool.__name__,
            (pool,),
            {"ConnectionCls": limited_connection(cast("Any", pool).ConnectionCls, limits)},
        )
        for scheme, pool in pools.items()
    }


class _CountedReader(io.RawIOBase):
    """Reads a socket; raises ResponseTooLarge or ResponseTooSlow.

    Only the time counts that is spent waiting for the server, and that for the first byte does not:
    the socket has a timeout for it.
    """

    def __init__(self, raw: io.RawIOBase, limits: Limits, is_timed: bool) -> None:
        super().__init__()
        self.raw, self.limits = raw, limits
        self.is_timed = is_timed and limits.least_speed > 0
        self.most, self.total = limits.answer_bytes, 0
        self.window_bytes, self.waited = 0, 0.0

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.raw.fileno()

    def close(self) -> None:
        if not self.closed:
            self.raw.close()
        super().close()

    def readinto(self, buffer: Any) -> int | None:  # noqa: ANN401  (a writable buffer)
        started = time.monotonic()
        count = cast("Any", self.raw).readinto(buffer)
        if not count:
            return cast("int | None", count)
        # Not the first read: a server may think for long, and the socket's timeout bounds that.
        if self.total:
            self.waited += time.monotonic() - started
        self.total += count
        self.window_bytes += count
        if self.total > self.most:
            msg = f"it sent more than {self.most:,} bytes"
            raise ResponseTooLarge(msg)
        if self.is_timed and self.waited >= self.limits.window_seconds:
            self._check_speed()
        return cast("int", count)

    def _check_speed(self) -> None:
        if self.window_bytes < self.waited * self.limits.least_speed:
            message = (
                f"it sent {self.window_bytes} bytes in {self.waited:.0f} s, expected "
                f"{self.limits.least_speed} per second at least (ENVFERRY_MIN_SPEED)"
            )
            raise ResponseTooSlow(message)
        self.window_bytes, self.waited = 0, 0.0
