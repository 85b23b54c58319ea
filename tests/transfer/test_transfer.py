"""Exports, deltas, split folders and mirrors between directories, and what goes wrong with them."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
import pytest

from envferry.archive.reader import TAIL_BYTES
from envferry.artifacts import checksum_line, sbom_path
from envferry.base.json import to_json
from envferry.cli.export import export, parse_part_size
from envferry.cli.main import envferry, run
from envferry.errors import IntegrityError, NotFound, StoreError, TargetOccupied, UsageError
from envferry.names import Ref, current_platform
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.check import check_registry
from envferry.registry.fetch import fetch_artifact
from envferry.registry.prune import RetentionPolicy, Scope, carry_out, plan_prune
from envferry.registry.push import push_artifact
from envferry.stores.directory import DirectoryStore
from envferry.stores.opening import open_store
from envferry.stores.receive import REQUEST_BYTES
from envferry.stores.split import SplitStore
from envferry.transfer.apply import Applied, apply_folder
from envferry.transfer.delta_check import check_deltas
from envferry.transfer.deltas import Base, Delta
from envferry.transfer.export import Exported, ExportRequest, export_artifacts
from envferry.transfer.mirror import Mirrored, MirrorRequest, mirror_registry, plan_mirror
from tests.support.keys import OURS, THEIRS, signer, trusting
from tests.support.packed import pack, random_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from envferry.models import Artifact, Manifest
    from envferry.stores.port import Store
    from envferry.trust.signing import SigningKey

PLATFORM = current_platform()
BIG = random_bytes(1, REQUEST_BYTES + 1_000_000)
SMALL = random_bytes(2, 300_000)
SPLIT = 3_000_000


class Sites:
    """A build machine's registry, a disk, and a site's registry."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.home, self.disk, self.site = (
            str(tmp_path / name) for name in ("home", "disk", "site")
        )

    def push(self, tool: bytes, *tags: str, keys: tuple[SigningKey, ...] = ()) -> Artifact:
        """Push an environment with a large package, and a small one that changes."""
        artifact = pack(self.tmp_path / "packed", {"big": BIG, "tool": tool})
        sbom_path(artifact).write_text('{"bomFormat": "CycloneDX"}')
        registry = Registry.open(self.home, signer=signer(*keys) if keys else None)
        push_artifact(artifact, registry=registry, tags=tags, progress=Silent())
        return artifact

    def export(self, *refs: str, trust: SigningKey | None = None, **options: Any) -> Exported:
        """Export to the disk."""
        since = tuple(Ref.parse(ref) for ref in options.pop("since", ()))
        order = ExportRequest(
            refs=tuple(Ref.parse(ref) for ref in refs), platform=PLATFORM, since=since, **options
        )
        source = Registry.open(self.home, trust=trusting(trust) if trust else None)
        return export_artifacts(
            source, Path(self.disk), order, journals=self.journals, progress=Silent()
        )

    def apply(self, trust: SigningKey | None = None) -> Applied:
        """Apply the disk to the site."""
        source = Registry.open(self.disk, trust=trusting(trust) if trust else None)
        site = Registry.open(self.site)
        return apply_folder(source, site, journals=self.journals, progress=Silent())

    def mirror(self, **options: Any) -> Mirrored:
        """Mirror home to the site."""
        order = MirrorRequest(**options)
        here, there = Registry.open(self.home), Registry.open(self.site)
        return mirror_registry(here, there, order, journals=self.journals, progress=Silent())

    @property
    def journals(self) -> Path:
        """Where uploads are noted."""
        return self.tmp_path / "journals"

    def install_bytes(self, place: str, ref: str, trust: SigningKey | None = None) -> bytes:
        """Return the archive that a host gets."""
        registry = Registry.open(place, trust=trusting(trust) if trust else None)
        into = self.tmp_path / "fetched"
        into.mkdir(exist_ok=True)
        found = fetch_artifact(
            Ref.parse(ref), registry=registry, directory=into, platform=PLATFORM, progress=Silent()
        )
        return found.archive_path.read_bytes()


@pytest.fixture
def sites(tmp_path: Path) -> Sites:
    return Sites(tmp_path)


def the(directory: str, pattern: str) -> Path:
    (path,) = Path(directory).rglob(pattern)
    return path


def flip(path: Path, offset: int = 1000) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def files(directory: str) -> dict[str, bytes]:
    """Return all files of a registry; none is hidden, none is left over."""
    root = Path(directory)
    found = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != ".lock"}


def require_in_order(url: str) -> None:
    report = check_registry(Registry.open(url), read_bytes=True, progress=Silent())
    assert not [finding for finding in report.findings if finding.severity == "broken"]


def test_a_mirror_is_the_same_registry(sites: Sites) -> None:
    sites.push(SMALL, "stable", keys=(OURS,))
    sites.push(SMALL[1:], keys=(OURS,))
    found = sites.mirror()
    assert len(found.copied) == 2
    assert {tag.outcome for tag in found.tags} == {"moved"}
    assert files(sites.site) == files(sites.home)
    again = sites.mirror()
    assert (again.copied, again.present) == ((), 2)
    assert {tag.outcome for tag in again.tags} == {"same"}


