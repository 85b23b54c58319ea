"""Artifacts for tests: random bytes with a manifest that is right about them."""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import msgspec
from blake3 import blake3

from envferry.artifacts import write_companions
from envferry.models import Artifact, Manifest, PackageFacts
from tests.support.archives import PREFIX, small_archive

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envferry.archive.writer import WrittenArchive

PLATFORM = "linux-64"
SIZING_ROUNDS = 60
LARGE_BYTES = 1 << 20
SLACK_BYTES = 1000
LOCK = """\
# lock {seed}
version: 1
metadata: {{content_hash: {{linux-64: ''}}}}
package:
- {{name: numpy, version: 1.26.4, manager: pip, platform: linux-64,
   url: "https://files.example/numpy-1.26.4-cp310-cp310-linux_x86_64.whl", hash: {{md5: '{seed}'}}}}
"""


def installable_artifact(directory: Path, contents: Mapping[str, bytes], **fields: Any) -> Artifact:
    """Write the artifact `demo` for this machine, of files with these contents."""
    directory.mkdir(parents=True, exist_ok=True)
    scratch = directory / "scratch"
    written = small_archive(scratch, contents)
    archive = directory / f"demo-{written.index.platform}-{written.index.id}.tar.zst"
    scratch.rename(archive)
    lock = LOCK.format(seed=1).encode()
    manifest = Manifest(
        name="demo",
        platform=written.index.platform,
        id=written.index.id,
        prefix=PREFIX,
        archive=msgspec.structs.replace(written.facts, file=archive.name),
        lock_digest=blake3(lock).hexdigest(),
        content_hash="",
        packages=(PackageFacts(name="tool", version="1.0", kind="conda"),),
        **fields,
    )
    artifact = Artifact(directory=directory, manifest=manifest)
    write_companions(artifact, lock)
    return artifact


def make_artifact(directory: Path, size: int = 1000, *, seed: int = 1) -> Artifact:
    """Write the artifact `demo` of random bytes; the seed decides bytes and id.

    Its archive has `size` bytes, unless that is less than an archive needs.
    """
    directory.mkdir(parents=True, exist_ok=True)
    data, written = sized_archive(size, seed)
    id_ = written.index.id
    archive = directory / f"demo-{PLATFORM}-{id_}.tar.zst"
    archive.write_bytes(data)
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


@lru_cache(maxsize=4)
def sized_archive(size: int, seed: int) -> tuple[bytes, WrittenArchive]:
    """Return an archive of `size` bytes, all told: what noise it holds follows from that.

    Its index is compressed, and a few bytes longer or shorter with each content. A large one may
    therefore be longer by some bytes.
    """
    length, noise = size, random.Random(seed).randbytes(size)
    allowed = 0 if size < LARGE_BYTES else SLACK_BYTES
    with TemporaryDirectory() as place:
        path = Path(place, "archive")
        for start in range(SIZING_ROUNDS):
            content = noise[start:] + noise[:start]
            written = small_archive(path, {"lib/noise": content[:length]}, platform=PLATFORM)
            excess = path.stat().st_size - size
            if 0 <= excess <= allowed or length <= max(excess, 0):
                break
            length -= excess - allowed // 2
        return path.read_bytes(), written
