"""A channel on a web server that hides from strangers, as Anaconda, prefix.dev and Quetz do."""

from __future__ import annotations

import base64
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKEN = "tok3n-of-the-channel"
ENTRIES: dict[str, Any] = {
    "conda": {"CondaToken": TOKEN},
    "bearer": {"BearerToken": TOKEN},
    "basic": {"BasicHTTP": {"username": "me", "password": TOKEN}},
}
"""What `pixi auth login` writes for each kind of login."""
BASIC = "Basic " + base64.b64encode(f"me:{TOKEN}".encode()).decode()
HEADERS = {"bearer": f"Bearer {TOKEN}", "basic": BASIC, "conda": None, "open": None}


@dataclass
class PrivateChannel:
    """What a server demands, and what it was asked."""

    kind: str
    """A kind of login, or `open` for none."""
    refusal: int = 404
    """What strangers are answered."""
    packages_at: str = ""
    """Another server, to which packages are redirected."""
    breaks: int = 0
    """How many packages break off half way."""
    port: int = 0
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Paths and headers, in lower case."""

    @property
    def url(self) -> str:
        """The channel, without a login."""
        return f"http://127.0.0.1:{self.port}/team/channel"


def break_off(handler: SimpleHTTPRequestHandler) -> None:
    """Announce more than is sent."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(b"half")


class _Handler(SimpleHTTPRequestHandler):
    """Serves `/team/channel` to those who may see it."""

    manners: PrivateChannel

    def log_message(self, *words: object) -> None:
        """Keep the tests' output to what failed."""

    def do_GET(self) -> None:
        """Answer, refuse or send elsewhere."""
        manners = self.manners
        manners.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
        start = f"/t/{TOKEN}/team/channel" if manners.kind == "conda" else "/team/channel"
        is_known = self.headers.get("Authorization") == HEADERS[manners.kind]
        if not self.path.startswith(f"{start}/") or not is_known:
            self.send_error(manners.refusal)
            return
        self.path = self.path.removeprefix(start)
        is_package = self.path.endswith(".conda")
        if is_package and manners.packages_at:
            self.send_response(302)
            self.send_header("Location", f"{manners.packages_at}{self.path}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif is_package and manners.breaks and "Range" not in self.headers:
            manners.breaks -= 1
            break_off(self)
        else:
            super().do_GET()


@contextmanager
def private_channel(folder: Path, channel: PrivateChannel) -> Iterator[PrivateChannel]:
    """Serve a folder as a channel with these manners."""

    class Handler(_Handler):
        manners = channel

        def __init__(self, *words: Any) -> None:
            super().__init__(*words, directory=str(folder))

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        channel.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield channel
        finally:
            server.shutdown()
            thread.join()


def write_credentials(home: Path, entries: dict[str, Any]) -> Path:
    """Write the credentials file of rattler in a home."""
    path = home / ".rattler/credentials.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(entries))
    path.chmod(0o600)
    return path
