"""A token server as registries send clients to: Basic and refresh tokens in, signed tokens out."""

from __future__ import annotations

import base64
import json
import secrets
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ISSUER, SERVICE = "the-site", "the-registry"
USER, PASSWORD, REFRESH = "ferry", "s3cret-word", "long-lived-identity"


@dataclass
class TokenServer:
    """A running token server; it knows one user."""

    url: str = ""
    lifetime: int = 300
    """Seconds."""
    asked: list[str] = field(default_factory=list)
    """The scopes that tokens were given for, in order."""
    knows_nobody: bool = False
    """Give tokens to whoever asks without a login, too."""
    hidden: set[str] = field(default_factory=set)
    """Repositories that the user has no right to, which no token mentions then."""

    def __post_init__(self) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ISSUER)])
        now = datetime.now(timezone.utc)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(1)
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .sign(self.key, hashes.SHA256())
        )

    def configuration(self, place: Path) -> str:
        """Write the certificate to a file; return what docker-registry's configuration needs."""
        place.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        return (
            f"auth:\n  token:\n    realm: {self.url}\n    service: {SERVICE}\n"
            f"    issuer: {ISSUER}\n    rootcertbundle: {place}\n"
        )

    def token(self, scopes: list[str]) -> str:
        """Return a signed token for some scopes, each `repository:NAME:ACTIONS`."""
        parts = [one.rsplit(":", 2) for one in scopes]
        granted = [
            {"type": kind, "name": name, "actions": actions.split(",")}
            for kind, name, actions in parts
            if name not in self.hidden
        ]
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "sub": USER,
            "aud": SERVICE,
            "exp": now + self.lifetime,
            "nbf": now - 10,
            "iat": now,
            "jti": secrets.token_hex(8),
            "access": granted,
        }
        chain = base64.b64encode(self.certificate.public_bytes(serialization.Encoding.DER))
        header = {"typ": "JWT", "alg": "RS256", "x5c": [chain.decode()]}
        signed = f"{_encode(header)}.{_encode(claims)}"
        signature = self.key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_base64(signature)}"


class Handler(BaseHTTPRequestHandler):
    """Answers who has a login."""

    server_state: TokenServer

    def do_GET(self) -> None:
        """Take a login by Basic."""
        query = parse_qs(urlsplit(self.path).query)
        login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        given = self.headers.get("Authorization")
        is_known = given == f"Basic {login}" or (given is None and self.server_state.knows_nobody)
        self.answer(query, is_known=is_known)

    def do_POST(self) -> None:
        """Take an identity token as a form."""
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        is_known = form.get("refresh_token") == [REFRESH]
        self.answer(form, is_known=is_known and form.get("grant_type") == ["refresh_token"])

    def answer(self, query: dict[str, list[str]], *, is_known: bool) -> None:
        """Give a token, or refuse one."""
        if not is_known or query.get("service") != [SERVICE]:
            self.send_error(401)
            return
        # In a URL each scope is a parameter, in a form all are words of one.
        scopes = query.get("scope", [])
        if self.command == "POST":
            scopes = [one for text in scopes for one in text.split()]
        if any(" " in one for one in scopes):
            self.send_error(400)
            return
        self.server_state.asked.append(" ".join(scopes))
        body = json.dumps({"access_token": self.server_state.token(scopes)}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@contextmanager
def token_server() -> Iterator[TokenServer]:
    """Run a token server while the block runs."""
    state = TokenServer()
    handler = type("Handler", (Handler,), {"server_state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}/token"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _encode(value: dict[str, Any]) -> str:
    return _base64(json.dumps(value).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
