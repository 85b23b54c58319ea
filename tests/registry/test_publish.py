"""One protocol publishes artifacts, wherever they come from: one order, the same refusals."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from blake3 import blake3

from envferry.artifacts import ATTESTATION, sbom_path
from envferry.base.files import write_bytes
from envferry.base.json import to_json
from envferry.errors import IntegrityError, StoreError
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.push import push_artifact
from envferry.stores.directory import DirectoryStore
from envferry.stores.port import LostRace, ignore
from envferry.transfer.mirror import MirrorRequest, mirror_registry
from tests.support.artifacts import make_artifact
from tests.support.keys import OURS, THEIRS, signer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from envferry.models import Artifact
    from envferry.stores.port import KnownRange
    from envferry.stores.source import ContentSource


class RecordingStore(DirectoryStore, frozen=True):
    """A directory that notes what is written, in order; of an attestation every race is lost."""

    written: list[str] = msgspec.field(default_factory=list)
    loses: bool = False

    def create(self, key: str, data: bytes) -> None:
        """Write a value, and note it."""
        DirectoryStore.create(self, key, data)
        self._note(key)

    def create_from_file(
        self, key: str, path: Path, advance: Callable[[int], None] = ignore
    ) -> None:
        """Write a value, and note it."""
        DirectoryStore.create_from_file(self, key, path, advance)
        self._note(key)

    def receive(
        self,
        key: str,
        content: ContentSource,
        advance: Callable[[int], None] = ignore,
        known: Sequence[KnownRange] = (),
    ) -> None:
        """Write a value, and note it."""
        DirectoryStore.receive(self, key, content, advance, known)
        self._note(key)

    def replace(self, key: str, data: bytes, expected: str | None) -> str:
        """Write a value, and note it."""
        if self.loses and key.endswith(ATTESTATION):
            msg = "somebody else was faster"
            raise LostRace(msg)
        version = DirectoryStore.replace(self, key, data, expected)
        self._note(key)
        return version

    def _note(self, key: str) -> None:
        self.written.append(key.rpartition("/")[2])


@dataclass(frozen=True, slots=True)
class Way:
    """A way into a registry: a signed artifact of this machine, or of another registry."""

    home: Path
    verb: str

    def artifact(self) -> Artifact:
        """Return a signed artifact on this machine, which a registry also holds."""
        artifact = make_artifact(self.home / "packed")
        sbom_path(artifact).write_text('{"bomFormat": "CycloneDX"}')
        source = Registry.open(str(self.home / "source"), signer=signer(OURS))
        push_artifact(artifact, registry=source, tags=(), progress=Silent())
        [attestation] = Path(source.url).rglob(ATTESTATION)
        shutil.copy(attestation, artifact.directory / f"{artifact.manifest.stem}.{ATTESTATION}")
        return artifact

    def bring(self, artifact: Artifact, store: DirectoryStore) -> None:
        """Bring the artifact into another registry."""
        target = Registry(store)
        if self.verb == "push":
            push_artifact(artifact, registry=target, tags=(), progress=Silent())
        else:
            source = Registry.open(str(self.home / "source"))
            journals = self.home / "journals"
            mirror_registry(source, target, MirrorRequest(), journals=journals, progress=Silent())


@pytest.fixture(params=["push", "mirror"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Way:
    return Way(tmp_path, request.param)


def test_the_order_of_writes_is_that_of_the_format(way: Way) -> None:
    """Nothing is published before all is there; signatures are over what is published."""
    artifact, store = way.artifact(), RecordingStore(way.home / "target")
    way.bring(artifact, store)
    archive = artifact.archive_path.name
    assert store.written == [
        archive,
        f"{archive}.xxh128",
        "conda-lock.yml",
        "sbom.cdx.json",
        "manifest.json",
        "attestation.json",
        "latest",
    ]
    store.written.clear()
    way.bring(artifact, store)
    assert store.written == []


def test_signatures_that_cannot_be_written_are_an_error(way: Way) -> None:
    store = RecordingStore(way.home / "target", loses=True)
    with pytest.raises(StoreError, match=r"attestation\.json in .* keeps being changed"):
        way.bring(way.artifact(), store)
    assert "latest" not in store.written


def test_signatures_over_another_artifact_are_not_published(way: Way) -> None:
    artifact, store = way.artifact(), RecordingStore(way.home / "target")
    other = make_artifact(way.home / "other", seed=2)
    elsewhere = Registry.open(str(way.home / "elsewhere"), signer=signer(THEIRS))
    push_artifact(other, registry=elsewhere, tags=(), progress=Silent())
    [wrong] = Path(elsewhere.url).rglob(ATTESTATION)
    for path in (*(way.home / "packed").glob("*attestation.json"),
                 *(way.home / "source").rglob(ATTESTATION)):  # fmt: skip
        shutil.copy(wrong, path)
    with pytest.raises(IntegrityError):
        way.bring(artifact, store)
    assert store.written == []


def test_signatures_of_both_sides_are_kept(way: Way) -> None:
    """What the target has of the same statement stays, and what comes is added."""
    artifact, store = way.artifact(), RecordingStore(way.home / "target")
    way.bring(artifact, store)
    home = Registry.open(str(way.home / "source"))
    push_artifact(artifact, registry=Registry(home.store, signer(OURS, THEIRS)), tags=(),
                  progress=Silent())  # fmt: skip
    [attestation] = (way.home / "source").rglob(ATTESTATION)
    shutil.copy(attestation, artifact.directory / f"{artifact.manifest.stem}.{ATTESTATION}")
    store.written.clear()
    way.bring(artifact, store)
    assert store.written == ["attestation.json"]
    [joined] = (way.home / "target").rglob(ATTESTATION)
    assert joined.read_bytes() == attestation.read_bytes()


class OvertakenStore(DirectoryStore, frozen=True):
    """A directory in which another push of the same artifact ends just before ours would."""

    others: list[Artifact] = msgspec.field(default_factory=list)

    def create(self, key: str, data: bytes) -> None:
        """Let the other push end before a manifest is written, then write."""
        if key.endswith("/manifest.json") and self.others:
            other, registry = self.others.pop(), Registry.open(str(self.root))
            push_artifact(other, registry=registry, tags=(), progress=Silent())
        DirectoryStore.create(self, key, data)


@pytest.mark.parametrize("lock", ["the same", "another"])
def test_a_manifest_that_another_push_wrote_meanwhile(tmp_path: Path, lock: str) -> None:
    """Manifests that only differ in how it was made are of one artifact, also at the same time."""
    ours = make_artifact(tmp_path / "ours")
    facts = msgspec.structs.replace(ours.manifest.archive, tar_sha256="f" * 64)
    digest = ours.manifest.lock_digest if lock == "the same" else blake3(b"another").hexdigest()
    manifest = msgspec.structs.replace(ours.manifest, archive=facts, lock_digest=digest)
    shutil.copytree(ours.directory, tmp_path / "theirs")
    theirs = msgspec.structs.replace(ours, directory=tmp_path / "theirs", manifest=manifest)
    write_bytes(theirs.manifest_path, to_json(manifest))
    if lock == "another":
        theirs.lock_path.write_bytes(b"another")
    registry = Registry(OvertakenStore(tmp_path / "registry", others=[theirs]))
    if lock == "the same":
        push_artifact(ours, registry=registry, tags=(), progress=Silent())
    else:
        with pytest.raises(IntegrityError):
            push_artifact(ours, registry=registry, tags=(), progress=Silent())
