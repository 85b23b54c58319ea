"""Of an archive that its packer has noted, a push reads what it sends, and never what is copied."""

from __future__ import annotations

import os
import random
import shutil
import sys
from bisect import bisect_right
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING

import msgspec
import pytest

from envferry.archive.reader import Archive, FileSource
from envferry.artifacts import read_artifact, write_companions
from envferry.base.json import to_json
from envferry.errors import IntegrityError
from envferry.models import Artifact
from envferry.names import Ref
from envferry.pack.earlier_pack import PackNote, PackNotes
from envferry.pack.existing_env import describe_env
from envferry.pack.pack_options import PackOptions
from envferry.pack.stage import pack_env
from envferry.process import run
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.fetch import fetch_artifact
from envferry.registry.known_frames import known_ranges
from envferry.registry.push import push_artifact
from envferry.stores.s3.multipart import LEAST_PART, plan_parts
from tests.integration.conftest import empty_registry
from tests.support.environments import conda_record
from tests.support.fault_proxy import Plan, fault_proxy
from tests.support.shared_folder import shared_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from demo.seaweed import S3Server
    from envferry.progress import Expected, Progress
    from envferry.stores.s3.multipart import Part

pytestmark = pytest.mark.s3

SILENT = Silent()
LARGE = 40 << 20
PUSH = """\
import sys
from pathlib import Path
from envferry import api

def read_bytes():
    # Of all calls that read; what comes from a server is not among them.
    return int(Path("/proc/self/io").read_text().split()[1])

registry = api.open_registry(sys.argv[2])
registry.store.stat("v1/nothing")
before = read_bytes()
assert api.push(sys.argv[1], registry=registry).uploaded
print(read_bytes() - before)
"""


@dataclass(frozen=True)
class Versions:
    """Two versions of an environment, of which one small package differs, as they were packed."""

    root: Path
    first: Artifact
    second: Artifact

    @property
    def notes(self) -> PackNotes:
        """What their packer noted."""
        return PackNotes(self.root / "cache/packs")

    @property
    def note_path(self) -> Path:
        """The note of the second version."""
        (path,) = self.notes.directory.glob(f"*-{self.second.manifest.id}.json")
        return path

    def push(self, artifact: Artifact, registry: Registry, progress: Progress = SILENT) -> None:
        """Push an artifact as who packed it."""
        push_artifact(artifact, registry=registry, tags=(), progress=progress, notes=self.notes)

    def opened(self, registry: Registry) -> Registry:
        """Push the first version, and return the registry, which then knows most of the second."""
        self.push(self.first, registry)
        return registry

    def parts(self) -> list[Part]:
        """Return the parts in which the second version is pushed after the first."""
        with (
            FileSource(self.second.archive_path) as new,
            FileSource(self.first.archive_path) as old,
        ):
            known = known_ranges(Archive(new), Archive(old), "")
            return list(plan_parts(new.size, known))

    def offsets(self) -> list[int]:
        """Return where frames of the second version begin."""
        with FileSource(self.second.archive_path) as source:
            return Archive(source).offsets

    def damage(self, offset: int) -> None:
        """Flip a bit of the second version."""
        with self.second.archive_path.open("r+b") as stream:
            stream.seek(offset)
            (byte,) = stream.read(1)
            stream.seek(offset)
            stream.write(bytes([byte ^ 1]))


def make_versions(root: Path) -> None:
    """Pack two versions of an environment, one after the other."""
    tree = root / "envs/demo"
    for name, seed in (("a-large", 1), ("z-large", 2)):
        content = random.Random(seed).randbytes(LARGE)
        conda_record(tree, name, {f"lib/{name}": content})
    for number in (1, 2):
        conda_record(tree, "m-tool", {"lib/tool": random.Random(9 + number).randbytes(100_000)})
        built = describe_env(tree, prefix=None, name=None, lock_dir=root / "lock")
        options = PackOptions(
            output_dir=root / f"packed{number}",
            mtime=315532800,
            level=1,
            notes_dir=root / "cache/packs",
        )
        pack_env(built, options=options, progress=Silent())
    shutil.rmtree(tree)


