"""A package index that demands a login, and its packages."""

from __future__ import annotations

import base64
import functools
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from envferry.install.host.host_check import glibc_version
from tests.support.builds import file_hash
from tests.support.wheels import make_wheel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PASSWORD = "pa55-of-the-url"


OFFER = f"envferry: {{system: {{glibc: '{glibc_version()}'}}}}\n"


class Guarded(SimpleHTTPRequestHandler):
    """Serves a folder to those who have the login of its first part."""

    def __init__(self, *arguments: object, logins: dict[str, str], directory: str) -> None:
        self.logins = logins
        super().__init__(*arguments, directory=directory)  # type: ignore[arg-type]

    def log_message(self, *arguments: object) -> None:
        """Keep the tests' output to what failed."""

    def do_GET(self) -> None:
        """Answer, or demand a login."""
        login = self.logins.get(self.path.split("/")[1])
        if login is None:
            self.send_error(404)
            return
        expected = "Basic " + base64.b64encode(login.encode()).decode()
        if self.headers.get("Authorization") == expected:
            super().do_GET()
            return
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="private"')
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def guarding(folder: Path, logins: dict[str, str], kind: type[Guarded] = Guarded) -> Iterator[int]:
    """Serve a folder; yield the port."""
    handler = functools.partial(kind, logins=logins, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def make_index(folder: Path, *stems: str, metadata: str = "") -> Path:
    """Write wheels and the pages of a simple index (PEP 503) with their hashes."""
    for stem in stems:
        project = folder / stem.split("-")[0]
        project.mkdir(parents=True, exist_ok=True)
        make_wheel(project, stem, metadata=metadata)
        links = [
            f'<a href="{path.name}#sha256={file_hash(path)}">{path.name}</a>'
            for path in sorted(project.glob("*.whl"))
        ]
        (project / "index.html").write_text(f"<html><body>{''.join(links)}</body></html>")
    return folder