def test_a_foreign_file_is_not_mirrored_again_and_again(sites: Sites) -> None:
    sites.push(SMALL)
    (the(sites.home, "manifest.json").parent / "Thumbs.db").touch()
    sites.mirror()
    assert sites.mirror().present == 1
    assert not list(Path(sites.site).rglob("Thumbs.db"))


def test_a_mirror_copies_what_is_asked_for(sites: Sites) -> None:
    first = sites.push(SMALL, "stable")
    second = sites.push(SMALL[1:])
    third = sites.push(SMALL[2:])
    here, there = Registry.open(sites.home), Registry.open(sites.site)
    plan = plan_mirror(here, there, MirrorRequest(tags=("stable",))).report()
    assert plan.copied == (first.manifest.stem,)
    assert plan.copied_bytes == first.manifest.archive.size
    assert not Path(sites.site).exists()
    sites.mirror(tags=("stable",))
    assert set(there.tags("demo", PLATFORM)) == {"stable"}
    # Two versions are newest or tagged: the last one, and the one that `stable` points to.
    assert sites.mirror(keep=1).copied == (third.manifest.stem,)
    assert sites.mirror(names=("demo",)).copied == (second.manifest.stem,)
    with pytest.raises(NotFound, match="nothing"):
        sites.mirror(names=("nothing",))
    with pytest.raises(NotFound, match="the tag missing"):
        sites.mirror(tags=("missing",))
    with pytest.raises(UsageError, match="itself"):
        plan_mirror(here, here, MirrorRequest())


def test_a_mirror_that_broke_off_goes_on(sites: Sites) -> None:
    artifact = sites.push(SMALL)
    data = the(sites.home, "*.tar.zst").read_bytes()
    lost = LosingStore(open_store(sites.home), REQUEST_BYTES, tail=len(data) - TAIL_BYTES)
    here, there = Registry(lost), Registry.open(sites.site)
    with pytest.raises(StoreError, match="lost"):
        mirror_registry(here, there, MirrorRequest(), journals=sites.journals, progress=Silent())
    assert there.environments() == ()
    lost.lose_at, lost.reads = -1, []
    mirror_registry(here, there, MirrorRequest(), journals=sites.journals, progress=Silent())
    assert 0 not in lost.reads
    assert files(sites.site) == files(sites.home)
    assert sites.install_bytes(sites.site, f"demo@{artifact.manifest.id}") == data


def test_what_a_fetch_began_goes_when_the_archive_came_otherwise(sites: Sites) -> None:
    artifact = sites.push(SMALL)
    into, there = sites.tmp_path / "fetched", the(sites.home, "*.tar.zst")
    tail = there.stat().st_size - TAIL_BYTES
    lost = Registry(LosingStore(open_store(sites.home), REQUEST_BYTES, tail=tail))
    ref = Ref.parse(f"demo@{artifact.manifest.id}")
    with pytest.raises(StoreError, match="lost"):
        fetch_artifact(ref, registry=lost, directory=into, platform=PLATFORM, progress=Silent())
    assert (into / f".{there.name}.partial").exists()
    (into / there.name).write_bytes(there.read_bytes())
    sites.install_bytes(sites.home, str(ref))
    assert not [path.name for path in into.iterdir() if path.name.startswith(".")]


class LosingStore:
    """A store whose archives cannot be read from one offset on; a negative one: all can.

    The end, where the index is, may be left out of that.
    """

    def __init__(self, store: Store, lose_at: int, *, tail: int = 1 << 62) -> None:
        self.store, self.lose_at, self.tail = store, lose_at, tail
        self.reads: list[int] = []

    @property
    def disk(self) -> None:
        """None: everything is read through this."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Fail at the chosen offset."""
        if key.endswith(".tar.zst"):
            if 0 <= self.lose_at <= offset < self.tail:
                msg = "lost the connection"
                raise StoreError(msg)
            self.reads.append(offset)
        return self.store.read(key, offset, length)


def test_damaged_bytes_are_not_mirrored(sites: Sites) -> None:
    sites.push(SMALL)
    flip(the(sites.home, "*.tar.zst"), REQUEST_BYTES)
    with pytest.raises(IntegrityError, match="the manifest says"):
        sites.mirror()
    assert [name for name in files(sites.site) if "manifest" in name or ".tar" in name] == []


def test_one_damaged_artifact_does_not_stop_the_others(sites: Sites) -> None:
    first = sites.push(SMALL, "bytes")
    second = sites.push(SMALL[1:], "manifest")
    third = sites.push(SMALL[2:], "sound")
    (archive,) = Path(sites.home).rglob(first.manifest.archive.file)
    flip(archive, REQUEST_BYTES)
    (manifest,) = Path(sites.home).rglob(f"{second.manifest.id}/manifest.json")
    manifest.write_bytes(manifest.read_bytes()[:100])
    with pytest.raises(IntegrityError) as caught:
        sites.mirror()
    for damaged in (first.manifest, second.manifest):
        assert damaged.id in caught.value.message
    assert "everything intact was copied" in caught.value.hint
    site = Registry.open(sites.site)
    assert site.tags("demo", PLATFORM) == dict.fromkeys(("latest", "sound"), third.manifest.id)
    require_in_order(sites.site)