@pytest.fixture
def versions(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Versions:
    made = shared_folder(tmp_path_factory, "noted", make_versions)
    shutil.copytree(made, tmp_path / "made")
    return Versions(tmp_path / "made", *(artifact_in(tmp_path / f"made/packed{n}") for n in (1, 2)))


def artifact_in(folder: Path) -> Artifact:
    """Return the artifact of a folder."""
    (archive,) = folder.glob("*.tar.zst")
    return read_artifact(archive)


@pytest.fixture
def registry(s3_url: str) -> Registry:
    return Registry.open(s3_url)


def require_published(artifact: Artifact, registry: Registry, scratch: Path) -> None:
    """Fetch an artifact, which compares every byte, and compare its manifest with ours."""
    ref = Ref.parse(f"demo@{artifact.manifest.id}")
    scratch.mkdir()
    fetched = fetch_artifact(
        ref,
        registry=registry,
        directory=scratch,
        platform=artifact.manifest.platform,
        progress=Silent(),
    )
    assert fetched.manifest == artifact.manifest


def require_nothing_sent(versions: Versions, registry: Registry) -> None:
    """Neither an object nor a part nor a journal is left."""
    manifest = versions.second.manifest
    assert registry.published_at(manifest) is None
    assert not [one for one in registry.store.list("v1/") if manifest.id in one.key]
    assert list(registry.store.list_unfinished("")) == []
    assert not list(versions.second.directory.glob(".*.upload"))


@pytest.mark.parametrize("name", ["s3_server", "moto_server"])
@pytest.mark.parametrize("is_noted", [True, False])
def test_what_the_store_has_is_not_read(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    versions: Versions,
    name: str,
    is_noted: bool,
) -> None:
    """In a process of its own, as the next step of a CI job is."""
    server: S3Server = request.getfixturevalue(name)
    registry = versions.opened(Registry.open(empty_registry(server, monkeypatch)))
    monkeypatch.setenv("ENVFERRY_CACHE", str(versions.root / ("cache" if is_noted else "other")))
    argv = [sys.executable, "-c", PUSH, str(versions.second.archive_path), registry.url]
    read = int(run(argv, env=dict(os.environ)).stdout)
    size = versions.second.manifest.archive.size
    sent = sum(part.length for part in versions.parts() if not part.known)
    assert sent < size / 4
    assert read < size / 2 if is_noted else read > size
    require_published(versions.second, registry, versions.root / "fetched")


def in_the_package(versions: Versions) -> int:
    """The first byte of all that is sent: the package that changed."""
    return next(part.offset for part in versions.parts() if not part.known)


def in_a_frame_that_is_cut(versions: Versions) -> int:
    """The last byte that is sent before the copies go on, in the midst of a frame."""
    part = next(part for part in versions.parts() if not part.known)
    end = part.offset + part.length
    assert end not in versions.offsets()
    return end - 1


@pytest.mark.parametrize("place", [in_the_package, in_a_frame_that_is_cut])
def test_a_wrong_byte_among_what_is_sent_is_refused(
    versions: Versions, registry: Registry, place: Callable[[Versions], int]
) -> None:
    versions.opened(registry)
    offset = place(versions)
    number = bisect_right(versions.offsets(), offset) - 1
    versions.damage(offset)
    with pytest.raises(IntegrityError, match=f"is damaged in frame {number} of"):
        versions.push(versions.second, registry)
    require_nothing_sent(versions, registry)
    versions.damage(offset)
    versions.push(versions.second, registry)
    require_published(versions.second, registry, versions.root / "fetched")


def in_what_is_copied(versions: Versions) -> int:
    """A byte of a frame of which the server copies all."""
    longest = max((part for part in versions.parts() if part.known), key=lambda one: one.length)
    return longest.offset + longest.length // 2


def test_a_wrong_byte_among_what_is_copied_is_not_published(
    versions: Versions, registry: Registry
) -> None:
    versions.opened(registry)
    versions.damage(in_what_is_copied(versions))
    versions.push(versions.second, registry)
    require_published(versions.second, registry, versions.root / "fetched")


def rewrite_note(versions: Versions, **fields: object) -> None:
    """Write the note of the second version again, with other fields."""
    note = msgspec.json.decode(versions.note_path.read_bytes(), type=PackNote)
    versions.note_path.write_bytes(to_json(msgspec.structs.replace(note, **fields)))


def open_to_others(versions: Versions) -> None:
    """Let another user write to the note."""
    versions.note_path.chmod(0o666)


def no_note(versions: Versions) -> None:
    """Forget the archive."""
    versions.note_path.unlink()


@pytest.mark.parametrize("doubt", [open_to_others, partial(rewrite_note, facts=None), no_note])
def test_without_a_note_of_the_packer_all_is_compared(
    versions: Versions, registry: Registry, doubt: Callable[[Versions], None]
) -> None:
    """Nobody else, no older note and no note at all say that digests and index belong together."""
    versions.opened(registry)
    offset = in_what_is_copied(versions)
    doubt(versions)
    versions.damage(offset)
    with pytest.raises(IntegrityError, match="is damaged: XXH3-128 is"):
        versions.push(versions.second, registry)
    require_nothing_sent(versions, registry)
    versions.damage(offset)
    versions.push(versions.second, registry)
    require_published(versions.second, registry, versions.root / "fetched")


@pytest.mark.parametrize("field", ["xxh128", "blake3"])
def test_a_manifest_with_other_digests_than_were_noted_is_refused(
    versions: Versions, registry: Registry, field: str
) -> None:
    versions.opened(registry)
    second = versions.second
    digest = getattr(second.manifest.archive, field)
    facts = msgspec.structs.replace(second.manifest.archive, **{field: digest[::-1]})
    manifest = msgspec.structs.replace(second.manifest, archive=facts)
    tampered = Artifact(directory=second.directory, manifest=manifest)
    write_companions(tampered, second.lock_path.read_bytes())
    with pytest.raises(IntegrityError, match=f"the manifest says {digest[::-1]}"):
        versions.push(tampered, registry)
    require_nothing_sent(versions, registry)


@pytest.mark.parametrize("fault", ["denied", "unimplemented"])
def test_what_the_server_will_not_copy_is_proven_as_it_is_sent(
    s3_server: S3Server,
    s3_url: str,
    versions: Versions,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    plan = Plan(upstream=s3_server.endpoint_url, copies=fault)
    with fault_proxy(plan) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        registry = versions.opened(Registry.open(s3_url))
        offset = in_what_is_copied(versions)
        versions.damage(offset)
        with pytest.raises(IntegrityError, match="is damaged in frame"):
            versions.push(versions.second, registry)
        require_nothing_sent(versions, registry)
        versions.damage(offset)
        plan.sent.clear()
        versions.push(versions.second, registry)
        assert plan.sent_bytes >= versions.second.manifest.archive.size
        require_published(versions.second, registry, versions.root / "fetched")


class Interrupting:
    """Progress that is interrupted when all bytes are done."""

    @contextmanager
    def task(
        self, label: str, total_bytes: int | Expected | None = None
    ) -> Iterator[Callable[[int], None]]:
        """Count."""
        done, counting = [0], Lock()

        def advance(count: int) -> None:
            with counting:
                done[0] += count
                if done[0] == total_bytes:
                    raise KeyboardInterrupt

        yield advance


def test_an_interrupted_push_of_a_noted_archive_is_taken_up_again(
    s3_server: S3Server, s3_url: str, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(upstream=s3_server.endpoint_url)
    with fault_proxy(plan) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        registry = versions.opened(Registry.open(s3_url))
        with pytest.raises(KeyboardInterrupt):
            versions.push(versions.second, registry, Interrupting())
        assert registry.published_at(versions.second.manifest) is None
        plan.sent.clear()
        versions.push(versions.second, registry)
        assert plan.sent_bytes < LEAST_PART
        require_published(versions.second, registry, versions.root / "fetched")
