"""An engine that makes containers from images, and what the project's Dockerfile starts from.

Where images cannot be pulled, Debian itself makes that base (debootstrap).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping

PROJECT = Path(__file__).parents[2]
BASE_IMAGE = "docker.io/library/debian:bookworm-slim"
"""What the Dockerfile's FROM means."""
BASE_PACKAGES = "ca-certificates,python3,python3-venv"
"""The Dockerfile asks for them too: here they come in one go."""
SITE_FILES = ("/etc/ssl/certs", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates")
"""This machine's certificates, which a build of the image may need to reach its package index."""


@dataclass(frozen=True, kw_only=True)
class ImageEngine:
    """docker or podman, and the environment in which its name means this one."""

    program: Path
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What `--sandbox` calls it."""
        return self.program.name

    def try_run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run the engine."""
        argv = [self.program, *arguments]
        environ = {**os.environ, **self.environ}
        return subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)

    def run(self, *arguments: str | Path) -> str:
        """Run the engine and return its output; it must succeed."""
        finished = self.try_run(*arguments)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    def can_run(self) -> bool:
        """Whether a container of the base image runs."""
        words = ("run", "--rm", "--network", "none", BASE_IMAGE, "true")
        return self.try_run(*words).returncode == 0

    def image(self, name: str) -> str:
        """Return the digest of an image, empty when it is not there."""
        return self.try_run("image", "inspect", "--format", "{{.Id}}", name).stdout.strip()

    def build(self, tag: str, *options: str) -> None:
        """Build the project's Dockerfile; the image that had the tag before goes."""
        before = self.image(tag)
        self.run("build", "--network", "host", "--quiet", *options, "--tag", tag, PROJECT)
        if before not in ("", self.image(tag)):
            self.try_run("image", "rm", before)

    def containers(self) -> list[str]:
        """Return the names of envferry's containers."""
        names = self.run("ps", "--all", "--format", "{{.Names}}").split()
        return [name for name in names if name.startswith("envferry-")]

    def wait_for_removal(self) -> None:
        """Wait until the engine has removed the containers whose owners were killed."""
        wait_until(lambda: not self.containers(), "all containers are removed")


def make_base_image(engine: ImageEngine) -> None:
    """Have the image that the Dockerfile starts from: there already, pulled, or made here."""
    if engine.image(BASE_IMAGE):
        return
    if os.getuid() != 0 or not shutil.which("debootstrap"):
        engine.run("pull", "--quiet", BASE_IMAGE)
        return
    with tempfile.TemporaryDirectory() as folder:
        root, packed = Path(folder) / "root", Path(folder) / "root.tar"
        words = ["debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", "bookworm"]
        made = subprocess.run([*words, root], capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stdout[-2000:]
        archives = "--exclude=./var/cache/apt/archives/*.deb"
        subprocess.run(["tar", "-C", root, archives, "-cf", packed, "."], check=True)
        engine.run("import", packed, BASE_IMAGE)


def site_files() -> list[Path]:
    """Return what a build of the image needs to reach this site's package index."""
    files = [Path(path) for path in (*SITE_FILES, *pip_files())]
    return [path for path in files if path.exists()]


def pip_files() -> list[str]:
    """Return pip's settings for this machine, and the folders that they name."""
    settings = Path("/etc/pip.conf")
    if not settings.exists():
        return []
    words = settings.read_text().replace("file://", " ").split()
    folders = [word.removesuffix("/simple") for word in words if word.startswith("/")]
    return [str(settings), *(folder for folder in folders if Path(folder).is_dir())]
