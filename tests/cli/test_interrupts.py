"""Ctrl-C and SIGTERM while a server hangs: the end comes at once, what has arrived stays."""

from __future__ import annotations

import re
import signal
import threading
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest

from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.push import push_artifact
from envferry.stores.receive import REQUEST_BYTES
from tests.support.cli_runner import CliRunner
from tests.support.interrupting import interrupted
from tests.support.packed import pack, random_bytes
from tests.support.web_server import web_server

if TYPE_CHECKING:
    from collections.abc import Iterator

BIG = random_bytes(1, 3 * REQUEST_BYTES)


class Hanging(SimpleHTTPRequestHandler):
    """Serves files and ranges; of archives only what lies before `end`, then it says nothing."""

    end = REQUEST_BYTES
    has_hung = threading.Event()
    go_on = threading.Event()
    asked: ClassVar[list[int]]

    def do_GET(self) -> None:
        """Answer, or wait."""
        path = Path(self.translate_path(self.path))
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted or not path.is_file():
            super().do_GET()
            return
        start, last = int(wanted[1]), int(wanted[2] or path.stat().st_size - 1)
        body = path.read_bytes()[start : last + 1]
        self.asked.append(start)
        self.send_response(206)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        # The end of an archive holds its index.
        if path.suffix == ".zst" and self.end <= start < path.stat().st_size - REQUEST_BYTES // 4:
            self.wfile.write(body[:1000])
            self.has_hung.set()
            self.go_on.wait()
            return
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@pytest.fixture
def handler() -> Iterator[type[Hanging]]:
    """A handler of its own; in the end nobody waits."""

    class Handler(Hanging):
        asked: ClassVar[list[int]] = []
        has_hung, go_on = threading.Event(), threading.Event()

    yield Handler
    Handler.go_on.set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["fetch", "install", "mirror"])
def test_a_server_that_hangs(
    tmp_path: Path, handler: type[Hanging], command: str, number: int
) -> None:
    registry = Registry.open(str(tmp_path / "registry"))
    artifact = pack(tmp_path / "packed", {"big": BIG, "small": b"x"})
    push_artifact(artifact, registry=registry, tags=(), progress=Silent())
    host = CliRunner(home=tmp_path, cache=tmp_path / "cache")
    with web_server(tmp_path / "registry", handler) as url:
        words = {
            "fetch": ("fetch", "demo", "-o", "out", "--registry", url),
            "install": ("install", "demo", "--envs-dir", "envs", "--registry", url, "--no-check"),
            "mirror": ("mirror", url, "site", "demo"),
        }[command]
        said = interrupted(host, number, handler.has_hung, *words)
        assert said.endswith("error: interrupted\n")
        handler.end = len(BIG) * 2
        handler.asked.clear()
        host.run(*words)
    if command != "install":
        # The first request had been answered whole.
        assert 0 not in handler.asked
