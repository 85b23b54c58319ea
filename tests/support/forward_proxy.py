"""A forward proxy as sites have one: CONNECT for https, whole URLs for http, a login if wanted."""

from __future__ import annotations

import base64
import http.client
import select
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

HOP_BY_HOP = ("connection", "keep-alive", "proxy-authorization", "proxy-connection")


@dataclass
class ForwardProxy:
    """A running proxy, and what passed through it."""

    login: str = ""
    """`user:password`; without it everybody is let through."""
    refuses: bool = False
    """Say no to every request, as a site's filter does."""
    url: str = ""
    seen: list[str] = field(default_factory=list)
    """Method and target of each request that was let through."""


class Handler(BaseHTTPRequestHandler):
    """Passes requests on."""

    protocol_version = "HTTP/1.1"
    proxy: ForwardProxy

    def answer(self) -> None:
        """Pass one request with a whole URL on."""
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if not self.is_let_through():
            return
        parts = urlsplit(self.path)
        upstream = http.client.HTTPConnection(str(parts.hostname), parts.port or 80, timeout=60)
        try:
            place = parts.path + (f"?{parts.query}" if parts.query else "")
            upstream.putrequest(self.command, place, skip_host=True, skip_accept_encoding=True)
            for name, text in self.headers.items():
                if name.lower() not in (*HOP_BY_HOP, "expect"):
                    upstream.putheader(name, text)
            upstream.endheaders(body)
            response = upstream.getresponse()
            data = response.read()
        finally:
            upstream.close()
        self.send_response_only(response.status)
        for name, text in response.getheaders():
            if name.lower() not in (*HOP_BY_HOP, "transfer-encoding", "content-length"):
                self.send_header(name, text)
        length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

    def do_CONNECT(self) -> None:
        """Open a tunnel."""
        if not self.is_let_through():
            return
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=60) as upstream:
            self.send_response_only(200)
            self.end_headers()
            pairs = {self.connection: upstream, upstream: self.connection}
            while pairs:
                for ready in select.select(list(pairs), [], [])[0]:
                    if not (data := ready.recv(1 << 16)):
                        pairs = {}
                        break
                    pairs[ready].sendall(data)
        self.close_connection = True

    def is_let_through(self) -> bool:
        """Whether the request may pass; else it is answered."""
        wanted = "Basic " + base64.b64encode(self.proxy.login.encode()).decode()
        status = 200
        if self.proxy.login and self.headers.get("Proxy-Authorization") != wanted:
            status = 407
        if self.proxy.refuses:
            status = 403
        if status != 200:
            self.send_response_only(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return False
        self.proxy.seen.append(f"{self.command} {self.path}")
        return True

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@contextmanager
def forward_proxy(login: str = "", *, refuses: bool = False) -> Iterator[ForwardProxy]:
    """Run a proxy while the block runs."""
    proxy = ForwardProxy(login=login, refuses=refuses)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"proxy": proxy}))
    server.daemon_threads = True
    proxy.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
