"""Name, platform, prefix and id of an archive are those of its manifest, everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from envferry.archive.reader import FileSource
from envferry.artifacts import read_lock, write_companions
from envferry.errors import IntegrityError
from envferry.install.stage import InstallOptions, install_artifact
from envferry.models import Artifact
from envferry.names import Ref
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.check import check_registry
from envferry.registry.fetch import fetch_artifact
from envferry.registry.push import push_artifact
from tests.support.artifacts import make_artifact

if TYPE_CHECKING:
    from pathlib import Path

LIES = (
    {"name": "scratch"},
    {"platform": "linux-aarch64"},
    {"prefix": "/opt/conda/envs/prod"},
    {"id": "0123456789ab"},
)


def lying(directory: Path, changes: dict[str, str]) -> Artifact:
    """Return a sound archive under a manifest that says something else of it."""
    sound = make_artifact(directory / "sound")
    manifest = msgspec.structs.replace(sound.manifest, **changes)
    file = f"{manifest.stem}.tar.zst"
    facts = msgspec.structs.replace(manifest.archive, file=file)
    manifest = msgspec.structs.replace(manifest, archive=facts)
    artifact = Artifact(directory=directory, manifest=manifest)
    artifact.archive_path.write_bytes(sound.archive_path.read_bytes())
    write_companions(artifact, read_lock(sound))
    return artifact


@pytest.mark.parametrize("changes", LIES, ids=lambda changes: next(iter(changes)))
def test_a_manifest_that_names_something_else_gets_nowhere(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    artifact = lying(tmp_path / "packed", changes)
    manifest = artifact.manifest
    registry = Registry.open(str(tmp_path / "registry"))
    ((what, claimed),) = changes.items()
    expected = f"{what} is '.*', expected '{claimed}'"
    with pytest.raises(IntegrityError, match=expected):
        push_artifact(artifact, registry=registry, tags=(), progress=Silent())
    assert not list((tmp_path / "registry").rglob("*.tar.zst"))

    registry.publish(artifact, progress=Silent())  # as another program would
    for read_bytes in (False, True):
        report = check_registry(registry, read_bytes=read_bytes, progress=Silent())
        assert [finding.key.rpartition("/")[2] for finding in report.findings] == [
            manifest.archive.file
        ]
        assert f"{what} is " in report.findings[0].what
    with pytest.raises(IntegrityError, match=expected):
        fetch_artifact(
            Ref(name=manifest.name, version=manifest.id),
            registry=registry,
            directory=tmp_path / "fetched",
            platform=manifest.platform,
            progress=Silent(),
        )
    assert not list((tmp_path / "fetched").glob("demo*"))
    options = InstallOptions(envs_dir=tmp_path / "envs")
    with FileSource(artifact.archive_path) as source, pytest.raises(IntegrityError, match=expected):
        install_artifact(source, manifest, options=options, progress=Silent())
    assert not (tmp_path / "envs").exists()