def test_a_damaged_tag_does_not_stop_the_others(
    sites: Sites, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = sites.push(SMALL, "stable")
    the(sites.home, "v1/tags/**/stable").write_text("{")
    for wanted in ([], ["--tag", "stable"]):
        assert run(["mirror", sites.home, sites.site, "--dry-run", *wanted]) == 8
        said = capsys.readouterr()
        assert (f"to copy  {artifact.manifest.stem}" in said.out) == (not wanted)
        assert "/stable in" in said.err
        assert "`envferry tag REF TAG`" in said.err
        assert "was copied" not in said.err
    with pytest.raises(IntegrityError, match="/stable in") as caught:
        sites.mirror()
    assert "everything intact was copied" in caught.value.hint
    assert Registry.open(sites.site).tags("demo", PLATFORM) == {"latest": artifact.manifest.id}


def test_an_archive_that_nobody_published_is_not_believed(sites: Sites) -> None:
    sites.push(SMALL)
    there = Path(sites.site) / the(sites.home, "*.tar.zst").relative_to(sites.home)
    there.parent.mkdir(parents=True)
    there.write_bytes(the(sites.home, "*.tar.zst").read_bytes())
    flip(there)
    with pytest.raises(IntegrityError, match="a different archive"):
        sites.mirror()
    flip(there)
    sites.mirror()
    require_in_order(sites.site)


def test_tags_never_move_back(sites: Sites) -> None:
    first = sites.push(SMALL, "stable")
    sites.mirror()
    second = sites.push(SMALL[1:], "stable")
    sites.mirror()
    site = Registry.open(sites.site)
    assert site.tags("demo", PLATFORM)["stable"] == second.manifest.id
    site.move_tag("demo", PLATFORM, "stable", first.manifest.id)
    assert {tag.tag: tag.outcome for tag in sites.mirror().tags}["stable"] == "newer"
    Registry.open(sites.home).move_tag("demo", PLATFORM, "stable", first.manifest.id)
    Registry.open(sites.home).move_tag("demo", PLATFORM, "latest", first.manifest.id)
    site.move_tag("demo", PLATFORM, "latest", first.manifest.id)
    site.move_tag("demo", PLATFORM, "latest", second.manifest.id)
    outcomes = {tag.tag: (tag.outcome, tag.id) for tag in sites.mirror().tags}
    assert outcomes["latest"] == ("newer", second.manifest.id)
    assert outcomes["stable"] == ("same", first.manifest.id)


def test_an_unsigned_record_does_not_replace_a_signed_one(sites: Sites) -> None:
    sites.push(SMALL, "stable", keys=(OURS,))
    sites.mirror()
    record = the(sites.home, "tags/demo/*/stable")
    data = json.loads(record.read_text())
    record.write_text(json.dumps({**data, "counter": 9, "signatures": []}))
    assert {tag.tag: tag.outcome for tag in sites.mirror().tags}["stable"] == "same"
    Registry.open(sites.site, trust=trusting(OURS)).resolve(Ref.parse("demo@stable"), PLATFORM)


def test_export_is_a_registry(sites: Sites) -> None:
    sites.push(SMALL, "stable", keys=(OURS,))
    sites.push(SMALL[1:], keys=(OURS,))
    pem = b"-----BEGIN PUBLIC KEY-----\n"
    found = sites.export("demo@stable", keys=((OURS.public, pem),), trust=OURS)
    assert [tag.tag for tag in found.tags] == ["stable"]
    assert (Path(sites.disk) / f"keys/{OURS.public.id}.pub").read_bytes() == pem
    home = files(sites.home)
    for name, data in files(sites.disk).items():
        assert name.startswith("keys/") or home[name] == data
    assert sites.export("demo@stable").artifacts == found.artifacts
    archive = the(sites.disk, "*.tar.zst").read_bytes()
    assert sites.install_bytes(sites.disk, "demo@stable", OURS) == archive
    with pytest.raises(IntegrityError, match="not signed by a trusted key"):
        sites.export("demo@stable", trust=THEIRS)


def test_export_only_into_its_own_folder(sites: Sites) -> None:
    sites.push(SMALL)
    with pytest.raises(NotFound, match="demo@nothing"):
        sites.export("demo@nothing")
    assert not Path(sites.disk).exists()
    Path(sites.disk).mkdir()
    (Path(sites.disk) / "holiday.jpg").touch()
    with pytest.raises(TargetOccupied, match=r"holiday\.jpg"):
        sites.export("demo")


def test_export_says_which_tag_it_does_not_find(sites: Sites) -> None:
    sites.push(SMALL)
    with pytest.raises(NotFound, match="the tag stable"):
        sites.export("demo", tags=("latest", "stable"))
    assert not Path(sites.disk).exists()
    sites.disk = sites.home
    with pytest.raises(UsageError, match="the registry itself"):
        sites.export("demo", since=("demo",))


def test_export_needs_a_folder() -> None:
    with pytest.raises(UsageError, match="REF and DIR") as caught:
        envferry.main(["export", "demo@stable"], standalone_mode=False)
    assert "envferry export demo@stable" in caught.value.hint


def test_nobody_writes_to_a_web_server(sites: Sites) -> None:
    sites.push(SMALL)
    here, there = Registry.open(sites.home), Registry.open("https://envs.example/prod")
    with pytest.raises(UsageError, match="can only be read"):
        plan_mirror(here, there, MirrorRequest())


@pytest.mark.parametrize("lost", ["manifest.json", "delta.json"])
def test_apply_names_what_did_not_come(sites: Sites, lost: str) -> None:
    first = sites.push(SMALL)
    second = sites.push(SMALL[1:])
    sites.export(f"demo@{first.manifest.id}")
    sites.export("demo", since=(f"demo@{first.manifest.id}",))
    assert sites.apply().unfinished == ()
    other = second if lost == "delta.json" else first
    (path,) = Path(sites.disk).rglob(f"v1/*/demo/*/{other.manifest.id}/{lost}")
    path.unlink()
    sites.site = str(sites.tmp_path / "another")
    if lost == "manifest.json":
        with pytest.raises(NotFound, match="does not have"):
            sites.apply()
        return
    found = sites.apply()
    assert len(found.copied) == 1
    assert found.unfinished == (f"v1/deltas/demo/{PLATFORM}/{second.manifest.id}/delta.json",)
    require_in_order(sites.site)


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("delta.json", "delta.json in"),
        ("manifest.json", "manifest.json in"),
        ("conda-lock.yml", "conda-lock.yml in"),
        ("sbom.cdx.json", "sbom.cdx.json in"),
        ("tags/latest", "tags/latest in"),
        ("*.delta", ".delta in"),
    ],
)
def test_one_damaged_file_does_not_stop_the_others(sites: Sites, pattern: str, named: str) -> None:
    first = sites.push(SMALL)
    sites.mirror()
    since = (f"demo@{first.manifest.id}",)
    damaged, sound = sites.push(SMALL[1:]).manifest, sites.push(SMALL[2:]).manifest
    sites.export(f"demo@{damaged.id}", since=since)
    sites.export(f"demo@{sound.id}", since=since)
    whole = sites.push(SMALL[3:]).manifest
    sites.export(f"demo@{whole.id}")
    victim = sound if pattern.startswith("tags") else damaged
    path = next(Path(sites.disk).glob(f"v1/deltas/demo/*/{victim.id}/{pattern}"))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(IntegrityError, match=re.escape(named)) as caught:
        sites.apply()
    assert "everything intact was copied" in caught.value.hint
    pushed = {first.manifest.id, damaged.id, sound.id, whole.id}
    came = pushed if victim is sound else pushed - {damaged.id}
    assert set(Registry.open(sites.site).ids("demo", PLATFORM)) == came
    require_in_order(sites.site)


