from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from envferry.artifacts import read_artifact, write_companions
from envferry.base.json import from_json, to_json
from envferry.errors import IntegrityError, NotFound, SpecError, UsageError
from envferry.models import Artifact, Manifest, TagRecord
from envferry.names import Ref
from envferry.process import find_program, run
from envferry.progress import Silent
from envferry.registry import Registry
from tests.conftest import require
from tests.support.artifacts import PLATFORM, make_artifact
from tests.support.published import attach

OTHER_ID = "0123456789ab"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(str(tmp_path / "registry"))


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return make_artifact(tmp_path / "packed")


def publish(registry: Registry, artifact: Artifact) -> bool:
    return registry.publish(artifact, progress=Silent())


def tag(registry: Registry, artifact: Artifact, name: str) -> TagRecord:
    return registry.move_tag("demo", PLATFORM, name, artifact.manifest.id)


def stored(registry: Registry, name: str) -> Path:
    """The one file of that name in a directory registry."""
    (path,) = Path(registry.url).rglob(name)
    return path


def changed(artifact: Artifact, **changes: object) -> Artifact:
    """The artifact with another manifest, written to disk."""
    manifest: Manifest = msgspec.structs.replace(artifact.manifest, **changes)
    other = Artifact(directory=artifact.directory, manifest=manifest)
    write_companions(other, artifact.lock_path.read_bytes())
    return other


def test_the_layout_of_the_format(registry: Registry, artifact: Artifact) -> None:
    assert publish(registry, artifact)
    tag(registry, artifact, "stable")
    id_ = artifact.manifest.id
    folder = f"v1/envs/demo/linux-64/{id_}"
    assert sorted(listed.key for listed in registry.store.list()) == [
        f"{folder}/conda-lock.yml",
        f"{folder}/demo-linux-64-{id_}.tar.zst",
        f"{folder}/demo-linux-64-{id_}.tar.zst.xxh128",
        f"{folder}/manifest.json",
        "v1/tags/demo/linux-64/stable",
    ]
    tag_file = stored(registry, "stable").read_bytes()
    assert from_json(tag_file, TagRecord, "tag") == TagRecord(id=id_, counter=1)


def test_xxhsum_accepts_the_sidecar(registry: Registry, artifact: Artifact) -> None:
    xxhsum = find_program("xxhsum")
    require("xxhsum", xxhsum)
    publish(registry, artifact)
    sidecar = stored(registry, "*.xxh128")
    assert "OK" in run([str(xxhsum), "-c", sidecar.name], cwd=sidecar.parent).stdout
    stored(registry, "*.tar.zst").write_bytes(b"other")
    assert run([str(xxhsum), "-c", sidecar.name], cwd=sidecar.parent, check=False).returncode == 1


def test_publishing_again_sends_nothing(registry: Registry, artifact: Artifact) -> None:
    assert publish(registry, artifact)
    assert not publish(registry, artifact)


def test_publishing_again_completes_what_is_missing(registry: Registry, artifact: Artifact) -> None:
    publish(registry, artifact)
    for name in ("manifest.json", "*.xxh128", "*.tar.zst"):
        stored(registry, name).unlink()
        assert publish(registry, artifact)
        assert stored(registry, name).exists()


def test_a_push_that_broke_off_is_taken_up(registry: Registry, artifact: Artifact) -> None:
    """Only the archive had arrived: it is read back, and kept because it is the same."""
    publish(registry, artifact)
    for name in ("manifest.json", "*.xxh128", "conda-lock.yml"):
        stored(registry, name).unlink()
    assert registry.environments() == ()
    before = stored(registry, "*.tar.zst").stat().st_ino
    assert publish(registry, artifact)
    assert stored(registry, "*.tar.zst").stat().st_ino == before


@pytest.mark.parametrize("left", [("*.xxh128",), ("manifest.json",), ()])
def test_another_archive_under_the_same_id(
    registry: Registry, artifact: Artifact, tmp_path: Path, left: tuple[str, ...]
) -> None:
    """The same files compressed differently have the same id and other bytes."""
    publish(registry, artifact)
    for name in {"*.xxh128", "manifest.json"} - set(left):
        stored(registry, name).unlink()
    other = make_artifact(tmp_path / "other", seed=2)
    facts = msgspec.structs.replace(other.manifest.archive, file=artifact.manifest.archive.file)
    other.archive_path.rename(other.directory / facts.file)
    forged = changed(other, id=artifact.manifest.id, archive=facts)
    forged.lock_path.write_bytes(other.lock_path.read_bytes())
    before = stored(registry, "*.tar.zst").read_bytes()
    with pytest.raises(IntegrityError, match=artifact.manifest.stem):
        publish(registry, forged)
    assert stored(registry, "*.tar.zst").read_bytes() == before


