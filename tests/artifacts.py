"""Artifacts for tests: random bytes with a manifest that is right about them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from blake3 import blake3

from envferry.artifacts import write_companions
from envferry.base.files import digest_file
from envferry.models import ArchiveFacts, Artifact, Manifest, PackageFacts

if TYPE_CHECKING:
    from pathlib import Path

PLATFORM = "linux-64"
LOCK = """\
# lock {seed}
version: 1
metadata: {{content_hash: {{linux-64: ''}}}}
package:
- {{name: numpy, version: 1.26.4, manager: pip, platform: linux-64,
   url: "https://files.example/numpy-1.26.4-cp310-cp310-linux_x86_64.whl", hash: {{md5: '{seed}'}}}}
"""


def make_artifact(directory: Path, size: int = 1000, *, seed: int = 1) -> Artifact:
    """Write the artifact `demo` of `size` random bytes; the seed decides bytes and id."""
    directory.mkdir(parents=True, exist_ok=True)
    data = random.Random(seed).randbytes(size)
    id_ = blake3(data).hexdigest()[:12]
    path = directory / f"demo-{PLATFORM}-{id_}.tar.zst"
    path.write_bytes(data)
    fast, strong = digest_file(path)
    lock = LOCK.format(seed=seed).encode()
    facts = ArchiveFacts(
        file=path.name,
        size=size,
        xxh128=fast,
        blake3=strong,
        tar_size=size,
        index_offset=0,
        index_size=0,
        index_blake3=blake3(b"").hexdigest(),
    )
    manifest = Manifest(
        name="demo",
        platform=PLATFORM,
        id=id_,
        prefix="/opt/conda/envs/demo",
        archive=facts,
        lock_digest=blake3(lock).hexdigest(),
        content_hash="",
        packages=(PackageFacts(name="numpy", version="1.26.4", kind="pypi"),),
        tools={"uv": str(seed)},
    )
    artifact = Artifact(directory=directory, manifest=manifest)
    write_companions(artifact, lock)
    return artifact
