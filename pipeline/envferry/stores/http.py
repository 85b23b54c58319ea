"""A registry behind a web server: read-only, by range requests."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timezone
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import quote, urlsplit

import urllib3

from envferry.base.connections import Connections, was_never_reached, wrong_time_words
from envferry.base.limits import (
    USUAL_LIMITS,
    Limits,
    ResponseTooLarge,
    ResponseTooSlow,
    broken_limit,
    has_cause,
    most_bytes,
    require_sane,
)
from envferry.base.retry import (
    BUSY_STATUSES,
    POLICY,
    RetryPolicy,
    Transient,
    asked_seconds,
    persistently,
    waiting_words,
)
from envferry.config import network
from envferry.errors import NotFound, StoreError, UsageError
from envferry.stores.port import Stat, check_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime


READ_SECONDS = 20
PARTIAL_CONTENT = 206
SHORT_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class HttpStore:
    """A `ReadableStore`; it cannot list, for web servers have no common way to."""

    writable: ClassVar[None] = None
    """A web server is only read."""
    disk: ClassVar[None] = None
    images: ClassVar[None] = None
    """It keeps values, not images."""

    base: str
    """Ends in no slash."""
    limits: Limits = USUAL_LIMITS
    policy: RetryPolicy = field(default=POLICY, compare=False)
    connections: Connections = field(init=False, repr=False, compare=False)
    """Kept open from one request to the next."""

    def __post_init__(self) -> None:
        """Share connections among all requests."""
        site = network()
        connections = Connections(site.certificates, site.proxies, READ_SECONDS, self.limits)
        object.__setattr__(self, "connections", connections)

    @classmethod
    def open(cls, url: str, limits: Limits = USUAL_LIMITS) -> HttpStore:
        """Take a URL without credentials."""
        parts = urlsplit(url)
        if not parts.hostname:
            message = f"{url} names no host"
            raise UsageError(message, hint="write https://HOST/PATH")
        if parts.username is not None or parts.query or parts.fragment:
            message = f"the URL of the registry at {parts.hostname} holds more than host and path"
            raise UsageError(message, hint="leave out user, password, ?query and #fragment")
        return cls(url.rstrip("/"), limits)

    @property
    def url(self) -> str:
        """The URL that keys are appended to."""
        return self.base

    @property
    def place(self) -> str:
        """The URL that keys are appended to: a web server has no other name."""
        return self.base

    def stat(self, key: str) -> Stat | None:
        """Return what the headers say."""

        def ask() -> Stat:
            with self._response(key, {}, method="HEAD") as response:
                length = response.headers.get("Content-Length")
                # An ETag is optional (RFC 9110, 8.8.3); a date does, as nothing is replaced here.
                modified = response.headers.get("Last-Modified", "")
                version = response.headers.get("ETag", modified)
                # The length of a compressed answer says nothing about the file.
                is_as_it_is = not _encoding(response)
            is_known = length is not None and is_as_it_is
            size = self._size(key, length or "") if is_known else self._size_by_range(key)
            return Stat(size=size, version=version, modified=_time(modified))

        try:
            return persistently(ask, self.policy)
        except NotFound:
            return None

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a part of a file."""
        if length == 0:
            return b""
        return persistently(lambda: self._read_once(key, offset, length), self.policy)

    def _size_by_range(self, key: str) -> int:
        """Ask for one byte: with that, a server that makes its answers as it goes says the size."""
        url = f"{self.base}/{key}"
        try:
            # Content-Range has the whole size behind its slash: `bytes 0-0/SIZE` (RFC 9110, 14.4).
            with self._response(key, {"Range": "bytes=0-0"}) as response:
                self._refuse_encoding(key, response)
                _, _, size = response.headers.get("Content-Range", "").partition("/")
        except ShorterThanExpected:
            # Not even a first byte: the file is empty.
            return 0
        if not size:
            hint = "use a web server that sends Content-Length, such as nginx, or copy the registry"
            message = f"the web server does not say how large {url} is"
            raise StoreError(message, hint=hint)
        return self._size(key, size)

    def _refuse_encoding(self, key: str, response: urllib3.BaseHTTPResponse) -> None:
        """Raise StoreError for parts of something else than the file."""
        if encoding := _encoding(response):
            message = f"{self.base}/{key} is sent in the encoding {encoding}, not as it is"
            hint = "exclude the registry from compression, on the web server or a proxy in between"
            raise StoreError(message, hint=hint)

    def _size(self, key: str, header: str) -> int:
        """Read a `Content-Length` header."""
        if not re.fullmatch(r"\d{1,18}", header.strip(), re.ASCII):
            length = f"a Content-Length of {header[:40]!r}, which is not a valid size"
            message = f"{self.base}/{key} has {length}"
            raise StoreError(message, hint="is a proxy in between? look at the web server's log")
        return int(header)

    def _read_once(self, key: str, offset: int, length: int | None) -> bytes:
        headers = {}
        # Not for a whole value: servers that know no ranges can still send that.
        if offset or length is not None:
            # The last byte is included (RFC 9110, 14.1.2), hence the one less.
            last = "" if length is None else str(offset + length - 1)
            headers["Range"] = f"bytes={offset}-{last}"
        with self._response(key, headers) as response:
            # Where the beginning was asked for, an answer with all of it begins right, too.
            if offset and response.status != PARTIAL_CONTENT:
                message = f"{self.base} ignores range requests: it sent {key} from its beginning"
                hint = "use a web server that knows them, such as nginx, or copy the registry"
                raise StoreError(message, hint=hint)
            if length is None:
                require_sane(
                    self._size(key, response.headers.get("Content-Length", "0")), key, self.base
                )
                # One byte more than is allowed, to notice that there is more.
                data = response.read(most_bytes(key) + 1)
                require_sane(len(data), key, self.base)
                _require_no_page(response, data, f"{self.base}/{key}")
            else:
                self._refuse_encoding(key, response)
                data = response.read(length)
        if length is not None and len(data) != length:
            message = f"{self.base}/{key} sent {len(data)} of {length} bytes from {offset} on"
            hint = "the file may be cut off: run the command again"
            raise Transient(StoreError(message, hint=hint))
        return data

    @contextmanager
    def _response(
        self, key: str, headers: dict[str, str], method: str = "GET"
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """Yield an answer; everything that can go wrong until it is read becomes a StoreError."""
        url = f"{self.base}/{quote(check_key(key))}"
        way = self.connections.proxy_note(url)
        try:
            response = self.connections.open(url, headers, method)
            try:
                if response.status >= 300:
                    raise _refused(url, way, response)
                yield response
            finally:
                finish_response(response, method)
        except (urllib3.exceptions.HTTPError, ResponseTooLarge, ResponseTooSlow) as error:
            raise broken_answer(url, way, error) from error


class ShorterThanExpected(StoreError):
    """A range begins behind the end of a file."""


def _encoding(response: urllib3.BaseHTTPResponse) -> str:
    """Return in which encoding a file is sent; empty where it is as it is."""
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    return "" if encoding == "identity" else encoding


def _require_no_page(response: urllib3.BaseHTTPResponse, data: bytes, url: str) -> None:
    """Raise StoreError for the page of a login or a proxy, which comes with status 200."""
    kind = response.headers.get("Content-Type", "").lower()
    if kind.startswith("text/html") and data.lstrip()[:1] == b"<":
        message = f"{url} is answered with a web page, not with the file"
        hint = "open that URL in a browser: does a login or a proxy answer?"
        raise StoreError(message, hint=hint)


def _time(header: str) -> datetime | None:
    """Read a `Last-Modified` header; None when it is missing or not a date."""
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(header).astimezone(timezone.utc)
    except (TypeError, ValueError, OverflowError):
        return None


def finish_response(response: urllib3.BaseHTTPResponse, method: str) -> None:
    """End an answer; one without a body, or with a short one, leaves its connection to the next."""
    length = response.headers.get("Content-Length", "")
    # To read a few bytes costs less than a new connection; to read a long rest costs more.
    if method == "HEAD" or (length.isdecimal() and int(length) <= SHORT_BYTES):
        response.drain_conn()
    # What was read to its end has given its connection back: this closes others.
    response.close()


def _refused(url: str, way: str, response: urllib3.BaseHTTPResponse) -> Exception:
    status, message = response.status, f"{url} is refused{way} (HTTP {response.status})"
    # 410 Gone (RFC 9110, 15.5.11) is what a server may say of files that were removed.
    if status in (404, 410):
        return NotFound(f"{url} does not exist", hint="check the registry's URL and the name")
    if status == 407:
        return StoreError(message, hint="the proxy requires a login: http_proxy=http://USER:…@HOST")
    if status in (401, 403):
        hint = (
            "ask for access to it, or for a way past that proxy" if way else "ask for access to it"
        )
        return StoreError(message, hint=hint)
    if status == 416:
        return ShorterThanExpected(f"{url} is shorter than expected", hint="copy or push it again")
    asked = asked_seconds(response.headers.get("Retry-After"))
    message = f"{url} failed{way} with HTTP {status}{waiting_words(asked)}"
    final = StoreError(message, hint="look at the web server's log")
    return Transient(final, asked=asked) if status in BUSY_STATUSES else final


def broken_answer(url: str, way: str, error: Exception) -> Exception:
    """Return what to raise for a connection that failed, or for an answer that broke off."""
    if isinstance(error, urllib3.exceptions.LocationValueError):
        message = f"{url} redirects to an address that is neither http nor https"
        return StoreError(message, hint="ask the administrator of that server")
    reason = broken_limit(error) or getattr(error, "reason", None) or error
    message = f"cannot read {url}{way}: {_words(reason)}"
    if has_cause(error, ResponseTooLarge):
        return StoreError(message, hint="ask the administrator of that server")
    if isinstance(reason, urllib3.exceptions.SSLError) and "CERTIFICATE" in str(reason):
        hint = "a site's own authority: SSL_CERT_FILE names a file with its certificate"
        if words := wrong_time_words(str(reason)):
            message, hint = f"{message}: {words}", "set the clock, for example with chrony or ntpd"
        return StoreError(message, hint=hint)
    hint = "check the network and the registry's URL"
    if way:
        hint = "check that proxy (http_proxy, https_proxy, all_proxy), or name the host in no_proxy"
    final = StoreError(message, hint=hint)
    # What `raise … from` would set: `persistently` raises it later, from elsewhere.
    final.__cause__ = error
    # A trickle costs half a minute each time: no more attempts than where nothing answers.
    is_hopeless = was_never_reached(error) or has_cause(error, ResponseTooSlow)
    return Transient(final, is_unreachable=is_hopeless)


def _words(reason: object) -> str:
    """Describe an error without the names that urllib3 gives its objects."""
    return re.sub(r"^(<[^>]*>|\w*Connection(Pool)?\([^)]*\)):\s*", "", str(reason))
