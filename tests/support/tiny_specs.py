"""A folder with specs of hand-made packages, each of which is built in a second."""

from __future__ import annotations

import json
import subprocess
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from tests.support.cli_runner import CliRunner
from tests.support.tiny_channel import TinyPackage, make_channel
from tests.support.waiting import HANG_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

SPEC = """\
name: {name}
channels: [{channel}]
dependencies: [lib{name}]
envferry:
  checks:
    commands: ["{command}"]
"""


def make_tiny_channel(directory: Path, names: Iterable[str]) -> Path:
    """Make a channel with a package for each spec."""
    packages = [
        TinyPackage(name=f"lib{name}", version="1.0", files=((f"share/{name}", name * 1000),))
        for name in names
    ]
    return make_channel(directory, packages)


def tiny_specs(home: Path, names: Iterable[str], channel: str, bad: str = "") -> CliRunner:
    """Write and lock a spec for each name; the check of the one that is `bad` fails."""
    wanted = tuple(names)
    environ = {"ENVFERRY_REGISTRY": str(home / "registry")}
    runner = CliRunner(home=home, cache=home / "cache", environ=environ)
    for name in wanted:
        command = "exit 3" if name == bad else "true"
        runner.write_spec(name, SPEC.format(name=name, channel=channel, command=command))
    runner.run("lock", *wanted)
    return runner


def start_release(runner: CliRunner, *arguments: str) -> subprocess.Popen[str]:
    """Start a release that is waited for later."""
    argv, environ = runner.command("release", *arguments, "--json")
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, cwd=runner.home, env=environ, stdout=pipe, stderr=pipe, text=True)


def outcomes(text: str) -> dict[str, str]:
    """Return what became of each spec, by what `release --json` printed."""
    return {one["spec"]: one["outcome"] for one in json.loads(text)}


def published(runner: CliRunner) -> list[str]:
    """Return the names of what the registry holds, one for each artifact."""
    manifests = (runner.home / "registry/v1/envs").rglob("manifest.json")
    return sorted(path.parts[-4] for path in manifests)


@dataclass
class HeldChannel:
    """A channel on a web server that can hold the packages back."""

    url: str
    asked: threading.Event = field(default_factory=threading.Event)
    """Somebody waits for a package."""
    open: threading.Event = field(default_factory=threading.Event)
    """Packages are sent."""
    requests: list[str] = field(default_factory=list)
    """The packages that were asked for."""
    holds: str = ".conda"
    """A part of the names of the packages that are held back."""


@contextmanager
def held_channel(directory: Path) -> Iterator[HeldChannel]:
    """Serve a channel while the block runs."""
    channel = HeldChannel("")

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.endswith(".conda"):
                channel.requests.append(self.path)
            if self.path.endswith(".conda") and channel.holds in self.path:
                channel.asked.set()
                assert channel.open.wait(HANG_SECONDS)
            try:
                super().do_GET()
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(directory)))
    channel.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield channel
    finally:
        channel.open.set()
        server.shutdown()
        thread.join()
        server.server_close()
