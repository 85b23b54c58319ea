"""Artifacts with real archives: a few packages of random bytes, so that two can share frames."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from blake3 import blake3

from envferry.archive.index import FileEntry
from envferry.archive.members import Member, Owner
from envferry.archive.writer import ArchiveOptions, write_archive
from envferry.artifacts import write_companions
from envferry.models import Artifact, Manifest
from envferry.names import current_platform
from tests.support.artifacts import LOCK

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from envferry.archive.writer import WrittenArchive

PREFIX = "/opt/conda/envs/demo"


def random_bytes(seed: int, size: int) -> bytes:
    """Return bytes that do not compress; equal seeds give equal bytes."""
    return random.Random(seed).randbytes(size)


def pack(directory: Path, packages: Mapping[str, bytes], *, name: str = "demo") -> Artifact:
    """Write an artifact in which each package has one file of these bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    folders = ("lib", "bin")
    members = [
        Member(entry=FileEntry(path=path, type="directory", mode=0o755), owner=Owner())
        for path in folders
    ]
    for package, content in packages.items():
        entry = FileEntry(path=f"lib/{package}.bin", size=len(content))
        owner = Owner(rank=1, name=package, kind="conda", version="1.0", build="0")
        members.append(Member(entry=entry, owner=owner, source=content))
    options = ArchiveOptions(name=name, platform=current_platform(), prefix=PREFIX, mtime=315532800)
    scratch = directory / "packing"
    with scratch.open("wb") as stream:
        written = write_archive(
            stream,
            members,
            options=options,
            generate=lambda files: (),
            advance=lambda count: None,
        )
    return _described(directory, scratch, written)


def _described(directory: Path, scratch: Path, written: WrittenArchive) -> Artifact:
    index = written.index
    file = f"{index.name}-{index.platform}-{index.id}.tar.zst"
    scratch.rename(directory / file)
    lock = LOCK.format(seed=index.id).encode()
    facts = written.facts
    manifest = Manifest(
        name=index.name,
        platform=index.platform,
        id=index.id,
        prefix=index.prefix,
        archive=facts,
        lock_digest=blake3(lock).hexdigest(),
        content_hash="",
        packages=(),
    )
    artifact = Artifact(directory=directory, manifest=manifest)
    write_companions(artifact, lock)
    return artifact
