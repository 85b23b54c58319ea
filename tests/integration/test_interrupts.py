"""Interrupts while the server of a build's downloads, or of a conda channel, hangs."""

from __future__ import annotations

import re
import signal
import threading
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.cli_runner import CliRunner
from tests.support.interrupting import interrupted
from tests.support.web_server import web_server

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGE_BYTES = 5_000_000


class Hanging(SimpleHTTPRequestHandler):
    """Sends half of each large file, then says nothing."""

    has_hung, go_on = threading.Event(), threading.Event()

    def do_GET(self) -> None:
        """Answer, or wait."""
        path = Path(self.translate_path(self.path))
        if self.go_on.is_set() or path.stat().st_size < LARGE_BYTES:
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(path.stat().st_size))
        self.end_headers()
        self.wfile.write(path.read_bytes()[: path.stat().st_size // 2])
        self.has_hung.set()
        self.go_on.wait(60)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@pytest.fixture
def hanging() -> Iterator[type[Hanging]]:
    """In the end nobody waits."""
    yield Hanging
    Hanging.go_on.set()


@pytest.mark.container
def test_a_download_that_hangs(
    demo_runner: CliRunner, tmp_path: Path, hanging: type[Hanging]
) -> None:
    (tmp_path / "specs").mkdir()
    with web_server(demo_runner.home / "channel", hanging) as url:
        for name in ("demo.yml", "demo.conda-lock.yml"):
            text = (demo_runner.home / "specs" / name).read_text()
            served = re.sub(r"file:///[^\s,\]]*/channel\b", url, text)
            assert url in served or name == "demo.yml"  # which names its channel by an alias
            (tmp_path / "specs" / name).write_text(served)
        host = CliRunner(home=tmp_path, cache=tmp_path / "cache")
        interrupted(host, signal.SIGINT, hanging.has_hung, "build", "demo")
    partial = [path.stat().st_size for path in (tmp_path / "cache").rglob(".*.partial")]
    assert max(partial) >= LARGE_BYTES // 2
    assert not list((tmp_path / "cache/builds").glob("*.partial"))


class Mute(Hanging):
    """Takes requests, and says nothing."""

    has_hung, go_on = threading.Event(), threading.Event()

    def do_GET(self) -> None:
        """Wait."""
        self.has_hung.set()
        self.go_on.wait(60)


def test_a_channel_that_hangs(tmp_path: Path) -> None:
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs/demo.yml").write_text("name: demo\ndependencies: [python]\n")
    host = CliRunner(home=tmp_path, cache=tmp_path / "cache")
    with web_server(tmp_path, Mute) as url:
        interrupted(host, signal.SIGTERM, Mute.has_hung, "lock", "demo", "--channel", url)
        # The solver, which runs in a process of its own, has ended, too.
        own = f"ENVFERRY_CACHE={host.cache}".encode()
        assert not [home for home in Path("/proc").glob("[0-9]*") if own in environ_of(home)]
        Mute.go_on.set()


def environ_of(home: Path) -> list[bytes]:
    """Return the environment of a process, nothing where it is gone or another user's."""
    try:
        return home.joinpath("environ").read_bytes().split(b"\0")
    except OSError:
        return []
