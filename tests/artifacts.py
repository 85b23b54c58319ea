"""Artifacts for tests: random bytes with a manifest that is right about them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import msgspec
from blake3 import blake3

from envferry.artifacts import write_companions
from envferry.models import Artifact, Manifest, PackageFacts
from tests.archives import PREFIX, small_archive

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.archive.writer import WrittenArchive

PLATFORM = "linux-64"
SIZING_ROUNDS = 60
LOCK = """\
# lock {seed}
version: 1
metadata: {{content_hash: {{linux-64: ''}}}}
package:
- {{name: numpy, version: 1.26.4, manager: pip, platform: linux-64,
   url: "https://files.example/numpy-1.26.4-cp310-cp310-linux_x86_64.whl", hash: {{md5: '{seed}'}}}}
"""


def make_artifact(directory: Path, size: int = 1000, *, seed: int = 1) -> Artifact:
    """Write the artifact `demo` of random bytes; the seed decides bytes and id.

    Its archive has `size` bytes, unless that is less than an archive needs.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f".{seed}.tar.zst"
    written = write_sized(path, random.Random(seed).randbytes(size), size)
    id_ = written.index.id
    archive = directory / f"demo-{PLATFORM}-{id_}.tar.zst"
    path.replace(archive)
    lock = LOCK.format(seed=seed).encode()
    manifest = Manifest(
        name="demo",
        platform=PLATFORM,
        id=id_,
        prefix=PREFIX,
        archive=msgspec.structs.replace(written.facts, file=archive.name),
        lock_digest=blake3(lock).hexdigest(),
        content_hash="",
        packages=(PackageFacts(name="numpy", version="1.26.4", kind="pypi"),),
        tools={"uv": str(seed)},
    )
    artifact = Artifact(directory=directory, manifest=manifest)
    write_companions(artifact, lock)
    return artifact


def write_sized(path: Path, noise: bytes, size: int) -> WrittenArchive:
    """Write an archive of `size` bytes, all told: what noise it holds follows from that.

    Its index is compressed, and a few bytes longer or shorter with each content.
    """
    length = size
    for start in range(SIZING_ROUNDS):
        content = noise[start:] + noise[:start]
        written = small_archive(path, {"lib/noise": content[:length]}, platform=PLATFORM)
        excess = path.stat().st_size - size
        if excess == 0 or length <= max(excess, 0):
            break
        length -= excess
    return written
