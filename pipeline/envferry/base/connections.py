"""Connections to web servers that are kept open, straight or through the proxies of a site."""

from __future__ import annotations

import ssl
import threading
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit

import urllib3
from urllib3.util import Retry, Timeout

from envferry.base.authorities import system_authorities
from envferry.base.limits import USUAL_LIMITS, Limits, limited_pools
from envferry.base.proxies import choose_proxy, show_proxy
from envferry.errors import HostError, StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONNECT_SECONDS = 15
READ_SECONDS = 60
KEPT = 16
"""Connections to one server; more than any stage has threads."""
REDIRECTS = 10
SOCKS_SCHEMES = ("socks4", "socks4a", "socks5", "socks5h")
NEVER_REACHED = (
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.ProxyError,
)
"""Before a server, or a proxy, has got anything."""


@dataclass(slots=True)
class Connections:
    """Pools of connections, one for each proxy and one without; threads may share them."""

    certificates: Path | None
    """A file of CA certificates that replaces the system's."""
    proxies: Mapping[str, str]
    """As `read_proxies` returns them."""
    read_seconds: float = READ_SECONDS
    limits: Limits = USUAL_LIMITS
    _pools: dict[str, urllib3.PoolManager] = field(default_factory=dict, repr=False)
    _guard: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def open(
        self,
        url: str,
        headers: Mapping[str, str],
        method: str = "GET",
        body: bytes | list[bytes] | None = None,
        *,
        token: str = "",
    ) -> urllib3.BaseHTTPResponse:
        """Ask for a URL, or send a body there, and return the answer, its body unread.

        Follows redirects to http and https; other hosts get no `Authorization`, and none is asked
        for a URL with `token`: that raises StoreError. Read the body to its end and call
        `release_conn`, or `close` the answer. Raises urllib3's errors; nothing is tried again here.
        """
        try:
            return self._pool(url).request(
                method,
                url,
                # Ranges, lengths and digests are of the stored bytes, not of compressed ones.
                headers={"Accept-Encoding": "identity", "User-Agent": "envferry", **headers},
                body=body,
                preload_content=False,
                retries=_retries(token),
            )
        except ValueError as error:
            # Of where a redirect leads: a port of seven digits, half an IPv6 address, a bad name.
            if isinstance(error, urllib3.exceptions.HTTPError):
                raise
            raise urllib3.exceptions.LocationParseError(url) from error

    def proxy_note(self, url: str) -> str:
        """Say through which proxy a URL is reached, for the message of an error; else nothing."""
        proxy = choose_proxy(self.proxies, url)
        return f" through the proxy {show_proxy(proxy)}" if proxy else ""

    def _pool(self, url: str) -> urllib3.PoolManager:
        proxy = choose_proxy(self.proxies, url) or ""
        with self._guard:
            # Under the lock: two threads would make two pools, each with connections of its own.
            if proxy not in self._pools:
                pool = self._make_pool(proxy)
                classes = limited_pools(pool.pool_classes_by_scheme, self.limits)
                # Of this manager alone: the table that urllib3 gives it belongs to the whole
                # process.
                pool.pool_classes_by_scheme = classes
                self._pools[proxy] = pool
            return self._pools[proxy]

    def _make_pool(self, proxy: str) -> urllib3.PoolManager:
        context = _tls_context(self.certificates)
        timeout = Timeout(connect=CONNECT_SECONDS, read=self.read_seconds)
        if not proxy:
            return urllib3.PoolManager(maxsize=KEPT, timeout=timeout, ssl_context=context)
        parts = urlsplit(proxy)
        if parts.scheme.lower() in SOCKS_SCHEMES:
            return _socks_pool(proxy, timeout=timeout, ssl_context=context)
        if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
            message = f"the proxy {show_proxy(proxy)} is not of the form http://HOST:PORT"
            raise HostError(message, hint="correct http_proxy, https_proxy or all_proxy")
        # In a URL a login is percent-encoded; the header has it in plain text, in base64.
        login = unquote(parts.netloc.rpartition("@")[0])
        return urllib3.ProxyManager(
            proxy,
            proxy_headers=urllib3.make_headers(proxy_basic_auth=login) if login else None,
            maxsize=KEPT,
            timeout=timeout,
            ssl_context=context,
        )


