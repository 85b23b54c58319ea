"""Install archives made for tests, and look at what is installed."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

from envferry.archive.reader import FileSource
from envferry.install.stage import InstallOptions, install_artifact
from envferry.models import Manifest
from envferry.progress import Silent
from tests.support.archives import PREFIX, small_archive

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.install.records.installation import Installation

SCRIPT = b"#!/bin/sh\n# at /opt/conda/envs/demo\necho version %b\n"


def manifest_of(path: Path, version: bytes, **fields: Any) -> Manifest:
    """Write an archive of one script and return its manifest."""
    written = small_archive(path, {"bin/tool": SCRIPT % version, "lib/data": os.urandom(100_000)})
    facts = written.facts
    common: dict[str, Any] = {
        "name": "demo",
        "platform": written.index.platform,
        "id": written.index.id,
        "prefix": PREFIX,
        "archive": facts,
        "lock_digest": "0",
        "content_hash": "0",
        "packages": (),
    }
    return Manifest(**{**common, **fields})


def install(
    archive: Path, envs: Path, manifest: Manifest | None = None, **options: Any
) -> Installation:
    """Install an archive file."""
    with FileSource(archive) as source:
        return install_artifact(
            source,
            manifest,
            options=InstallOptions(envs_dir=envs, **options),
            progress=Silent(),
        )


def output_of(envs: Path) -> str:
    """Run the installed script."""
    finished = subprocess.run([envs / "demo/bin/tool"], capture_output=True, text=True, check=True)
    return finished.stdout.strip()


def leftovers(envs: Path) -> list[str]:
    """List what an unfinished install left behind."""
    return [str(path) for path in envs.rglob("*partial*")]