def test_a_damaged_whole_artifact_does_not_stop_deltas(sites: Sites) -> None:
    first = sites.push(SMALL)
    sites.mirror()
    second = sites.push(SMALL[1:]).manifest
    sites.export(f"demo@{second.id}", since=(f"demo@{first.manifest.id}",))
    third = sites.push(SMALL[2:]).manifest
    sites.export(f"demo@{third.id}")
    path = the(f"{sites.disk}/v1/envs", "manifest.json")
    path.write_bytes(path.read_bytes()[:-3])
    assert run(["apply", sites.disk, "--registry", sites.site]) == 8
    assert set(Registry.open(sites.site).ids("demo", PLATFORM)) == {first.manifest.id, second.id}


def test_a_delta_becomes_the_same_archive(sites: Sites) -> None:
    sites.push(SMALL, "stable", keys=(OURS,))
    sites.mirror()
    new = sites.push(SMALL[1:], "stable", keys=(OURS,))
    found = sites.export("demo@stable", since=("demo@stable",), trust=OURS)
    assert found.carried_bytes < 10_000  # since itself: all frames are there
    first = Registry.open(sites.site).tags("demo", PLATFORM)["stable"]
    (Path(sites.disk)).rename(sites.tmp_path / "other")
    found = sites.export("demo@stable", since=(f"demo@{first}",), trust=OURS)
    assert len(SMALL) < found.carried_bytes < len(SMALL) + 10_000
    assert not list(Path(sites.disk).rglob("*.tar.zst"))
    applied = sites.apply(OURS)
    assert applied.rebuilt == (new.manifest.stem,)
    assert files(sites.site) == files(sites.home)
    assert sites.apply(OURS).present == 1
    # Once more the same export, and one since something else.
    sites.export("demo@stable", since=(f"demo@{first}",))
    with pytest.raises(TargetOccupied, match="since"):
        sites.export("demo@stable", since=("demo@stable",))


