"""A podman that works here, with the project's image.

Where the kernel forbids what podman wants (control groups of both versions at once, limits above
our own), podman is told to do without, from outside: envferry's own engine knows nothing of it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from envferry.engines.oci import DEFAULT_IMAGE
from tests.support.image_engine import ImageEngine, make_base_image, site_files

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


def prepare_podman(home: Path) -> ImageEngine:
    """Return a podman that runs containers here, with the project's image built."""
    program = shutil.which("podman")
    assert program
    podman = ImageEngine(program=Path(program))
    make_base_image(podman)
    if not podman.can_run():
        podman = with_less(podman, home)
        assert podman.can_run()
    options = ["--pull=never", "--isolation", "chroot"]
    for path in site_files():
        options += ["--volume", f"{path}:{path}:ro"]
    podman.build(DEFAULT_IMAGE, *options)
    return podman


def with_less(podman: ImageEngine, home: Path) -> ImageEngine:
    """Return the same podman, asking less of the kernel."""
    configuration = home / "containers.conf"
    configuration.write_text(CONFIGURATION)
    wrapper = home / "bin/podman"
    wrapper.parent.mkdir()
    wrapper.write_text(WRAPPER.format(configuration=configuration, podman=podman.program))
    wrapper.chmod(0o755)
    path = f"{wrapper.parent}:{os.environ['PATH']}"
    return ImageEngine(program=wrapper, environ={"PATH": path})
