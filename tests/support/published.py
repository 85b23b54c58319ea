"""Registries for tests, with artifacts that have real manifests and tiny archives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from blake3 import blake3

from envferry.artifacts import write_companions
from envferry.models import Artifact, PackageFacts
from envferry.progress import Silent
from envferry.registry.layout import attachment_key
from envferry.registry.publish import place
from tests.support.artifacts import PLATFORM, make_artifact

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.models import Manifest
    from envferry.registry import Registry

NUMPY = PackageFacts(name="numpy", version="1.26.4", kind="pypi", license="BSD-3-Clause", size=30)
TORCH = PackageFacts(name="torch", version="2.8.0+cu128", kind="pypi", license="BSD", size=900)
OPENSSL = PackageFacts(
    name="openssl", version="1.1.1w", kind="conda", build="h7f8727e_0", license="OpenSSL", size=50
)


@dataclass(frozen=True, kw_only=True)
class Made:
    """What an artifact shall be."""

    name: str = "demo"
    seed: int = 1
    version: str | None = None
    readme: str = ""
    packages: tuple[PackageFacts, ...] = (NUMPY, TORCH, OPENSSL)


def make(directory: Path, made: Made) -> Artifact:
    """Write an artifact to a directory."""
    first = make_artifact(directory, seed=made.seed)
    id_ = blake3(f"{made.name} {made.seed}".encode()).hexdigest()[:12]
    file = f"{made.name}-{PLATFORM}-{id_}.tar.zst"
    (directory / file).write_bytes(first.archive_path.read_bytes())
    manifest = msgspec.structs.replace(
        first.manifest,
        name=made.name,
        id=id_,
        version=made.version,
        readme=made.readme or msgspec.UNSET,
        prefix=f"/opt/conda/envs/{made.name}",
        packages=made.packages,
        archive=msgspec.structs.replace(first.manifest.archive, file=file),
    )
    artifact = Artifact(directory=directory, manifest=manifest)
    write_companions(artifact, first.lock_path.read_bytes())
    return artifact


def publish(registry: Registry, directory: Path, made: Made, *tags: str) -> Manifest:
    """Make an artifact, push it and tag it."""
    artifact = make(directory, made)
    registry.publish(artifact, progress=Silent())
    for tag in tags:
        registry.move_tag(made.name, PLATFORM, tag, artifact.manifest.id)
    return artifact.manifest


def attach(registry: Registry, manifest: Manifest, file: str, data: bytes) -> None:
    """Write a file beside a published artifact, once."""
    place(registry, attachment_key(manifest, file), data, must_match=True)