class _Redirects(Retry):
    """Follows redirects, but for those that would carry a token to another host."""

    token = ""

    def new(self, **changes: Any) -> _Redirects:  # noqa: ANN401  (urllib3's)
        """Return what is left to do; the token is kept back there, too."""
        # urllib3 makes the next one from the arguments of its own __init__ and nothing else.
        made = super().new(**changes)
        made.token = self.token
        return made

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: urllib3.BaseHTTPResponse | None = None,
        *words: Any,  # noqa: ANN401  (urllib3's)
        **more: Any,  # noqa: ANN401
    ) -> _Redirects:
        """Count a redirect; raise StoreError where it leads to with the token."""
        location = response.get_redirect_location() if response is not None and self.token else None
        if response is not None and location and _is_carried_off(self.token, url or "", location):
            # Unread: what it says is of no use, and the connection goes with it.
            response.close()
            place = urlsplit(urljoin(url or "", location))
            where = f"{place.scheme}://{place.netloc.rpartition('@')[2]}"
            host = urlsplit(url or "").hostname
            message = f"{host} redirects to {where} with the token of its channel"
            hint = "ask its administrator to redirect without the token, or only within that host"
            raise StoreError(message, hint=hint)
        return super().increment(method, url, response, *words, **more)


def _retries(token: str) -> _Redirects:
    # What is tried again has a policy of its own (`base/retry.py`): two would multiply.
    retries = _Redirects(
        connect=0,
        read=0,
        status=0,
        other=0,
        redirect=REDIRECTS,
        respect_retry_after_header=False,
    )
    retries.token = token
    return retries


def _is_carried_off(token: str, url: str, location: str) -> bool:
    """Whether a redirect would show a token to another host, or on the way to the same one."""
    before, after = urlsplit(url), urlsplit(urljoin(url, location))
    # Some servers percent-encode what they send back, others do not.
    if token not in unquote(location) and token not in location:
        return False
    return before.hostname != after.hostname or (before.scheme, after.scheme) == ("https", "http")


def was_never_reached(error: Exception) -> bool:
    """Whether a request failed before it reached a server."""
    # urllib3 wraps the error of its last attempt in MaxRetryError, as the `reason`.
    return isinstance(getattr(error, "reason", None) or error, NEVER_REACHED)


def wrong_time_words(reason: str, now: datetime | None = None) -> str:
    """Say what time it is here, where a certificate is refused for it; else nothing.

    A clock that is wrong looks like a server that is.
    """
    if "not yet valid" not in reason and "has expired" not in reason:
        return ""
    here = (now or datetime.now(timezone.utc)).strftime("%Y-%m-%d %H:%M UTC")
    return f"by this machine's clock ({here}) it is not valid"


def _tls_context(certificates: Path | None) -> ssl.SSLContext:
    # A Python that was built on another system looks for certificates where that one has them.
    if certificates is None and not _has_default_certificates():
        certificates = system_authorities()
    try:
        return ssl.create_default_context(cafile=str(certificates) if certificates else None)
    except OSError as error:
        message = f"cannot read the CA certificates {certificates}: {error.strerror}"
        hint = "correct PIP_CERT, SSL_CERT_FILE or REQUESTS_CA_BUNDLE"
        raise HostError(message, hint=hint) from error


def _has_default_certificates() -> bool:
    """Whether certificates lie where the OpenSSL of this Python was built to look for them."""
    found = ssl.get_default_verify_paths()
    return bool(found.cafile or found.capath)


def _socks_pool(proxy: str, **settings: Any) -> urllib3.PoolManager:  # noqa: ANN401  (urllib3's)
    if find_spec("socks") is None:  # urllib3 would warn of it, too
        message = f"the proxy {show_proxy(proxy)} is a SOCKS proxy, which requires PySocks"
        hint = "run `pip install PySocks`, or name an http proxy in https_proxy"
        raise HostError(message, hint=hint)
    from urllib3.contrib.socks import SOCKSProxyManager

    return SOCKSProxyManager(proxy, maxsize=KEPT, **settings)