def test_a_site_without_the_base(sites: Sites) -> None:
    first = sites.push(SMALL)
    sites.push(SMALL[1:])
    sites.export("demo", since=(f"demo@{first.manifest.id}",))
    with pytest.raises(NotFound, match=rf"{first.manifest.id}.*does not have"):
        sites.apply()
    assert not Path(sites.site).exists()
    # A base that travels on the same disk is one that the site will have.
    sites.export(f"demo@{first.manifest.id}")
    applied = sites.apply()
    assert (len(applied.copied), len(applied.rebuilt)) == (1, 1)
    require_in_order(sites.site)


@pytest.mark.parametrize("damaged", ["delta", "base"])
def test_damage_is_found_before_anything_is_published(sites: Sites, damaged: str) -> None:
    first = sites.push(SMALL)
    sites.mirror()
    second = sites.push(SMALL[1:])
    sites.export("demo", since=(f"demo@{first.manifest.id}",))
    flip(the(sites.disk, "*.delta") if damaged == "delta" else the(sites.site, "*.tar.zst"))
    with pytest.raises(IntegrityError) as caught:
        sites.apply()
    assert ("may be damaged" if damaged == "base" else "the delta in") in caught.value.hint
    assert second.manifest.id not in Registry.open(sites.site).ids("demo", PLATFORM)


@pytest.mark.parametrize("way", ["mirror", "export", "apply", "delta"])
@pytest.mark.parametrize("field", ["name", "prefix", "platform"])
def test_a_manifest_that_names_something_else_is_not_carried(
    sites: Sites, way: str, field: str
) -> None:
    """The archive and its digests are sound: only its index says whose it is."""
    first = sites.push(SMALL)
    if way == "delta":
        sites.mirror()
    sound = sites.push(SMALL[1:])
    if way in ("apply", "delta"):
        since = (f"demo@{first.manifest.id}",) if way == "delta" else ()
        sites.export(f"demo@{sound.manifest.id}", since=since)
    carried = sites.disk if way in ("apply", "delta") else sites.home
    told = pretend(Path(carried), sound.manifest, field)
    carry: Callable[[], object] = sites.mirror if way == "mirror" else sites.apply
    if way == "export":
        ref, wanted = f"{told.name}@{told.id}", told.platform

        def carry() -> object:
            order = ExportRequest(refs=(Ref.parse(ref),), platform=wanted)
            source = Registry.open(sites.home)
            return export_artifacts(
                source, Path(sites.disk), order, journals=sites.journals, progress=Silent()
            )

    with pytest.raises(IntegrityError, match=f"{field} is '.*', expected '.*other") as caught:
        carry()
    assert "may be damaged" not in caught.value.hint
    arrived = Path(sites.disk if way == "export" else sites.site)
    assert not list(arrived.rglob(f"*{told.id}.manifest.json"))
    assert not list(arrived.rglob(f"{told.name}/{told.platform}/{told.id}/manifest.json"))


def pretend(registry: Path, sound: Manifest, field: str) -> Manifest:
    """Let an artifact or delta be another's by its manifest, lock and digests as they were."""
    told = msgspec.structs.replace(sound, **{field: f"{getattr(sound, field)}-other"})
    file = f"{told.stem}.tar.zst"
    told = msgspec.structs.replace(told, archive=msgspec.structs.replace(told.archive, file=file))
    (before,) = (path.parent for path in registry.rglob(f"{sound.id}/manifest.json"))
    after = before.parent.parent.parent / told.name / told.platform / told.id
    after.parent.mkdir(parents=True, exist_ok=True)
    before.rename(after)
    for path in list(after.iterdir()):
        path.rename(after / path.name.replace(sound.stem, told.stem))
    (after / "manifest.json").write_bytes(to_json(told))
    if (checksum := after / f"{file}.xxh128").exists():
        checksum.write_bytes(checksum_line(told))
    record = after / "delta.json"
    if record.exists():
        delta = msgspec.json.decode(record.read_bytes(), type=Delta)
        record.write_bytes(to_json(msgspec.structs.replace(delta, artifact=Base.of(told))))
    return told


def test_what_somebody_left_at_the_site_is_not_the_fault_of_its_bases(sites: Sites) -> None:
    first = sites.push(SMALL)
    sites.mirror()
    second = sites.push(SMALL[1:])
    sites.export("demo", since=(f"demo@{first.manifest.id}",))
    left = Path(sites.site) / f"v1/envs/demo/{PLATFORM}/{second.manifest.id}/conda-lock.yml"
    left.parent.mkdir()
    left.write_text("another")
    with pytest.raises(IntegrityError, match="exists with different content") as caught:
        sites.apply()
    assert "remove it there" in caught.value.hint


@pytest.mark.parametrize("name", ["conda-lock.yml", "sbom.cdx.json"])
@pytest.mark.parametrize("way", ["delta", "mirror"])
def test_what_lies_beside_an_archive_is_not_carried_damaged(
    sites: Sites, name: str, way: str
) -> None:
    first = sites.push(SMALL)
    sites.mirror()
    second = sites.push(SMALL[1:]).manifest
    sites.export("demo", since=(f"demo@{first.manifest.id}",))
    top = Path(sites.disk if way == "delta" else sites.home)
    (path,) = top.rglob(f"{second.id}/{name}")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(IntegrityError, match=name):
        sites.apply() if way == "delta" else sites.mirror()
    assert Registry.open(sites.site).ids("demo", PLATFORM) == (first.manifest.id,)
    require_in_order(sites.site)


