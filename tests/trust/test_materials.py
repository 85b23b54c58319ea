"""What the provenance says that an artifact was made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from envferry.errors import IntegrityError
from envferry.models import BuildRequirements, Lock, LockedPackage, SpecOptions
from envferry.trust.materials import Material, list_materials, read_materials
from tests.support.artifacts import PLATFORM, make_artifact

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = f"registry.example/builder@sha256:{'c' * 64}"
PLACE = "https://files.example"
CONDA = LockedPackage(
    manager="conda",
    name="numpy",
    version="2.1",
    platform=PLATFORM,
    url="https://conda.example/forge/linux-64/numpy-2.1-py311_0.conda",
    md5="a" * 32,
    sha256="b" * 64,
)


def pip(name: str, url: str, platform: str = PLATFORM) -> LockedPackage:
    """A package of the pip half, whose digest says which one it is."""
    digest = name[0] * 40
    return LockedPackage(
        manager="pip", name=name, version="1", platform=platform, url=url, sha256=digest
    )


WHEEL = pip("wheel", f"{PLACE}/wheel-1-py3-none-any.whl")
GIT = pip("gitted", f"git+{PLACE}/gitted.git@{'g' * 40}")
FOLDER = pip("folder", "file:///home/me/folder/")
BACKEND = pip("backend", f"{PLACE}/backend-1-py3-none-any.whl?token=abc&v=1")
FOREIGN = pip("foreign", f"{PLACE}/foreign-1-py3-none-any.whl", "linux-aarch64")


def test_all_that_a_lock_names_for_the_platform(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path)
    manifest = msgspec.structs.replace(artifact.manifest, image=IMAGE)
    lock = Lock(
        path=tmp_path / "demo.conda-lock.yml",
        name="demo",
        packages=(CONDA, WHEEL, GIT, FOLDER, FOREIGN),
        content_hashes={},
        spec_digest="",
        options=SpecOptions(),
        digest="",
        build_requirements=tuple(
            BuildRequirements(name=item.name, platform=item.platform, wheels=wheels)
            for item, wheels in (
                (GIT, (BACKEND, WHEEL)),
                (FOLDER, (BACKEND,)),
                (FOREIGN, (FOREIGN,)),
            )
        ),
    )
    assert list_materials(manifest, lock) == (
        Material(name="conda-lock.yml", digest={"blake3": manifest.lock_digest}),
        Material(name="image", uri=IMAGE, digest={"sha256": "c" * 64}),
        Material(name="numpy", uri=CONDA.url, digest={"sha256": "b" * 64, "md5": "a" * 32}),
        Material(name="wheel", uri=WHEEL.url, digest={"sha256": "w" * 40}),
        Material(name="gitted", uri=GIT.url, digest={"gitCommit": "g" * 40}),
        Material(name="folder", uri=FOLDER.url, digest={"envferryTree": "f" * 40}),
        Material(
            name="backend",
            uri=f"{PLACE}/backend-1-py3-none-any.whl?v=1",  # what gives access is not told
            digest={"sha256": "b" * 40},
        ),
    )


def test_they_are_those_of_the_lock_that_the_manifest_binds(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path)
    data = artifact.lock_path.read_bytes()
    lock, numpy = read_materials(artifact.manifest, data)
    assert lock.digest == {"blake3": artifact.manifest.lock_digest}
    assert numpy.uri.endswith("/numpy-1.26.4-cp310-cp310-linux_x86_64.whl")
    with pytest.raises(IntegrityError, match="the manifest says"):
        read_materials(artifact.manifest, data.replace(b"1.26.4", b"1.26.5"))
