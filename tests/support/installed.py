"""An installation with files of each kind, verified and repaired."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from envferry.archive.reader import Archive, FileSource
from envferry.install.records.env_home import EnvHome
from envferry.install.verify import Verified, repair_installation, verify_installation
from envferry.progress import Silent

if TYPE_CHECKING:
    from pathlib import Path

LARGE = 20 << 20
CONTENTS = {
    "bin/tool": b"#!/bin/sh\n# at /opt/conda/envs/demo\necho version 1\n",
    "lib/native": b"\x7fELF\0/opt/conda/envs/demo/lib\0" + bytes(2000),
    "lib/large": os.urandom(LARGE),
    "lib/module.py": b"answer = 42\n",
    "lib/empty": b"",
}


def verify(envs: Path, *, quick: bool = False) -> Verified:
    """Verify the current installation of demo."""
    home = EnvHome.of(envs, "demo")
    return verify_installation(home, None, quick=quick, progress=Silent())


def repair(envs: Path, archive: Path) -> Verified:
    """Verify and repair the current installation of demo."""
    with FileSource(archive) as source:
        home = EnvHome.of(envs, "demo")
        return repair_installation(home, verify(envs), Archive(source), progress=Silent())