def test_a_disk_with_deltas_can_be_checked(sites: Sites) -> None:
    first = sites.push(SMALL)
    sites.push(SMALL[1:])
    sites.export("demo", since=(f"demo@{first.manifest.id}",))
    disk = Registry.open(sites.disk)

    with pytest.raises(NotFound, match="deltas only") as caught:
        disk.resolve(Ref.parse("demo"), PLATFORM)
    assert f"envferry apply {sites.disk} --registry" in caught.value.hint

    def faults(*, read_bytes: bool = True) -> list[str]:
        report = check_registry(disk, read_bytes=read_bytes, progress=Silent())
        found = check_deltas(disk, report, read_bytes=read_bytes)
        assert found.deltas == 1
        return [finding.what for finding in found.findings if finding.severity == "broken"]

    assert faults() == []
    delta, record = the(sites.disk, "*.delta"), the(sites.disk, "delta.json")
    flip(delta)
    assert faults(read_bytes=False) == []
    assert "BLAKE3" in faults()[0]
    delta.write_bytes(delta.read_bytes()[:-1])
    assert "are expected" in faults(read_bytes=False)[0]
    delta.unlink()
    assert "has 0 bytes" in faults()[0]
    record.unlink()
    assert "interrupted" in faults()[0]


def test_a_damaged_frame_does_not_get_into_a_delta(sites: Sites) -> None:
    first = sites.push(SMALL)
    sites.push(SMALL[1:])
    archive = (
        Path(sites.home)
        / "v1/envs/demo"
        / PLATFORM
        / Registry.open(sites.home).resolve(Ref.parse("demo"), PLATFORM)
    )
    (path,) = archive.glob("*.tar.zst")
    flip(path, path.stat().st_size - 200_000)
    with pytest.raises(IntegrityError, match="frame"):
        sites.export("demo", since=(f"demo@{first.manifest.id}",))
    assert not list(Path(sites.disk).rglob("delta.json"))


def test_a_damaged_delta_is_not_the_fault_of_its_registry(sites: Sites) -> None:
    first = sites.push(SMALL)
    sites.push(SMALL[1:])
    since = (f"demo@{first.manifest.id}",)
    sites.export("demo", since=since)
    delta = the(sites.disk, "*.delta")
    flip(delta)
    with pytest.raises(
        IntegrityError, match=rf"in {sites.disk}, left by an earlier run, is damaged"
    ):
        sites.export("demo", since=since)
    delta.unlink()
    sites.export("demo", since=since)


