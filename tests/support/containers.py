"""Other people's programs that take images from a registry: containerd's `ctr`, podman, skopeo."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from demo.background import background
from envferry.process import Finished, run
from tests.support.oci_registry import find_oci_program
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG = """\
version = 2
root = "{home}/root"
state = "{home}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "{socket}"
"""


@dataclass(frozen=True, slots=True)
class Containerd:
    """A containerd of our own."""

    home: Path
    program: str
    socket: Path

    def ctr(self, *words: str | Path) -> Finished:
        """Run its client."""
        return run((self.program, "-a", self.socket, *words))

    @contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """Mount an image while the block runs."""
        place = self.home / "mounted"
        place.mkdir(exist_ok=True)
        self.ctr("images", "mount", "--snapshotter", "native", image, place)
        try:
            yield place
        finally:
            self.ctr("images", "unmount", place)


@contextmanager
def containerd(home: Path) -> Iterator[Containerd]:
    """Run containerd while the block runs, with its data in a folder."""
    home.mkdir()
    server, client = find_oci_program("containerd"), find_oci_program("ctr")
    assert server, "run ./bootstrap.sh oci"
    assert client
    config = home / "config.toml"
    short = TemporaryDirectory()  # the path of a socket has 107 bytes at most
    there = Path(short.name) / "socket"
    config.write_text(CONFIG.format(home=home, socket=there))
    environ = {**os.environ, "PATH": f"{Path(server).parent}:{os.environ['PATH']}"}
    log_path = home / "containerd.log"
    with short, background((server, "-c", config), log_path=log_path, env=environ) as poll:
        wait_until(lambda: there.exists() or poll() is not None, "containerd is up")
        assert poll() is None, log_path.read_text()
        yield Containerd(home, client, there)


@dataclass(frozen=True, slots=True)
class Podman:
    """Podman with storage of its own; nothing of it runs."""

    home: Path

    def run(self, *words: str | Path) -> Finished:
        """Run it."""
        where = ("--root", self.home / "root", "--runroot", self.home / "runroot")
        return run(("podman", *where, "--storage-driver", "vfs", *words))

    @contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """Mount an image while the block runs."""
        yield Path(self.run("image", "mount", image).stdout.strip())
        self.run("image", "unmount", image)


@contextmanager
def podman_storage() -> Iterator[Podman]:
    """Run podman in a folder that is gone afterwards; its path may not have over 50 characters."""
    with TemporaryDirectory(prefix="podman") as place:
        yield Podman(Path(place))
