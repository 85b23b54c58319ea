"""The images of the Dockerfile: what is in them, and that two builds are one image."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.image_engine import BASE_IMAGE, PROJECT, site_files

if TYPE_CHECKING:
    from tests.support.image_engine import ImageEngine

PREFIX = "envferry-twice"
EXTRAS = (
    "from importlib.util import find_spec as f; print(*(bool(f(n)) for n in ('boto3', 'rattler')))"
)
"""Whether registries on S3 are read, and whether environments are locked and built."""


@pytest.mark.podman
@pytest.mark.slow
def test_both_images_are_built_twice_and_are_equal(podman: ImageEngine) -> None:
    """From nothing each time; the host's image has no build half, and says so."""
    options = ["--pull=never", "--isolation", "chroot", "--network", "host"]
    for path in site_files():
        options += ["--volume", f"{path}:{path}:ro"]
    environ = {**os.environ, **podman.environ}
    environ |= {"ENGINE": "podman", "PREFIX": PREFIX, "BASE": BASE_IMAGE}
    argv = [str(PROJECT / ".ci/images"), *options]
    finished = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    names = [line.split()[0] for line in finished.stdout.splitlines()]
    assert names == [f"{PREFIX}-host", f"{PREFIX}-builder"]
    for name in names:
        assert "envferry" in podman.run("run", "--rm", "--network", "none", name, "--version")
    for name, expected in zip(names, ("True False", "True True"), strict=True):
        python = ("--entrypoint", "/opt/envferry/bin/python", name, "-c", EXTRAS)
        assert podman.run("run", "--rm", "--network", "none", *python).strip() == expected
    for name in names:
        podman.run("image", "rm", name)