def test_records_that_name_what_cannot_be(sites: Sites) -> None:
    first = sites.push(SMALL)
    sites.mirror()
    sites.push(SMALL[1:])
    sites.export("demo", since=(f"demo@{first.manifest.id}",))
    path = the(sites.disk, "delta.json")
    good = json.loads(path.read_text())
    for change in (
        {"runs": [[10, 5, 0]]},
        {"runs": [[10, -1, 10**15]]},
        {"runs": [[10, -7, 0]]},
        {"runs": [[-10, 0, 0]]},
        {"size": -1},
        {"artifact": ["demo", PLATFORM, "0" * 12]},
        {"bases": [["../..", PLATFORM, "0" * 12]]},
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises((IntegrityError, UsageError)):
            sites.apply()
    path.write_text(json.dumps({**good, "runs": good["runs"][:-1]}))
    with pytest.raises(IntegrityError, match="does not describe"):
        sites.apply()


def test_an_old_disk_does_not_move_tags_back(sites: Sites) -> None:
    first = sites.push(SMALL, "stable")
    sites.export("demo@stable")
    sites.push(SMALL[1:], "stable")
    sites.mirror()
    outcomes = {tag.tag: tag.outcome for tag in sites.apply().tags}
    assert outcomes == {"stable": "newer", "latest": "newer"}
    assert Registry.open(sites.site).tags("demo", PLATFORM)["stable"] != first.manifest.id


def test_split_files_are_one_value(sites: Sites) -> None:
    artifact = sites.push(SMALL, "stable", keys=(OURS,))
    sites.export("demo@stable", part_bytes=SPLIT)
    assert max(path.stat().st_size for path in Path(sites.disk).rglob("*")) == SPLIT
    parts = sorted(path.name for path in Path(sites.disk).rglob("*.part*[0-9]"))
    assert parts[0] == f"{artifact.manifest.archive.file}.part001"
    joined = b"".join(the(sites.disk, part).read_bytes() for part in parts)
    assert joined == the(sites.home, "*.tar.zst").read_bytes()
    assert isinstance(open_store(sites.disk), SplitStore)
    assert sites.install_bytes(sites.disk, "demo@stable", OURS) == joined
    require_in_order(sites.disk)
    sites.export("demo@stable", part_bytes=SPLIT)
    with pytest.raises(TargetOccupied, match="split at"):
        sites.export("demo@stable", part_bytes=SPLIT + 1)
    sites.apply(OURS)
    assert files(sites.site) == files(sites.home)


def test_split_that_broke_off(sites: Sites) -> None:
    sites.push(SMALL)
    sites.export("demo", part_bytes=SPLIT)
    complete = files(sites.disk)
    for pattern in ("manifest.json", "*.parts.json", "*.part003"):
        the(sites.disk, pattern).unlink()
    with pytest.raises(NotFound):
        sites.install_bytes(sites.disk, "demo")
    sites.export("demo", part_bytes=SPLIT)
    assert files(sites.disk) == complete
    for pattern in ("manifest.json", "*.parts.json", "*.part003"):
        the(sites.disk, pattern).unlink()
    flip(the(sites.disk, "*.part002"))
    with pytest.raises(IntegrityError, match=rf"left of .* in {sites.disk} is damaged"):
        sites.export("demo", part_bytes=SPLIT)
    sites.export("demo", part_bytes=SPLIT)
    assert files(sites.disk) == complete


def test_a_split_folder_can_be_pushed_to_and_pruned(sites: Sites) -> None:
    sites.push(SMALL)
    sites.export("demo", part_bytes=SPLIT)
    disk = Registry.open(sites.disk)
    artifact = pack(sites.tmp_path / "more", {"big": BIG[::-1]})
    push_artifact(artifact, registry=disk, tags=(), progress=Silent())
    assert len(disk.environments()) == 2
    require_in_order(sites.disk)
    (key,) = (one.key for one in disk.store.list() if one.key.endswith(artifact.archive_path.name))
    for pattern in ("parts.json", "part002"):
        the(sites.disk, f"{artifact.archive_path.name}.{pattern}").unlink()
        push_artifact(artifact, registry=disk, tags=(), progress=Silent())
        require_in_order(sites.disk)
    the(sites.disk, f"{artifact.archive_path.name}.parts.json").write_text("{")
    disk.store.delete(key)
    assert not list(Path(sites.disk).rglob(f"{artifact.archive_path.name}.part*"))
    assert len(list(Path(sites.disk).rglob("*.part001"))) == 1


def test_export_of_what_is_no_folder(sites: Sites) -> None:
    Path(sites.disk).mkdir()
    with pytest.raises(NotFound, match="does not hold an export"):
        sites.apply()


def test_more_parts_than_a_reader_takes(tmp_path: Path) -> None:
    store = SplitStore(DirectoryStore(tmp_path), 1)
    with pytest.raises(UsageError, match="10,001 parts of 1 B, at most 10,000"):
        store.create("a/b", bytes(10_001))
    assert not list(tmp_path.iterdir())


def test_a_delta_in_parts(sites: Sites) -> None:
    first = sites.push(SMALL)
    sites.mirror()
    sites.push(SMALL[1:])
    sites.export("demo", since=(f"demo@{first.manifest.id}",), part_bytes=100_000)
    assert len(list(Path(sites.disk).rglob("*.delta.part*[0-9]"))) == 4
    sites.apply()
    require_in_order(sites.site)


@pytest.mark.parametrize("fault", ["missing", "cut"])
def test_a_part_that_did_not_come_is_named(sites: Sites, fault: str) -> None:
    sites.push(SMALL)
    sites.export("demo", part_bytes=SPLIT)
    part = the(sites.disk, "*.part002")
    if fault == "missing":
        part.unlink()
        said = r"part002 is missing; in order: part001, part003, part004"
    else:
        part.write_bytes(part.read_bytes()[:1_000_000])
        said = r"part002 has 1000000 bytes, 3000000 are expected; in order: part001, part003"
    for use in (sites.apply, lambda: sites.install_bytes(sites.disk, "demo")):
        with pytest.raises(IntegrityError, match=said) as caught:
            use()
        assert "export" in caught.value.hint
    disk = Registry.open(sites.disk)
    (finding,) = check_registry(disk, read_bytes=False, progress=Silent()).findings
    assert finding.what == caught.value.message
    assert finding.mend == caught.value.hint
    sites.export("demo", part_bytes=SPLIT)
    require_in_order(sites.disk)
    assert sites.install_bytes(sites.disk, "demo") == the(sites.home, "*.tar.zst").read_bytes()


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("*.parts.json", "parts.json in .* is missing, though parts are there"),
        ("v1/split.json", "though its manifest is"),
        (
            "manifest.json",
            r"manifest of demo@\w+ .* is missing, though there are conda-lock.yml, .*",
        ),
        ("conda-lock.yml", "conda-lock.yml is not in .*, though its manifest is"),
    ],
)
def test_what_a_copy_of_a_disk_lost_is_named(sites: Sites, lost: str, said: str) -> None:
    sites.push(SMALL)
    sites.export("demo", part_bytes=SPLIT)
    the(sites.disk, lost).unlink()
    with pytest.raises((IntegrityError, NotFound), match=said) as caught:
        sites.install_bytes(sites.disk, "demo")
    assert "copy that" in caught.value.hint
    (here, there) = Registry.open(sites.disk), Registry.open(sites.site)
    if lost == "manifest.json":
        (dangling,) = plan_mirror(here, there, MirrorRequest()).report().dangling
        assert "the tag demo@latest points to" in dangling
    if lost != "v1/split.json":
        sites.export("demo", part_bytes=SPLIT)
        require_in_order(sites.disk)


