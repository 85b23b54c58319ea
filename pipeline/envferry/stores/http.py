"""A registry behind a web server: read-only, by range requests."""

from __future__ import annotations

import http.client
import re
import ssl
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timezone
from functools import cache
from typing import IO, TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from envferry.errors import NotFound, StoreError, UsageError
from envferry.stores.limits import (
    USUAL_LIMITS,
    Limits,
    broken_limit,
    limited_connection,
    most_bytes,
    require_sane,
)
from envferry.stores.port import CannotList, Stat, check_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime
    from http.client import HTTPResponse
    from pathlib import Path

    from envferry.stores.port import KnownRange, Listed
    from envferry.stores.source import Incoming

TIMEOUT_SECONDS = 20
T = TypeVar("T")


class _Transient(StoreError):
    """A failure that another attempt may not meet: a lost connection, a busy server."""


@dataclass(frozen=True, slots=True)
class HttpStore:
    """A `Store` that can only read; it cannot list, for web servers have no common way to."""

    base: str
    """Ends in no slash."""
    limits: Limits = USUAL_LIMITS
    pauses: tuple[float, ...] = (0.5, 1.5)
    """How many seconds to wait before each further attempt after a transient failure."""

    @classmethod
    def open(cls, url: str, limits: Limits = USUAL_LIMITS) -> HttpStore:
        """Take a URL without credentials."""
        parts = urlsplit(url)
        if not parts.hostname:
            message = f"{url} names no host"
            raise UsageError(message)
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
        """The URL, too."""
        return self.base

    def stat(self, key: str) -> Stat | None:
        """Return what the headers say."""

        def ask() -> Stat:
            with self._response(key, {}, method="HEAD") as response:
                size = self._size(key, response.headers.get("Content-Length", "0"))
                modified = response.headers.get("Last-Modified", "")
                version = response.headers.get("ETag", modified)
            return Stat(size=size, version=version, modified=_time(modified))

        try:
            return self._persistently(ask)
        except NotFound:
            return None

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a part of a file."""
        if length == 0:
            return b""
        return self._persistently(lambda: self._read_once(key, offset, length))

    def create(
        self,
        key: str,
        source: Path | bytes | Incoming,
        advance: Callable[[int], None] | None = None,
        known: Sequence[KnownRange] = (),
    ) -> None:
        """Refuse."""
        raise self._read_only(key)

    def replace(self, key: str, data: bytes, expected: str | None) -> str:
        """Refuse."""
        raise self._read_only(key)

    def list(
        self, prefix: str = "", *, folders: bool = False, unfinished: bool = False
    ) -> Iterator[Listed]:
        """Refuse."""
        message = f"{self.base} is a web server: what it holds cannot be listed"
        raise CannotList(message, hint="name the environment and its tag or id: NAME@TAG, NAME@ID")

    def delete(self, key: str, unfinished_seconds: float | None = None) -> int:
        """Refuse."""
        raise self._read_only(key)

    def _persistently(self, attempt: Callable[[], T]) -> T:
        """Attempt something again after transient failures; the last failure travels on."""
        for seconds in self.pauses:
            try:
                return attempt()
            except _Transient:
                time.sleep(seconds)
        return attempt()

    def _size(self, key: str, header: str) -> int:
        """Read a `Content-Length` header."""
        if not re.fullmatch(r"\d{1,18}", header.strip(), re.ASCII):
            message = f"{self.base}/{key} has a Content-Length of {header[:40]!r}, which is no size"
            raise StoreError(message, hint="is a proxy in between? look at the web server's log")
        return int(header)

    def _read_only(self, key: str) -> StoreError:
        message = f"{self.base} is a web server: {key} cannot be written or removed there"
        return StoreError(message, hint="push to the directory or bucket that it serves")

    def _read_once(self, key: str, offset: int, length: int | None) -> bytes:
        headers = {}
        if offset or length is not None:
            last = "" if length is None else str(offset + length - 1)
            headers["Range"] = f"bytes={offset}-{last}"
        with self._response(key, headers) as response:
            if offset and response.status != http.client.PARTIAL_CONTENT:
                message = f"{self.base} ignores range requests: it sent {key} from its beginning"
                hint = "use a web server that knows them, such as nginx, or copy the registry"
                raise StoreError(message, hint=hint)
            if length is None:
                require_sane(
                    self._size(key, response.headers.get("Content-Length", "0")), key, self.base
                )
                data = response.read(most_bytes(key) + 1)
                require_sane(len(data), key, self.base)
            else:
                data = response.read(length)
        if length is not None and len(data) != length:
            message = f"{self.base}/{key} sent {len(data)} of {length} bytes from {offset} on"
            raise _Transient(message, hint="the file may be cut off: run the command again")
        return data

    @contextmanager
    def _response(
        self, key: str, headers: dict[str, str], method: str = "GET"
    ) -> Iterator[HTTPResponse]:
        """Yield an answer; everything that can go wrong until it is read becomes a StoreError."""
        url = f"{self.base}/{quote(check_key(key))}"
        request = urllib.request.Request(url, headers=headers, method=method)
        try:
            with _opener(self.limits).open(request, timeout=TIMEOUT_SECONDS) as response:
                yield response
        except urllib.error.HTTPError as error:
            error.close()
            raise _refused(url, error.code) from error
        except (OSError, http.client.HTTPException) as error:
            reason = broken_limit(error) or getattr(error, "reason", None) or error
            message = f"cannot read {url}: {reason}"
            if isinstance(reason, ssl.SSLCertVerificationError):
                hint = "a site's own authority: SSL_CERT_FILE names a file with its certificate"
                raise StoreError(message, hint=hint) from error
            raise _Transient(message, hint="check the network and the registry's URL") from error


class _HttpRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only; the library would go to ftp, too."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https"):
            message = f"{req.full_url} redirects to {scheme}://…, which is not followed"
            raise StoreError(message, hint="ask who runs that server")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@cache
def _opener(limits: Limits) -> urllib.request.OpenerDirector:
    """Return what opens http and https URLs, through proxies too, and nothing else."""
    plain: Any = limited_connection(http.client.HTTPConnection, limits)
    secure: Any = limited_connection(http.client.HTTPSConnection, limits)

    class Plain(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> HTTPResponse:
            return self.do_open(plain, req)

    class Secure(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> HTTPResponse:
            return self.do_open(secure, req, context=ssl.create_default_context())

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        Plain(),
        Secure(),
        _HttpRedirects(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _time(header: str) -> datetime | None:
    """Read a `Last-Modified` header; None when there is none, or no date in it."""
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(header).astimezone(timezone.utc)
    except (TypeError, ValueError, OverflowError):
        return None


def _refused(url: str, status: int) -> StoreError | NotFound:
    if status in (404, 410):
        return NotFound(f"{url} is not there", hint="check the registry's URL and the name")
    if status in (401, 403):
        return StoreError(f"{url} is refused (HTTP {status})", hint="ask for access to it")
    if status == 416:
        return StoreError(f"{url} is shorter than expected", hint="copy or push it again")
    message = f"{url} failed with HTTP {status}"
    hint = "look at the web server's log"
    return _Transient(message, hint=hint) if status >= 500 else StoreError(message, hint=hint)
