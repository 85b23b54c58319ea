"""Registries in folders, and what is fetched, follow the umask: each file and each folder."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from envferry.names import Ref
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.fetch import fetch_artifact
from envferry.stores.oci.image_layout import LayoutRepositories
from tests.support.artifacts import PLATFORM, make_artifact
from tests.support.keys import OURS, signer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=[0o022, 0o027, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """Work with a umask, and give it back."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def publish(registry: Registry, artifact_folder: Path) -> None:
    """Publish an artifact, as `push` does, and move a tag twice."""
    for seed in (1, 2):
        artifact = make_artifact(artifact_folder, seed=seed)
        registry.publish(artifact, progress=Silent())
        registry.move_tag("demo", PLATFORM, "stable", artifact.manifest.id)


def test_every_file_and_folder_follows_the_umask(tmp_path: Path, umask: int) -> None:
    registry = Registry.open(str(tmp_path / "of/ours/registry"), signer=signer(OURS))
    publish(registry, tmp_path / "dist")
    LayoutRepositories.create(tmp_path / "images/layout")
    publish(Registry.open(str(tmp_path / "images/layout")), tmp_path / "dist")
    fetch_artifact(
        Ref.parse("demo@stable"),
        registry=registry,
        directory=tmp_path / "fetched/here",
        platform=PLATFORM,
        progress=Silent(),
    )
    for top in ("of", "images", "fetched"):
        found = [tmp_path / top, *(tmp_path / top).rglob("*")]
        assert len(found) > 5
        for path in found:
            expected = (0o777 if path.is_dir() else 0o666) & ~umask
            assert (path, oct(stat.S_IMODE(path.stat().st_mode))) == (path, oct(expected))
