"""A podman that works here, with the project's image: also without a registry of images.

Where images cannot be pulled, Debian itself makes the base (debootstrap). Where the kernel forbids
what podman wants (control groups of both versions at once, limits above our own), podman is told to
do without, from outside: envferry's own engine knows nothing of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.sandbox.oci import DEFAULT_IMAGE

PROJECT = Path(__file__).parents[1]
BASE_IMAGE = "docker.io/library/debian:bookworm-slim"
"""What the Dockerfile's FROM means."""
BASE_PACKAGES = "ca-certificates,python3,python3-venv"
"""The Dockerfile asks for them too: here they come in one go."""
CONFIGURATION = """\
[containers]
cgroups = "disabled"
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
"""
WRAPPER = """\
#!/bin/sh
export CONTAINERS_CONF={configuration}
exec unshare -m sh -c 'umount /sys/fs/cgroup/unified 2>/dev/null; exec {podman} "$@"' sh "$@"
"""
SITE_FILES = ("/etc/ssl/certs", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates")
"""This machine's certificates, which a build of the image may need to reach its package index."""


REMOVAL_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class Podman:
    """A podman and the directory that puts it first on PATH."""

    program: Path

    @property
    def environ(self) -> dict[str, str]:
        """The environment in which `podman` is this one."""
        return {"PATH": f"{self.program.parent}:{os.environ['PATH']}"}

    def run(self, *arguments: str | Path, check: bool = True) -> str:
        """Run podman and return its output."""
        argv = [str(self.program), *map(str, arguments)]
        finished = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert finished.returncode == 0 or not check, finished.stderr
        return finished.stdout

    def containers(self) -> list[str]:
        """Return the names of envferry's containers that stay: podman removes them by itself."""
        deadline = time.monotonic() + REMOVAL_SECONDS
        while True:
            names = self.run("ps", "--all", "--format", "{{.Names}}").split()
            found = [name for name in names if name.startswith("envferry-")]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.2)


def prepare_podman(home: Path) -> Podman:
    """Return a podman that runs containers here, with the project's image built."""
    program = shutil.which("podman")
    assert program
    podman = Podman(program=Path(program))
    make_base_image(podman)
    if not can_run(podman):
        podman = with_less(podman, home)
        assert can_run(podman)
    build_image(podman)
    return podman


def can_run(podman: Podman) -> bool:
    """Whether a container runs."""
    argv: list[str | Path] = [
        podman.program,
        "run",
        "--rm",
        "--network",
        "none",
        BASE_IMAGE,
        "true",
    ]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def with_less(podman: Podman, home: Path) -> Podman:
    """Return the same podman, asking less of the kernel."""
    configuration = home / "containers.conf"
    configuration.write_text(CONFIGURATION)
    wrapper = home / "bin/podman"
    wrapper.parent.mkdir()
    wrapper.write_text(WRAPPER.format(configuration=configuration, podman=podman.program))
    wrapper.chmod(0o755)
    return Podman(program=wrapper)


def make_base_image(podman: Podman) -> None:
    """Have the image that the Dockerfile starts from: there already, pulled, or made here."""
    argv: list[str | Path] = [podman.program, "image", "exists", BASE_IMAGE]
    if subprocess.run(argv, check=False).returncode == 0:
        return
    if os.getuid() != 0 or not shutil.which("debootstrap"):
        podman.run("pull", "--quiet", BASE_IMAGE)
        return
    with tempfile.TemporaryDirectory() as folder:
        bootstrap: list[str | Path] = [
            "debootstrap",
            "--variant=minbase",
            f"--include={BASE_PACKAGES}",
        ]
        root = Path(folder) / "root"
        made = subprocess.run(
            [*bootstrap, "bookworm", root], capture_output=True, text=True, check=False
        )
        assert made.returncode == 0, made.stdout[-2000:]
        packed = Path(folder) / "root.tar"
        subprocess.run(
            ["tar", "-C", root, "--exclude=./var/cache/apt/archives/*.deb", "-cf", packed, "."],
            check=True,
        )
        podman.run("import", "--quiet", packed, BASE_IMAGE)


def build_image(podman: Podman) -> None:
    """Build the project's Dockerfile, with this machine's certificates and pip settings."""
    options = ["--pull=never", "--isolation", "chroot", "--network", "host", "--quiet"]
    for path in (*SITE_FILES, *pip_files()):
        if Path(path).exists():
            options += ["--volume", f"{path}:{path}:ro"]
    podman.run("build", *options, "--tag", DEFAULT_IMAGE, PROJECT)


def pip_files() -> list[str]:
    """Return pip's settings for this machine, and the folders that they name."""
    settings = Path("/etc/pip.conf")
    if not settings.exists():
        return []
    words = settings.read_text().replace("file://", " ").split()
    folders = [word.removesuffix("/simple") for word in words if word.startswith("/")]
    return [str(settings), *(folder for folder in folders if Path(folder).is_dir())]
