"""Pack tiny environments by the command line."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from blake3 import blake3

from envferry.artifacts import write_companions
from envferry.models import Artifact, Manifest
from tests.support.archives import PREFIX, small_archive
from tests.support.artifacts import LOCK

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = b"#!/bin/sh\necho version %d\n"


def pack(directory: Path, version: int) -> Artifact:
    """Pack an environment of one script."""
    directory.mkdir(exist_ok=True)
    draft = directory / "draft"
    written = small_archive(draft, {"bin/tool": SCRIPT % version, "lib/x": os.urandom(50_000)})
    index, lock = written.index, LOCK.format(seed=version).encode()
    file = f"demo-{index.platform}-{index.id}.tar.zst"
    draft.rename(directory / file)
    facts = written.facts
    manifest = Manifest(
        name="demo",
        platform=index.platform,
        id=index.id,
        prefix=PREFIX,
        archive=facts,
        lock_digest=blake3(lock).hexdigest(),
        content_hash="",
        packages=(),
    )
    artifact = Artifact(directory=directory, manifest=manifest)
    write_companions(artifact, lock)
    return artifact
