"""nginx as Debian has it, with a configuration, for the time of a test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

UNPACKED = Path(sys.prefix) / "nginx/usr/sbin/nginx"
"""Where bootstrap.sh nginx puts it when the system has none."""
MAIN = """\
daemon off;
{user}
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    log_format bytes '$status $body_bytes_sent $request_method $uri';
    {http}
}}
"""
ORIGIN = """
    server {{
        listen {address}:{port}{ssl};
        root {root};
        access_log {folder}/access.log bytes;
        {extra}
    }}
"""


def find_nginx() -> str | None:
    """Return the program, the system's or the one that was unpacked."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    return found or (str(UNPACKED) if UNPACKED.exists() else None)


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def nginx(folder: Path, http: str, *, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run nginx with these blocks of `http` until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "nginx.conf"
    # Workers of a master that is root become another user, who cannot read a test's folder.
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(MAIN.format(folder=folder, http=http, user=user))
    program = find_nginx()
    assert program
    argv = [program, "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")]
    process = subprocess.Popen(argv)

    def answers() -> bool:
        assert process.poll() is None, (folder / "error.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(answers, "nginx answers")
        yield process
    finally:
        process.terminate()
        process.wait()


def origin_block(folder: Path, root: Path, port: int, *, tls: Path | None = None, extra: str = "",
                 address: str = "127.0.0.1") -> str:  # fmt: skip
    """Return a server that serves a directory, and notes what it sent in `access.log`."""
    if tls:
        extra += f"\n        ssl_certificate {tls};\n        ssl_certificate_key {tls};"
    return ORIGIN.format(
        folder=folder, root=root, port=port, extra=extra, address=address, ssl=" ssl" if tls else ""
    )


def archive_bytes(folder: Path) -> int:
    """Return how many bytes of archives an origin sent."""
    lines = (folder / "access.log").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.endswith(".tar.zst"))
