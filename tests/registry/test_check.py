"""Every fault that a registry can have is found, by its key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
import zstandard
from blake3 import blake3
from msgspec.structs import replace
from xxhash import xxh3_128_hexdigest

from envferry.archive.index import FileEntry, FrameEntry, encode_index
from envferry.archive.reader import Archive, FileSource
from envferry.archive.seek_table import encode_seek_table
from envferry.archive.tar import tar_header
from envferry.artifacts import write_companions
from envferry.base.json import to_json
from envferry.errors import IntegrityError, NotFound, StoreError
from envferry.models import TagRecord
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.check import check_registry
from envferry.registry.push import push_artifact, tag_published
from envferry.transfer.mirror import MirrorRequest, mirror_registry
from envferry.trust.host_trust import Trust
from envferry.trust.signing import Signer, generate_key, parse_signing_key
from tests.support.artifacts import PLATFORM, make_artifact
from tests.support.published import attach

if TYPE_CHECKING:
    from collections.abc import Callable

    from envferry.models import Artifact
    from envferry.registry.check import Report

OTHER_ID = "0123456789ab"


@pytest.fixture
def signer() -> Signer:
    key = parse_signing_key(generate_key()[0], "test")
    return Signer(keys=(key,), who="test@host", time="2026-01-01T00:00:00Z")


@pytest.fixture
def registry(tmp_path: Path, signer: Signer) -> Registry:
    """A registry with two signed artifacts and a signed tag."""
    opened = Registry.open(str(tmp_path / "registry"), signer=signer)
    for seed in (1, 2):
        artifact = make_artifact(tmp_path / "packed", seed=seed)
        opened.publish(artifact, progress=Silent())
        attach(opened, artifact.manifest, "sbom.cdx.json", b'{"bomFormat": "CycloneDX"}')
        opened.move_tag("demo", PLATFORM, "stable", artifact.manifest.id)
    return opened


@pytest.fixture
def first(tmp_path: Path) -> Artifact:
    return make_artifact(tmp_path / "again", seed=1)


def check(registry: Registry, *, read_bytes: bool = False, name: str | None = None) -> Report:
    return check_registry(registry, name, read_bytes=read_bytes, progress=Silent())


def found(report: Report) -> list[tuple[str, str]]:
    return [(one.severity, one.key.rpartition("/")[2]) for one in report.findings]


def trusting(registry: Registry, signer: Signer) -> Registry:
    return replace(registry, trust=Trust(keys=tuple(key.public for key in signer.keys)))


def test_a_sound_registry(registry: Registry, signer: Signer) -> None:
    report = check(registry, read_bytes=True)
    assert report.findings == ()
    assert (report.artifacts, report.tags, report.read_bytes) == (2, 1, 2000)
    assert check(trusting(registry, signer)).findings == ()


def removed(path: Path) -> None:
    path.unlink()


def garbled(path: Path) -> None:
    path.write_bytes(b"{" + path.read_bytes()[1:-1] + b"?")


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


@pytest.mark.parametrize(
    ("file", "fault", "read_bytes"),
    [
        ("manifest.json", garbled, False),
        ("{archive}", removed, False),
        ("{archive}", longer, False),
        ("{archive}", garbled, True),
        ("{archive}.xxh128", removed, False),
        ("{archive}.xxh128", longer, False),
        ("conda-lock.yml", removed, False),
        ("conda-lock.yml", garbled, False),
        ("sbom.cdx.json", garbled, False),
        ("attestation.json", garbled, False),
    ],
)
def test_each_fault_is_named_and_can_be_mended(
    registry: Registry,
    first: Artifact,
    file: str,
    fault: Callable[[Path], None],
    read_bytes: bool,
) -> None:
    """What the mending line says is done then, and nothing is left to find."""
    name = file.format(archive=first.manifest.archive.file)
    path = Path(registry.url, "v1/envs/demo", PLATFORM, first.manifest.id, name)
    before = path.read_bytes()
    fault(path)
    report = check(registry, read_bytes=read_bytes)
    assert found(report) == [("broken", name)]
    assert report.broken == 1
    assert "push" in report.findings[0].mend
    path.unlink(missing_ok=True)
    registry.publish(first, progress=Silent())
    if name == "sbom.cdx.json":
        attach(registry, first.manifest, name, before)
    assert check(registry, read_bytes=True).findings == ()


def test_damage_that_only_reading_finds(registry: Registry, first: Artifact) -> None:
    path = next(Path(registry.url).rglob(first.manifest.archive.file))
    damaged = bytearray(path.read_bytes())
    damaged[200] ^= 1  # in a frame of files: the index is read in any case
    path.write_bytes(damaged)
    assert check(registry).findings == ()
    assert "XXH3-128 is" in check(registry, read_bytes=True).findings[0].what


def test_a_damaged_index_is_found_without_reading_all(registry: Registry, first: Artifact) -> None:
    facts = first.manifest.archive
    path = next(Path(registry.url).rglob(facts.file))
    data = bytearray(path.read_bytes())
    data[facts.index_offset + facts.index_size // 2] ^= 1
    path.write_bytes(data)
    report = check(registry)
    assert found(report) == [("broken", facts.file)]
    assert report.read_bytes == 0


def test_all_faults_at_once(registry: Registry) -> None:
    for path in Path(registry.url).rglob("*.tar.zst"):
        path.unlink()
    for path in Path(registry.url).rglob("conda-lock.yml"):
        path.unlink()
    assert check(registry).broken == 4


def test_a_manifest_of_another_place(registry: Registry, first: Artifact) -> None:
    folder = Path(registry.url, "v1/envs/demo", PLATFORM, first.manifest.id)
    folder.rename(folder.with_name(OTHER_ID))
    report = check(registry)
    assert ("broken", "manifest.json") in found(report)
    assert (
        first.manifest.id in next(one for one in report.findings if one.severity == "broken").what
    )


def test_tags(registry: Registry, signer: Signer) -> None:
    path = Path(registry.url, "v1/tags/demo", PLATFORM, "stable")
    path.write_bytes(to_json(TagRecord(id=OTHER_ID, counter=9)))
    (finding,) = check(registry).findings
    assert (finding.severity, finding.key) == ("broken", f"v1/tags/demo/{PLATFORM}/stable")
    assert "envferry tag demo@ID stable" in finding.mend
    (finding,) = check(trusting(registry, signer)).findings
    assert "not signed" in finding.what
    path.write_bytes(b"?")
    assert check(registry).broken == 1


def test_unsigned_where_keys_are_trusted(registry: Registry, first: Artifact) -> None:
    stranger = parse_signing_key(generate_key()[0], "stranger").public
    unsigned = replace(registry, trust=Trust(keys=(stranger,)))
    names = found(check(unsigned))
    assert names == [("broken", "attestation.json")] * 2 + [("broken", "stable")]
    next(Path(registry.url).rglob(f"{first.manifest.id}/attestation.json")).unlink()
    assert check(registry).findings == ()
    assert check(unsigned).broken == 3


def test_an_attestation_about_something_else(registry: Registry, first: Artifact) -> None:
    one, other = sorted(Path(registry.url).rglob("attestation.json"))
    one.write_bytes(other.read_bytes())
    assert found(check(registry)) == [("broken", "attestation.json")]
    envelope = msgspec.json.decode(other.read_bytes())
    other.write_bytes(msgspec.json.encode({**envelope, "signatures": []}))
    assert check(registry).broken == 2


def test_leftovers_break_nothing(registry: Registry, first: Artifact) -> None:
    root = Path(registry.url)
    (root / "notes.txt").write_text("mine")
    (root / f"v1/envs/demo/{PLATFORM}/{first.manifest.id}/core").write_text("dump")
    (root / f"v1/envs/demo/{PLATFORM}/{OTHER_ID}").mkdir()
    (root / f"v1/envs/demo/{PLATFORM}/{OTHER_ID}/conda-lock.yml").write_text("")
    report = check(registry)
    assert report.broken == 0
    assert {one.severity for one in report.findings} == {"leftover"}
    assert {one.key for one in report.findings} == {
        "notes.txt",
        f"v1/envs/demo/{PLATFORM}/{OTHER_ID}/",
        f"v1/envs/demo/{PLATFORM}/{first.manifest.id}/core",
    }


def test_one_environment_only(registry: Registry) -> None:
    (Path(registry.url) / "notes.txt").write_text("mine")
    assert check(registry, name="demo").findings == ()


def test_a_store_that_cannot_be_listed() -> None:
    with pytest.raises(StoreError, match="cannot be listed"):
        check(Registry.open("http://127.0.0.1:9/none"))


def test_an_environment_that_is_not_there_is_not_in_order(registry: Registry) -> None:
    with pytest.raises(NotFound, match="dmeo"):
        check_registry(registry, "dmeo", read_bytes=False, progress=Silent())


def test_a_later_schema_is_not_to_be_removed(registry: Registry, first: Artifact) -> None:
    (path,) = Path(registry.url).rglob(f"{first.manifest.id}/manifest.json")
    path.write_bytes(path.read_bytes().replace(b'"schema": 1', b'"schema": 2'))
    report = check_registry(registry, read_bytes=False, progress=Silent())
    (finding,) = (one for one in report.findings if one.key.endswith("manifest.json"))
    assert "has schema 2, this envferry reads schema 1" in finding.what
    assert finding.mend == "install a newer envferry"


def with_link(artifact: Artifact, target: str) -> Artifact:
    """Return the artifact with a link in its index, and manifest and sums that are right."""
    path = artifact.archive_path
    with FileSource(path) as source:
        archive = Archive(source)
    good, index = path.read_bytes(), archive.index
    entry = FileEntry(path="aaa", type="symlink", mode=0o777, link=target, offset=512)
    moved = tuple(msgspec.structs.replace(one, offset=one.offset + 512) for one in index.files)
    raw = tar_header(entry, index.mtime)
    compressed = zstandard.ZstdCompressor(write_checksum=True).compress(raw)
    frame = FrameEntry(
        size=len(compressed), tar_size=512, xxh128="0" * 32, blake3=blake3(compressed).hexdigest()
    )
    first, *others = index.packages
    evil = msgspec.structs.replace(
        index,
        files=(entry, *moved),
        frames=(frame, *index.frames),
        tar_size=index.tar_size + 512,
        packages=(
            msgspec.structs.replace(first, files=first.files + 1, frames=first.frames + 1),
            *(msgspec.structs.replace(one, first_file=one.first_file + 1) for one in others),
        ),
    )
    index_frame = encode_index(evil)
    sizes = [(one.size, one.tar_size) for one in evil.frames]
    content = compressed + good[: sum(one.size for one in index.frames)]
    data = content + index_frame + encode_seek_table([*sizes, (len(index_frame), 0)])
    path.write_bytes(data)
    facts = msgspec.structs.replace(
        artifact.manifest.archive,
        size=len(data),
        xxh128=xxh3_128_hexdigest(data),
        blake3=blake3(data).hexdigest(),
        tar_size=evil.tar_size,
        index_offset=len(content),
        index_size=len(index_frame),
        index_blake3=blake3(index_frame).hexdigest(),
    )
    manifest = msgspec.structs.replace(artifact.manifest, archive=facts)
    lying = replace(artifact, manifest=manifest)
    write_companions(lying, artifact.lock_path.read_bytes())
    return lying


def test_an_archive_that_no_host_installs(registry: Registry, tmp_path: Path) -> None:
    """Made elsewhere, by what checks less: the bytes are the manifest's, the tree is not safe."""
    artifact = with_link(make_artifact(tmp_path / "evil", seed=3), "/etc/passwd")
    manifest = artifact.manifest
    with pytest.raises(IntegrityError, match="outside"):
        push_artifact(artifact, registry=registry, tags=("stable",), progress=Silent())
    registry.publish(artifact, progress=Silent())
    for read_bytes in (False, True):
        (finding,) = check(registry, read_bytes=read_bytes).findings
        assert finding.severity == "broken"
        assert finding.key.endswith(manifest.archive.file)
        assert "outside" in finding.what
    with pytest.raises(IntegrityError, match="outside"):
        tag_published(manifest, registry=registry, tags=("stable",))
    target = Registry.open(str(tmp_path / "target"))
    order = MirrorRequest(names=(manifest.name,))
    with pytest.raises(IntegrityError, match="outside"):
        mirror_registry(registry, target, order, journals=tmp_path / "journals", progress=Silent())
    assert manifest.id not in target.ids(manifest.name, manifest.platform)
