"""What a reader of the pages has: a home, programs, and our own channel for conda-forge."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.support.cli_runner import ENVFERRY

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.cli_runner import CliRunner

DOCKER = """\
#!/bin/sh
# What `docker exec CONTAINER PROGRAM…` does in a container that has the volume, by bubblewrap.
shift 2
exec bwrap --ro-bind / / --dev /dev --proc /proc --tmpfs /opt \\
  --bind ./conda/envs /opt/conda/envs "$@"
"""

OTHERS = ("ENVFERRY_", "PIP_", "UV_FIND_LINKS")
"""What a site may have set, of which commands would tell."""


def reader_environ(home: Path, runner: CliRunner) -> dict[str, str]:
    """Return the variables of a reader: conda-forge is our own channel, docker is bubblewrap."""
    (home / "bin").mkdir(parents=True)
    (home / "bin/docker").write_text(DOCKER)
    (home / "bin/docker").chmod(0o755)
    (home / "conda-forge").symlink_to(runner.home / "channel")
    (home / ".condarc").write_text(f"custom_channels: {{conda-forge: '{home.as_uri()}'}}\n")
    kept = {name: text for name, text in os.environ.items() if not name.startswith(OTHERS)}
    path = f"{home}/bin:{ENVFERRY.parent}:{os.environ['PATH']}"
    return {
        **kept,
        "HOME": str(home),
        "PATH": path,
        "ENVFERRY_CACHE": str(runner.cache),
        "XDG_CONFIG_DIRS": str(home),
    }
