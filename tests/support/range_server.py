"""A web server that knows range requests."""

import http.server
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    Serve = Callable[[type[http.server.SimpleHTTPRequestHandler]], str]


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Python's own file server, with the ranges that it lacks."""

    failures = 0
    """How many of the next requests fail with 503."""

    def do_GET(self) -> None:
        """Answer a range from the file system."""
        if type(self).failures:
            type(self).failures -= 1
            self.send_error(503)
            return
        path = Path(self.translate_path(self.path))
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not match or not path.is_file():
            super().do_GET()
            return
        data, start = path.read_bytes(), int(match[1])
        if start >= len(data):
            self.send_error(416)
            return
        body = data[start : int(match[2] or len(data)) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Be quiet."""
