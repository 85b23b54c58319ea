"""Check each request's method and host name, and add security headers to every answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = ("GET", "HEAD")
POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex, nofollow",
}


class Guard(msgspec.Struct, frozen=True):
    """An ASGI application around another one."""

    app: ASGIApp
    hosts: frozenset[str] | None = None
    """The names that the server goes by: a page elsewhere that points its name here is refused."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse what is neither GET nor HEAD; add headers to every answer."""
        # Starting and stopping are `lifespan`, which has no headers (ASGI).
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                # `MutableHeaders` only needs the key `headers`, which messages have as scopes do.
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        await self._chosen(scope)(scope, receive, send_guarded)

    def _chosen(self, scope: Scope) -> ASGIApp:
        # A 405 names what is allowed (RFC 9110, 15.5.6).
        if scope["method"] not in METHODS:
            return PlainTextResponse(
                "these pages can only be read\n", 405, headers={"Allow": ", ".join(METHODS)}
            )
        host = _host_name(Headers(scope=scope).get("host", ""))
        # Against DNS rebinding; 421 is for requests that were misdirected (RFC 9110, 15.5.20).
        if self.hosts is not None and host not in self.hosts:
            return PlainTextResponse("this server does not answer to that host name\n", 421)
        return self.app


def _host_name(host: str) -> str:
    """Return the name in a `Host` header, without the port."""
    # An IPv6 address, whose colons are not before a port (RFC 3986, 3.2.2).
    if host.startswith("["):
        return host.partition("]")[0][1:].lower()
    return host.partition(":")[0].lower()
