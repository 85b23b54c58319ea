"""S3 servers that are not SeaweedFS, each run on a free port while a block runs."""

from __future__ import annotations

import socket
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from demo.background import background
from demo.seaweed import BUCKET, HOST, S3Server
from envferry.config import child_environ
from envferry.process import find_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

START_SECONDS = 60
NPM_FOLDER = Path(sys.prefix) / "npm"
"""Where `./bootstrap.sh npm` installs what tests/npm/package-lock.json pins."""


@contextmanager
def moto(directory: Path) -> Iterator[S3Server]:
    """Run moto's server, which keeps everything in memory."""
    argv = [sys.executable, "-m", "moto.server", "-H", HOST]
    with _running(argv, directory, lambda port: ["-p", str(port)]) as url:
        yield S3Server(endpoint_url=url, access_key="moto", secret_key="moto")


def find_s3rver() -> str | None:
    """Return the program s3rver, None where it is not installed."""
    path = NPM_FOLDER / "node_modules/.bin/s3rver"
    return str(path) if path.exists() and find_program("node") else None


@contextmanager
def s3rver(directory: Path) -> Iterator[S3Server]:
    """Run s3rver, which keeps files in `directory`, and knows no conditions on writes."""
    argv = [find_s3rver() or "", "-d", str(directory / "data"), "-a", HOST]
    with _running(argv, directory, lambda port: ["-p", str(port)]) as url:
        yield S3Server(endpoint_url=url, access_key="S3RVER", secret_key="S3RVER")


def make_bucket(server: S3Server) -> None:
    """Make the bucket of a server that has none."""
    import botocore.session

    client = botocore.session.get_session().create_client(
        "s3",
        endpoint_url=server.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
    )
    client.create_bucket(Bucket=BUCKET)
    client.close()


@contextmanager
def _running(
    argv: list[str], directory: Path, at_port: Callable[[int], list[str]]
) -> Iterator[str]:
    directory.mkdir(parents=True, exist_ok=True)
    with socket.socket() as one:
        one.bind((HOST, 0))
        port = one.getsockname()[1]
    log_path = directory / "server.log"
    with background([*argv, *at_port(port)], env=child_environ(), log_path=log_path) as poll:
        url = f"http://{HOST}:{port}"
        deadline = time.monotonic() + START_SECONDS
        while not _answers(url):
            if poll() is not None or time.monotonic() > deadline:
                raise AssertionError(log_path.read_text(errors="replace")[-2000:])
            time.sleep(0.05)
        yield url


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError as error:
        error.close()
    except OSError:
        return False
    return True