def test_parts_that_nobody_finished_are_pruned(sites: Sites) -> None:
    sites.push(SMALL)
    sites.export("demo", part_bytes=SPLIT)
    for pattern in ("*.parts.json", "manifest.json", "latest"):
        the(sites.disk, pattern).unlink()
    disk, now = Registry.open(sites.disk), datetime.now(timezone.utc)
    policy = RetentionPolicy(under_way=timedelta(0))
    plan = plan_prune(disk, Scope(), policy, now)
    assert [one.key[-8:] for one in plan.unfinished] == [
        f".part00{number}" for number in (1, 2, 3, 4)
    ]
    assert plan_prune(disk, Scope(), RetentionPolicy(), now).unfinished == ()
    carry_out(disk, plan, progress=Silent())
    assert not list(Path(sites.disk).rglob("*.part0*"))


def test_a_damaged_list_of_parts_is_a_finding(sites: Sites) -> None:
    sites.push(SMALL)
    sites.export("demo", part_bytes=SPLIT)
    record = the(sites.disk, "*.parts.json")
    record.write_bytes(record.read_bytes()[:100])
    report = check_registry(Registry.open(sites.disk), read_bytes=True, progress=Silent())
    (finding,) = report.findings
    assert "parts.json in" in finding.what
    assert "is damaged" in finding.what
    assert "export to that folder again" in finding.mend
    sites.export("demo", part_bytes=SPLIT)
    require_in_order(sites.disk)


def test_two_exports_to_one_disk_at_once(sites: Sites) -> None:
    sites.push(SMALL)

    def export(_: int) -> str:
        try:
            sites.export("demo", part_bytes=SPLIT)
        except TargetOccupied as error:
            return error.message
        return "done"

    with ThreadPoolExecutor(4) as pool:
        said = set(pool.map(export, range(4)))
    assert "done" in said
    assert all("by another envferry" in one for one in said - {"done"}), said
    sites.export("demo", part_bytes=SPLIT)
    require_in_order(sites.disk)


@pytest.mark.parametrize("marker", ["{}", '{"part_bytes": 0}', '{"part_bytes": "x"}', "no"])
def test_a_marker_that_says_nothing(tmp_path: Path, marker: str) -> None:
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1/split.json").write_text(marker)
    with pytest.raises(IntegrityError, match="damaged"):
        open_store(str(tmp_path))


def test_sizes_as_people_write_them() -> None:
    option = next(one for one in export.params if one.name == "part_bytes")
    context = click.Context(export)
    assert parse_part_size(context, option, "4G") == 4_000_000_000 < 2**32
    assert parse_part_size(context, option, "650M") == 650_000_000
    assert parse_part_size(context, option, "1.5GiB") == 3 << 29
    assert parse_part_size(context, option, "2000000") == 2_000_000
    for text in ("", "4", "G", "4X", "-4G", "1K"):
        with pytest.raises(click.BadParameter, match="650M or 4G"):
            parse_part_size(context, option, text)


FORGED_RUNS: dict[str, Callable[[Any], list[Any]]] = {
    "runs": lambda record: [[length, base, 0] for length, base, _ in record["runs"]],
    "a base that is not there": lambda record: [[one[0], 7, one[2]] for one in record["runs"]],
    "a base before the first": lambda record: [[one[0], -3, one[2]] for one in record["runs"]],
    "bytes behind the end": lambda record: [*record["runs"], [1 << 50, -1, record["size"]]],
}


@pytest.mark.parametrize("what", ["bytes", "manifest", "attestation", "another's", *FORGED_RUNS])
def test_a_delta_that_somebody_forged(sites: Sites, what: str) -> None:
    """What comes out of it must be what our key signed; the site stays as it was."""
    first = sites.push(SMALL, "stable", keys=(OURS,))
    sites.mirror()
    sites.push(SMALL[1:], "stable", keys=(OURS,))
    sites.export("demo@stable", since=(f"demo@{first.manifest.id}",), trust=OURS)
    before = files(sites.site)
    if what == "bytes":
        flip(the(sites.disk, "*.delta"))
    elif what == "manifest":
        path = the(sites.disk, "manifest.json")
        record = json.loads(path.read_text())
        record["archive"]["blake3"] = "0" * 64
        path.write_text(json.dumps(record))
    elif what == "attestation":
        the(sites.disk, "attestation.json").unlink()
    else:
        path = the(sites.disk, "delta.json")
        record = json.loads(path.read_text())
        if what == "another's":
            record["artifact"]["id"] = "0" * 12
        else:
            record["runs"] = FORGED_RUNS[what](record)
        path.write_text(json.dumps(record))
    # What the record itself says is refused before anything is read by it.
    words = "do not add up" if what not in ("bytes", "manifest", "attestation", "runs") else "."
    with pytest.raises(IntegrityError, match=words):
        sites.apply(OURS)
    assert files(sites.site) == before
