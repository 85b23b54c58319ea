"""A docker that works here, with the project's image: the machine's daemon, or one of our own."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from envferry.engines.oci import DEFAULT_IMAGE
from tests.support.image_engine import BASE_IMAGE, ImageEngine, make_base_image, site_files
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

DAEMON = ("dockerd", "--bridge=none", "--iptables=false", "--ip6tables=false")
"""Leaves this machine's network alone: builds have none, and images are built in the host's."""


def docker_answers() -> bool:
    """Whether a daemon answers where the environment says."""
    if not shutil.which("docker"):
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


def can_start_docker() -> bool:
    """Whether a daemon of our own may be tried."""
    return os.getuid() == 0 and all(shutil.which(name) for name in ("docker", "dockerd"))


@contextmanager
def prepare_docker(home: Path) -> Iterator[ImageEngine]:
    """Yield a docker that runs containers here, with the project's image built."""
    program = shutil.which("docker")
    assert program
    if docker_answers():
        docker = ImageEngine(program=Path(program))
        make_base_image(docker)
        docker.build(DEFAULT_IMAGE)
        yield docker
        return
    with own_daemon(home) as host:
        docker = ImageEngine(program=Path(program), environ={"DOCKER_HOST": host})
        take_from_podman(docker, home / "base.tar")
        make_base_image(docker)
        add_site_files(docker)
        docker.build(DEFAULT_IMAGE)
        yield docker


@contextmanager
def own_daemon(home: Path) -> Iterator[str]:
    """Run a daemon with all that it keeps in `home`, removed afterwards; yield its address."""
    socket, log = home / "docker.sock", home / "dockerd.log"
    places = [f"--data-root={home}/data", f"--exec-root={home}/run", f"--pidfile={home}/pid"]
    with log.open("wb") as output:
        argv = [*DAEMON, *places, "--host", f"unix://{socket}"]
        daemon = subprocess.Popen(argv, stdout=output, stderr=output, start_new_session=True)
    try:
        info = ["docker", "--host", f"unix://{socket}", "info"]

        def answers() -> bool:
            assert daemon.poll() is None, log.read_text()[-2000:]
            return subprocess.run(info, capture_output=True, check=False).returncode == 0

        wait_until(answers, "dockerd answers")
        yield f"unix://{socket}"
    finally:
        daemon.terminate()
        daemon.wait()
        unmount_below(home)
        shutil.rmtree(home)


def unmount_below(home: Path) -> None:
    """Unmount what a daemon leaves behind: its network namespace, and its data on themselves."""
    places = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for place in reversed(places):
        if Path(place).is_relative_to(home):
            subprocess.run(["umount", place], check=True)


def take_from_podman(docker: ImageEngine, file: Path) -> None:
    """Copy the base image from podman, where its tests left it: making it takes a minute."""
    program = shutil.which("podman")
    if not program:
        return
    podman = ImageEngine(program=Path(program))
    if podman.image(BASE_IMAGE):
        podman.run("save", "--format", "docker-archive", "--output", file, BASE_IMAGE)
        docker.run("load", "--input", file)
        file.unlink()


def add_site_files(docker: ImageEngine) -> None:
    """Put this machine's certificates and pip settings into our own daemon's base image.

    `docker build` mounts nothing; podman does, so its base image stays as it is.
    """
    container = docker.run("create", BASE_IMAGE, "true").strip()
    for path in site_files():
        docker.run("cp", path, f"{container}:{path.parent}")
    docker.run("commit", container, BASE_IMAGE)
    docker.run("rm", container)
