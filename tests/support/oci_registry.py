"""A throwaway OCI registry: Debian's docker-registry on a free local port."""

from __future__ import annotations

import os
import socket
import ssl
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from demo.background import background
from envferry.process import find_program
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

UNPACKED = Path(sys.executable).parents[1] / "oci/usr/bin"
"""Where `bootstrap.sh oci` puts programs whose packages would start services."""
HOST = "127.0.0.1"
CONFIG = """\
version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: {data}}}
  delete: {{enabled: {deletes}}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http:
  addr: {host}:{port}
{more}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class OciServer:
    """Where a running registry is."""

    host: str
    """Host and port."""
    data: Path
    scheme: str = "http"

    @property
    def url(self) -> str:
        """Where its API is."""
        return f"{self.scheme}://{self.host}"

    def repository_path(self, repository: str) -> Path:
        """Return where it keeps a repository."""
        return self.data / "docker/registry/v2/repositories" / repository

    def blob_path(self, digest: str) -> Path:
        """Return where it keeps a blob."""
        name = digest.removeprefix("sha256:")
        return self.data / "docker/registry/v2/blobs/sha256" / name[:2] / name / "data"


def find_oci_program(name: str) -> str | None:
    """Return a program that `bootstrap.sh oci` has unpacked, else the one on PATH."""
    unpacked = UNPACKED / name
    return str(unpacked) if unpacked.exists() else find_program(name)


@contextmanager
def docker_registry(
    directory: Path, more: str = "", scheme: str = "http", *, deletes: bool = True
) -> Iterator[OciServer]:
    """Run docker-registry with its data in a directory; `more` is added to its configuration."""
    program = find_oci_program("docker-registry")
    assert program, "run ./bootstrap.sh oci"
    directory.mkdir(parents=True, exist_ok=True)
    server = OciServer(host=f"{HOST}:{free_port()}", data=directory / "data", scheme=scheme)
    config = directory / "config.yml"
    port = server.host.rpartition(":")[2]
    words = {"data": server.data, "host": HOST, "port": port, "more": more}
    config.write_text(CONFIG.format(**words, deletes=str(deletes).lower()))
    log_path = directory / "registry.log"
    # It takes podman's REGISTRY_AUTH_FILE for a setting of its own.
    environ = {name: text for name, text in os.environ.items() if not name.startswith("REGISTRY_")}
    with background((program, "serve", config), log_path=log_path, env=environ) as poll:
        wait_until(lambda: answers(server) or poll() is not None, "docker-registry is up")
        assert poll() is None, log_path.read_text()
        yield server


def answers(server: OciServer) -> bool:
    """Whether a registry says anything, if only that it wants a login."""
    anybody = ssl._create_unverified_context()
    try:
        urllib.request.urlopen(f"{server.url}/v2/", timeout=5, context=anybody).close()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code == 401
    except OSError:
        return False
    return True


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as one:
        one.bind((HOST, 0))
        port: int = one.getsockname()[1]
        return port