def test_the_same_archive_described_differently(registry: Registry, artifact: Artifact) -> None:
    publish(registry, artifact)
    assert not publish(registry, changed(artifact, tools={"uv": "another"}))
    with pytest.raises(IntegrityError, match="different version"):
        publish(registry, changed(artifact, version="2.0"))


def test_tags_move_and_count(registry: Registry, artifact: Artifact, tmp_path: Path) -> None:
    second = make_artifact(tmp_path / "packed", seed=2)
    publish(registry, artifact)
    publish(registry, second)
    assert tag(registry, artifact, "stable").counter == 1
    assert tag(registry, artifact, "stable").counter == 1
    assert tag(registry, second, "stable").counter == 2
    tag(registry, artifact, "old")
    assert registry.tags("demo", PLATFORM) == {
        "old": artifact.manifest.id,
        "stable": second.manifest.id,
    }
    assert registry.resolve(Ref.parse("demo@stable"), PLATFORM) == second.manifest.id
    assert registry.resolve(Ref.parse(f"demo@{artifact.manifest.id}"), PLATFORM)


def test_a_tag_needs_an_artifact_and_a_name_of_its_own(
    registry: Registry, artifact: Artifact
) -> None:
    publish(registry, artifact)
    with pytest.raises(NotFound, match=OTHER_ID):
        registry.move_tag("demo", PLATFORM, "stable", OTHER_ID)
    for name in (OTHER_ID, "../x", ""):
        with pytest.raises(UsageError):
            tag(registry, artifact, name)
    assert registry.tags("demo", PLATFORM) == {}


def test_racing_tags_lose_no_move(registry: Registry, tmp_path: Path) -> None:
    """Every move is one count, and all end right."""
    artifacts = [make_artifact(tmp_path / "packed", seed=seed) for seed in range(8)]
    for artifact in artifacts:
        publish(registry, artifact)

    def move(artifact: Artifact) -> tuple[int, str]:
        moved = tag(registry, artifact, "stable")
        return moved.counter, moved.id

    with ThreadPoolExecutor(8) as pool:
        moves = sorted(pool.map(move, artifacts))
    assert [counter for counter, _ in moves] == list(range(1, 9))
    assert registry.resolve(Ref.parse("demo@stable"), PLATFORM) == moves[-1][1]


def test_a_file_is_not_a_registry(tmp_path: Path) -> None:
    (tmp_path / "demo.tar.zst").touch()
    registry = Registry.open(str(tmp_path / "demo.tar.zst"))
    with pytest.raises(NotFound, match=r"demo\.tar\.zst is a file, not a directory"):
        registry.environments()


def test_an_unknown_ref_says_what_there_is(registry: Registry, artifact: Artifact) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        registry.resolve(Ref.parse("demo"), PLATFORM)
    publish(registry, artifact)
    tag(registry, artifact, "stable")
    for text in ("demo", "demo@nightly", f"demo@{OTHER_ID}"):
        with pytest.raises(NotFound) as caught:
            registry.resolve(Ref.parse(text), PLATFORM)
        assert f"stable ({artifact.manifest.id})" in caught.value.message
    with pytest.raises(NotFound, match="it holds demo"):
        registry.resolve(Ref.parse("dmeo"), PLATFORM)
    with pytest.raises(NotFound, match="linux-aarch64: it holds demo for linux-64 only") as caught:
        registry.resolve(Ref.parse("demo@stable"), "linux-aarch64")
    assert "platforms" in caught.value.hint


def test_another_folder_than_a_registry(tmp_path: Path) -> None:
    """A disk, but not the one that was meant."""
    (tmp_path / "v1/envs").mkdir(parents=True)
    (tmp_path / "holiday.jpg").write_bytes(b"")
    for extra in ("", "v1/envs/odd"):
        if extra:
            (tmp_path / extra).write_bytes(b"")
        with pytest.raises(NotFound) as caught:
            Registry.open(str(tmp_path)).resolve(Ref.parse("demo@stable"), PLATFORM)
        assert str(tmp_path) in caught.value.message
    (tmp_path / "v1/envs/odd").unlink()
    with pytest.raises(NotFound, match="no environments at all") as caught:
        Registry.open(str(tmp_path)).resolve(Ref.parse("demo@stable"), PLATFORM)
    assert "check the path" in caught.value.hint


