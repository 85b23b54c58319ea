"""A proxy in front of an S3 server that breaks what passes through it, by a seed."""

from __future__ import annotations

import http.client
import random
import re
import socket
import struct
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

FAULTS = (
    "500",
    "503",
    "slow down",
    "html",
    "reset before",
    "reset after",
    "cut body",
    "short body",
)
"""`reset after`: the server has done it, and nobody hears of it. `short body`: half of it, with a
length that says so: what a proxy sends that gave up."""

ERRORS = {
    "500": (500, "InternalError"),
    "503": (503, "ServiceUnavailable"),
    "slow down": (503, "SlowDown"),
    "limited": (429, "TooManyRequests"),
    "clock": (403, "RequestTimeTooSkewed"),
    "denied": (403, "AccessDenied"),
    "no bucket": (404, "NoSuchBucket"),
    "unimplemented": (501, "NotImplemented"),
    "argument": (400, "InvalidArgument"),
}
LARGE_BYTES = 1 << 20
HTML = b"<html><body><h1>Welcome to the guest network</h1>Please log in.</body></html>"


@dataclass
class Plan:
    """Which requests meet a fault."""

    upstream: str
    rate: float = 0.0
    """The part of all requests that meets a random fault."""
    faults: tuple[str, ...] = FAULTS
    """The random ones."""
    refused_part: str | None = None
    """Who writes to a path with this in it is refused."""
    lost_answer: str = ""
    """The first request whose method and path fit this expression is done, its answer lost."""
    always: str | None = None
    """A fault that every request meets."""
    methods: tuple[str, ...] = ("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE")
    seed: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    """How often each fault was met; `none` and the methods, too."""
    sent: dict[tuple[str, str, int], int] = field(default_factory=dict)
    """The size of each body that clients sent: method, path and the body's hash."""
    flips: bool = False
    """Change one byte of every large body on its way to the server."""
    checksums: str | None = None
    """A fault that every request with a checksum meets."""
    retry_after: str | None = None
    """What the answers that are errors say of when to come back."""
    date: str | None = None
    """What time all answers say it is."""
    bare: bool = False
    """Errors have no body."""
    without: str | None = None
    """An element of XML that all answers lack."""
    copies: str | None = None
    """A fault that every copy inside the store meets."""
    hung: threading.Event | None = None
    """Large answers stop half way, large requests get none, and this is set."""
    released: threading.Event = field(default_factory=threading.Event)
    """Ends the silence."""
    paths: set[str] = field(default_factory=set)
    """What was asked for; whole URLs where it is used as a proxy."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.guard = threading.Lock()

    @property
    def sent_bytes(self) -> int:
        """The bytes of all bodies; what a busy server gets a second time counts once."""
        return sum(self.sent.values())

    def next(self, method: str, path: str, body: bytes) -> str | None:
        """Return the fault for a request."""
        with self.guard:
            self.sent[method, path, hash(body)] = len(body)
            fault = self.always
            if self.random.random() < self.rate:
                fault = self.random.choice(self.faults)
            fault = fault if method in self.methods else None
            if self.lost_answer and re.match(self.lost_answer, f"{method} {path}"):
                fault, self.lost_answer = "reset after", ""
            self.seen[fault or "none"] += 1
            self.seen[method] += 1
            return fault


class FaultHandler(BaseHTTPRequestHandler):
    """Passes requests on, unless the plan has a fault for them."""

    protocol_version = "HTTP/1.1"
    plan: Plan

    def handle_one_request(self) -> None:
        """Let clients go away when they like."""
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def answer(self) -> None:
        """Answer one request, well or badly."""
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        fault = self.plan.next(self.command, self.path, body)
        if self.plan.flips and len(body) > LARGE_BYTES:
            body = body[:LARGE_BYTES] + bytes([body[LARGE_BYTES] ^ 1]) + body[LARGE_BYTES + 1 :]
        self.plan.paths.add(self.path)
        if self.plan.hung and len(body) > LARGE_BYTES:
            self.stall(self.plan.hung)
            return
        if "x-amz-copy-source" in self.headers:
            fault = self.plan.copies or fault
        if any(name.lower().startswith("x-amz-checksum") for name in self.headers):
            self.plan.seen["checksums"] += 1
            fault = self.plan.checksums or fault
        if self.plan.refused_part and self.plan.refused_part in self.path:
            fault = "denied"
        if fault in ERRORS:
            status, code = ERRORS[fault]
            text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
            headers = {"Content-Type": "application/xml"}
            if self.plan.retry_after:
                headers["Retry-After"] = self.plan.retry_after
            self.send(status, headers, b"" if self.plan.bare else text)
        elif fault == "html":
            self.send(200, {"Content-Type": "text/html"}, HTML)
        elif fault == "reset before":
            self.reset()
        else:
            self.pass_on(body, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815

    def pass_on(self, body: bytes, fault: str | None) -> None:
        """Ask the server, and spoil its answer if the plan wants that."""
        parts = urlsplit(self.plan.upstream)
        upstream = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
        dropped = ("connection", "expect")
        headers = {name: text for name, text in self.headers.items() if name.lower() not in dropped}
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, text in headers.items():
                upstream.putheader(name, text)
            upstream.endheaders(body)
            response = upstream.getresponse()
            data = response.read()
            found = dict(response.getheaders())
        finally:
            upstream.close()
        if fault == "reset after":
            self.reset()
            return
        if lacking := self.plan.without:
            data = re.sub(rb"<%b>[^<]*</%b>" % ((lacking.encode(),) * 2), b"", data)
        self.send(response.status, found, data, fault)

    def send(
        self, status: int, headers: dict[str, str], data: bytes, fault: str | None = None
    ) -> None:
        """Send an answer, or the first half of it."""
        half = fault in ("cut body", "short body")
        length = len(data) // 2 if fault == "short body" else len(data)
        self.send_response_only(status)
        headers = {**headers, "Date": self.plan.date} if self.plan.date else headers
        for name, text in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, text)
        if self.command == "HEAD":
            self.send_header("Content-Length", headers.get("Content-Length", "0"))
        elif status != 204:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            if self.plan.hung and len(data) > LARGE_BYTES:
                self.wfile.write(data[: len(data) // 2])
                self.stall(self.plan.hung)
                return
            self.wfile.write(data[: len(data) // 2] if half else data)
        if fault == "cut body":
            self.wfile.flush()
            self.reset()

    def stall(self, hung: threading.Event) -> None:
        """Say no more until the end."""
        hung.set()
        self.plan.released.wait(60)
        self.reset()

    def reset(self) -> None:
        """Close the connection as a crash does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def finish(self) -> None:
        """Close what is left open."""
        try:
            super().finish()
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@contextmanager
def fault_proxy(plan: Plan, kind: type[FaultHandler] = FaultHandler) -> Iterator[str]:
    """Run a proxy while the block runs; yields its URL. A `kind` may lie, too."""
    handler = type("Handler", (kind,), {"plan": plan})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        plan.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