def test_lists_environments(registry: Registry, artifact: Artifact, tmp_path: Path) -> None:
    publish(registry, artifact)
    publish(registry, make_artifact(tmp_path / "packed", 2000, seed=2))
    tag(registry, artifact, "stable")
    tag(registry, artifact, "v1")
    entries = {entry.id: entry for entry in registry.environments()}
    assert len(entries) == 2
    entry = entries[artifact.manifest.id]
    assert (entry.name, entry.platform, entry.size, entry.packages, entry.tags) == (
        "demo",
        PLATFORM,
        1000,
        1,
        ("stable", "v1"),
    )
    assert registry.environments("demo") == registry.environments()
    assert registry.environments("other") == ()


def test_a_manifest_in_the_wrong_place(registry: Registry, artifact: Artifact) -> None:
    publish(registry, artifact)
    path = stored(registry, "manifest.json")
    wrong = path.parent.with_name(OTHER_ID) / path.name
    wrong.parent.mkdir()
    path.rename(wrong)
    with pytest.raises(IntegrityError, match=OTHER_ID):
        registry.manifest("demo", PLATFORM, OTHER_ID)


def test_a_manifest_cannot_lead_elsewhere(registry: Registry, artifact: Artifact) -> None:
    publish(registry, artifact)
    facts = msgspec.structs.replace(artifact.manifest.archive, file="../../../etc/passwd")
    evil = msgspec.structs.replace(artifact.manifest, archive=facts)
    stored(registry, "manifest.json").write_bytes(to_json(evil))
    with pytest.raises(IntegrityError, match="passwd"):
        registry.manifest("demo", PLATFORM, artifact.manifest.id)


@pytest.mark.parametrize("data", [b"", b"{", b'{"schema": 1}', b"\xff"])
def test_damaged_records(registry: Registry, artifact: Artifact, data: bytes) -> None:
    publish(registry, artifact)
    tag(registry, artifact, "stable")
    stored(registry, "stable").write_bytes(data)
    with pytest.raises(IntegrityError, match="stable"):
        registry.resolve(Ref.parse("demo@stable"), PLATFORM)
    stored(registry, "stable").unlink()
    stored(registry, "manifest.json").write_bytes(data)
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        registry.environments()


def test_a_newer_schema(registry: Registry, artifact: Artifact) -> None:
    publish(registry, artifact)
    tag(registry, artifact, "stable")
    stored(registry, "stable").write_bytes(b'{"schema": 2, "target": "x"}')
    with pytest.raises(SpecError, match="schema 2"):
        registry.resolve(Ref.parse("demo@stable"), PLATFORM)


def test_attachments_are_written_once(registry: Registry, artifact: Artifact) -> None:
    publish(registry, artifact)
    manifest = artifact.manifest
    assert registry.attachment(manifest, "attestation.json") is None
    attach(registry, manifest, "attestation.json", b"{}")
    attach(registry, manifest, "attestation.json", b"{}")
    assert registry.attachment(manifest, "attestation.json") == b"{}"
    with pytest.raises(IntegrityError, match="attestation"):
        attach(registry, manifest, "attestation.json", b"{ }")
    with pytest.raises(UsageError):
        attach(registry, manifest, "manifest.json", b"")


def test_reads_an_artifact_by_either_file(artifact: Artifact) -> None:
    assert read_artifact(artifact.archive_path) == artifact
    assert read_artifact(artifact.manifest_path) == artifact


def test_reads_an_artifact_in_a_registry(registry: Registry, artifact: Artifact) -> None:
    publish(registry, artifact)
    assert read_artifact(stored(registry, "*.tar.zst")).manifest == artifact.manifest


def test_artifacts_that_are_not_whole(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not an artifact"):
        read_artifact(artifact.lock_path)
    renamed = tmp_path / "renamed.tar.zst"
    artifact.archive_path.rename(renamed)
    with pytest.raises(NotFound, match=r"\.tar\.zst is missing"):
        read_artifact(artifact.manifest_path)
    artifact.manifest_path.rename(tmp_path / "renamed.manifest.json")
    with pytest.raises(IntegrityError, match="not renamed"):
        read_artifact(renamed)
    (tmp_path / "renamed.manifest.json").unlink()
    with pytest.raises(NotFound, match=r"renamed\.manifest\.json does not exist"):
        read_artifact(renamed)
