"""Artifacts into a registry and out of it again, through every fault on the way."""

from __future__ import annotations

import errno
import platform
import signal
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envferry.archive.reader import TAIL_BYTES
from envferry.base.files import exclusive_lock
from envferry.errors import (
    HostError,
    IntegrityError,
    NotFound,
    StoreError,
    TargetOccupied,
    UsageError,
)
from envferry.names import Ref
from envferry.process import find_program, run
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.fetch import fetch_artifact
from envferry.registry.push import push_artifact
from envferry.stores.opening import open_store
from envferry.stores.partial import PIECE_BYTES
from envferry.stores.port import ignore
from envferry.stores.receive import REQUEST_BYTES
from tests.conftest import require
from tests.support.artifacts import PLATFORM, make_artifact
from tests.support.range_server import RangeHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from envferry.models import Artifact
    from envferry.registry.push import PushedArtifact
    from envferry.stores.port import DiskStore, KnownRange, Listed, Stat, Store
    from envferry.stores.source import ContentSource

PIECES = 5
SIZE = (PIECES - 1) * REQUEST_BYTES + 12_345
DEMO = Ref.parse("demo")


@dataclass
class WatchedStore:
    """A store that notes what is read of archives, and loses its connection when told to."""

    store: Store
    reads: list[tuple[int, int | None]] = field(default_factory=list)
    lose_at: frozenset[int] = frozenset()
    index_reads: int = 0
    """How often the end was read, to compare what the index says with the manifest."""
    """The offsets whose reading fails."""

    @property
    def url(self) -> str:
        """Where it is."""
        return self.store.url

    @property
    def place(self) -> str:
        """Where it is, on every server."""
        return self.store.place

    def stat(self, key: str) -> Stat | None:
        """Pass on."""
        return self.store.stat(key)

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Note reads of archives, and fail at the chosen ones."""
        if key.endswith(".tar.zst"):
            if offset in self.lose_at:
                msg = f"lost the connection at {offset}"
                raise StoreError(msg)
            if length == TAIL_BYTES:
                self.index_reads += 1
            else:
                self.reads.append((offset, length))
        return self.store.read(key, offset, length)

    @property
    def writable(self) -> WatchedStore:
        """Itself."""
        return self

    @property
    def disk(self) -> DiskStore | None:
        """None: everything is read through this."""
        return None

    @property
    def images(self) -> None:
        """None: everything is sent through this."""
        return

    @property
    def compares_while_sending(self) -> bool:
        """Pass on."""
        return self.store.compares_while_sending

    def create(self, key: str, data: bytes) -> None:
        """Pass on."""
        self.store.create(key, data)

    def create_from_file(
        self, key: str, path: Path, advance: Callable[[int], None] = ignore
    ) -> None:
        """Pass on."""
        self.store.create_from_file(key, path, advance)

    def receive(
        self,
        key: str,
        content: ContentSource,
        advance: Callable[[int], None] = ignore,
        known: Sequence[KnownRange] = (),
    ) -> None:
        """Pass on."""
        self.store.receive(key, content, advance, known)

    def replace(self, key: str, data: bytes, expected: str | None) -> str:
        """Pass on."""
        return self.store.replace(key, data, expected)

    def list(self, prefix: str = "") -> Iterator[Listed]:
        """Pass on."""
        return self.store.list(prefix)

    def list_level(self, prefix: str = "") -> Iterator[Listed]:
        """Pass on."""
        return self.store.list_level(prefix)

    def list_unfinished(self, prefix: str = "") -> Iterator[Listed]:
        """Pass on."""
        return self.store.list_unfinished(prefix)

    def delete(self, key: str) -> None:
        """Pass on."""
        self.store.delete(key)

    def delete_folder(self, prefix: str) -> None:
        """Pass on."""
        self.store.delete_folder(prefix)

    def delete_unfinished(self, prefix: str, older_seconds: float) -> int:
        """Pass on."""
        return self.store.delete_unfinished(prefix, older_seconds)


@pytest.fixture(params=["directory", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> WatchedStore:
    if request.param == "s3":
        return WatchedStore(open_store(request.getfixturevalue("s3_url")))
    return WatchedStore(open_store(str(tmp_path / "registry")))


@pytest.fixture
def registry(store: WatchedStore) -> Registry:
    return Registry(store)


@pytest.fixture
def local(tmp_path: Path) -> Registry:
    """A registry in a directory, for what no store has a part in."""
    return Registry(WatchedStore(open_store(str(tmp_path / "registry"))))


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return make_artifact(tmp_path / "packed", SIZE)


def push(artifact: Artifact, registry: Registry, *tags: str) -> PushedArtifact:
    return push_artifact(artifact, registry=registry, tags=tags, progress=Silent())


def fetch(registry: Registry, directory: Path, ref: Ref = DEMO) -> Artifact:
    return fetch_artifact(
        ref, registry=registry, directory=directory, platform=PLATFORM, progress=Silent()
    )


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def archive_key(registry: Registry) -> str:
    (key,) = (
        listed.key for listed in registry.store.list("v1/envs/") if listed.key.endswith(".tar.zst")
    )
    return key


def overwrite(registry: Registry, key: str, data: bytes) -> None:
    """Damage a registry behind its back."""
    registry.store.delete(key)
    registry.store.create(key, data)


def test_what_is_fetched_is_what_was_pushed(
    store: WatchedStore, registry: Registry, artifact: Artifact, tmp_path: Path
) -> None:
    pushed = push(artifact, registry, "stable")
    assert pushed.uploaded
    assert pushed.tags == ("stable", "latest")
    assert registry.tags("demo", PLATFORM) == dict.fromkeys(
        ("latest", "stable"), artifact.manifest.id
    )
    fetched = fetch(registry, tmp_path / "fetched", Ref.parse("demo@stable"))
    assert fetched.manifest == artifact.manifest
    assert contents(tmp_path / "fetched") == contents(tmp_path / "packed")
    assert store.index_reads == 1
    assert len(store.reads) == PIECES
    assert sum(length or 0 for _, length in store.reads) == artifact.manifest.archive.size


def test_pushing_and_fetching_again_moves_nothing(
    store: WatchedStore, registry: Registry, artifact: Artifact, tmp_path: Path
) -> None:
    push(artifact, registry)
    assert not push(artifact, registry).uploaded
    fetch(registry, tmp_path / "fetched")
    store.reads.clear()
    fetch(registry, tmp_path / "fetched")
    assert store.reads == []


def test_one_of_two_pushes_sends_and_both_succeed(
    registry: Registry, artifact: Artifact, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(2) as pool:
        pushed = list(pool.map(lambda _: push(artifact, registry), range(2)))
    assert {one.id for one in pushed} == {artifact.manifest.id}
    fetch(registry, tmp_path / "fetched")
    assert contents(tmp_path / "fetched") == contents(tmp_path / "packed")


def test_an_interrupted_fetch_is_taken_up(
    store: WatchedStore, registry: Registry, artifact: Artifact, tmp_path: Path
) -> None:
    push(artifact, registry)
    store.lose_at = frozenset({4 * REQUEST_BYTES})
    with pytest.raises(StoreError, match="lost the connection"):
        fetch(registry, tmp_path / "fetched")
    assert not list((tmp_path / "fetched").glob("demo*"))
    first = set(store.reads)
    store.lose_at = frozenset()
    store.reads.clear()
    fetch(registry, tmp_path / "fetched")
    assert first
    assert first.isdisjoint(store.reads)
    assert len(first) + len(store.reads) == PIECES
    assert contents(tmp_path / "fetched") == contents(tmp_path / "packed")


@pytest.mark.parametrize("left", ["flipped", "shortened", "journal torn", "partial gone"])
def test_only_right_pieces_are_taken_up(
    local: Registry, artifact: Artifact, tmp_path: Path, left: str
) -> None:
    """A crash may leave less than the journal says."""
    push(artifact, local)
    assert isinstance(local.store, WatchedStore)
    local.store.lose_at = frozenset({4 * REQUEST_BYTES})
    with pytest.raises(StoreError):
        fetch(local, tmp_path / "fetched")
    (partial_path,) = (tmp_path / "fetched").glob(".*.partial")
    (journal,) = (tmp_path / "fetched").glob(".*.pieces")
    if left == "flipped":
        flip(partial_path, 5)
    elif left == "shortened":
        partial_path.write_bytes(partial_path.read_bytes()[: REQUEST_BYTES + 5])
    elif left == "journal torn":
        journal.write_bytes(journal.read_bytes()[:-20])
    else:
        partial_path.unlink()
    local.store.lose_at = frozenset()
    local.store.reads.clear()
    fetch(local, tmp_path / "fetched")
    assert len(local.store.reads) > 1
    assert contents(tmp_path / "fetched") == contents(tmp_path / "packed")


def test_a_killed_fetch_is_taken_up(artifact: Artifact, local: Registry, tmp_path: Path) -> None:
    """SIGKILL at any moment costs the pieces under way, nothing else."""
    push(artifact, local)
    program = (
        "import os, signal, sys, pathlib\n"
        "from envferry.names import Ref\n"
        "from envferry.registry import Registry\n"
        "from envferry.registry.fetch import fetch_artifact\n"
        "import contextlib\n"
        "class Deadly:\n"
        "    done = 0\n"
        "    @contextlib.contextmanager\n"
        "    def task(self, label, total_bytes=None):\n"
        "        yield self.advance\n"
        "    def advance(self, count):\n"
        "        self.done += count\n"
        "        if self.done > 20_000_000:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "fetch_artifact(Ref.parse('demo'), registry=Registry.open(sys.argv[1]),"
        " directory=pathlib.Path(sys.argv[2]), platform='linux-64', progress=Deadly())\n"
    )
    argv = [sys.executable, "-c", program, local.url, str(tmp_path / "fetched")]
    assert run(argv, check=False).returncode == -signal.SIGKILL
    (journal,) = (tmp_path / "fetched").glob(".*.pieces")
    noted = [int(line.split()[0]) for line in journal.read_text().splitlines()[1:]]
    assert isinstance(local.store, WatchedStore)
    fetch(local, tmp_path / "fetched")
    assert len(noted) > 8
    assert not [piece for piece in noted if was_read(local.store, piece)]
    assert contents(tmp_path / "fetched") == contents(tmp_path / "packed")


def was_read(store: WatchedStore, piece: int) -> bool:
    start, end = piece * PIECE_BYTES, (piece + 1) * PIECE_BYTES
    return any(offset < end and start < offset + (length or 0) for offset, length in store.reads)


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("fault", ["flipped", "truncated", "longer", "lock"])
def test_a_damaged_artifact_is_not_pushed(local: Registry, artifact: Artifact, fault: str) -> None:
    path = artifact.archive_path
    if fault == "flipped":
        flip(path, SIZE // 2)
    elif fault == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif fault == "longer":
        path.write_bytes(path.read_bytes() + b"x")
    else:
        artifact.lock_path.write_bytes(b"another")
    with pytest.raises(IntegrityError, match="the manifest says"):
        push(artifact, local)
    assert not Path(local.url).exists()


def test_an_artifact_without_archive_or_lock(local: Registry, artifact: Artifact) -> None:
    for path in (artifact.lock_path, artifact.archive_path):
        path.unlink()
        with pytest.raises(NotFound, match=path.name):
            push(artifact, local)


def test_bad_tags_are_refused_before_anything_is_sent(local: Registry, artifact: Artifact) -> None:
    with pytest.raises(UsageError, match="0123456789ab"):
        push(artifact, local, "0123456789ab")
    assert not Path(local.url).exists()


@pytest.mark.parametrize("fault", ["flipped", "truncated", "longer", "lock"])
def test_a_damaged_registry_gives_nothing(
    registry: Registry, artifact: Artifact, tmp_path: Path, fault: str
) -> None:
    push(artifact, registry)
    key = archive_key(registry)
    data = bytearray(artifact.archive_path.read_bytes())
    if fault == "flipped":
        data[SIZE // 2] ^= 1
        overwrite(registry, key, bytes(data))
    elif fault == "truncated":
        overwrite(registry, key, bytes(data[:-1]))
    elif fault == "longer":
        overwrite(registry, key, bytes(data) + b"x")
    else:
        overwrite(registry, key.rsplit("/", 1)[0] + "/conda-lock.yml", b"another")
    with pytest.raises(IntegrityError, match="the manifest says"):
        fetch(registry, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists() or not list((tmp_path / "fetched").iterdir())


def test_a_registry_without_the_archive(
    registry: Registry, artifact: Artifact, tmp_path: Path
) -> None:
    push(artifact, registry)
    registry.store.delete(archive_key(registry))
    with pytest.raises(NotFound, match="though its manifest is"):
        fetch(registry, tmp_path / "fetched")


def test_a_damaged_local_archive_is_fetched_again(
    local: Registry, artifact: Artifact, tmp_path: Path
) -> None:
    push(artifact, local)
    fetched = fetch(local, tmp_path / "fetched")
    flip(fetched.archive_path, 0)
    fetch(local, tmp_path / "fetched")
    assert contents(tmp_path / "fetched") == contents(tmp_path / "packed")


def test_two_fetches_into_one_directory(
    local: Registry, artifact: Artifact, tmp_path: Path
) -> None:
    push(artifact, local)
    journal = tmp_path / "fetched" / f".{artifact.manifest.archive.file}.pieces"
    with exclusive_lock(journal, "test"), pytest.raises(TargetOccupied, match="in use"):
        fetch(local, tmp_path / "fetched")
    fetch(local, tmp_path / "fetched")


def test_a_target_that_is_a_file(local: Registry, artifact: Artifact, tmp_path: Path) -> None:
    push(artifact, local)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HostError, match="file"):
        fetch(local, tmp_path / "file")


def test_over_http(artifact: Artifact, local: Registry, tmp_path: Path) -> None:
    """A copy of a registry behind a web server: fetch by tag and id, and no listing."""
    push(artifact, local)
    handler = partial(RangeHandler, directory=local.url)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        mirror = Registry.open(f"http://127.0.0.1:{server.server_port}")
        fetch(mirror, tmp_path / "fetched")
        assert contents(tmp_path / "fetched") == contents(tmp_path / "packed")
        fetch(mirror, tmp_path / "fetched", Ref.parse(f"demo@{artifact.manifest.id}"))
        with pytest.raises(NotFound, match="demo@nightly"):
            fetch(mirror, tmp_path / "fetched", Ref.parse("demo@nightly"))
        with pytest.raises(StoreError, match="web server"):
            push(artifact, mirror)
        with pytest.raises(StoreError, match="cannot be listed"):
            mirror.environments()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.container
def test_a_full_disk(artifact: Artifact, local: Registry, tmp_path: Path) -> None:
    """On a file system of 20 MB, push and fetch say so before or when it is full."""
    bwrap = find_program("bwrap")
    require("bwrap", bwrap)
    push(artifact, local)
    program = (
        "import sys, pathlib\n"
        "from envferry.artifacts import read_artifact\n"
        "from envferry.errors import HostError\n"
        "from envferry.names import Ref\n"
        "from envferry.progress import Silent\n"
        "from envferry.registry import Registry\n"
        "from envferry.registry.fetch import fetch_artifact\n"
        "from envferry.registry.push import push_artifact\n"
        "artifact = read_artifact(pathlib.Path(sys.argv[2]))\n"
        "try:\n"
        "    push_artifact(artifact, registry=Registry.open('/mnt/full'), tags=(),"
        " progress=Silent())\n"
        "except HostError as error:\n"
        "    sys.stdout.write(f'push: {error} | {error.hint}\\n')\n"
        "try:\n"
        "    fetch_artifact(Ref.parse('demo'), registry=Registry.open(sys.argv[1]),"
        " directory=pathlib.Path('/mnt/fetched'), platform='linux-64', progress=Silent())\n"
        "except HostError as error:\n"
        "    sys.stdout.write(f'fetch: {error} | {error.hint}\\n')\n"
        "left = [p for p in pathlib.Path('/mnt').rglob('*') if p.is_file() and p.stat().st_size]\n"
        "sys.stdout.write(f'left: {left}\\n')\n"
    )
    sandbox = [str(bwrap), "--ro-bind", "/", "/", "--size", "20000000", "--tmpfs", "/mnt"]
    inside = [sys.executable, "-c", program, local.url, str(artifact.archive_path)]
    said = run([*sandbox, "--dev", "/dev", *inside]).stdout
    assert "push: registry /mnt/full: " in said
    assert "No space left" in said
    assert "fetch: fetching demo-" in said
    assert "left: []" in said


def bpf(code: int, true: int, false: int, value: int) -> bytes:
    return struct.pack("<HBBI", code, true, false, value)


def without_hard_links() -> bytes:
    """Return a seccomp filter that refuses link(2) and linkat(2) as FAT and exFAT do, on x86-64."""
    refuse = 0x00050000 | errno.EPERM
    return b"".join(
        [
            bpf(0x20, 0, 0, 0),  # load the number of the system call
            bpf(0x15, 1, 0, 265),  # linkat
            bpf(0x15, 0, 1, 86),  # link
            bpf(0x06, 0, 0, refuse),
            bpf(0x06, 0, 0, 0x7FFF0000),  # allow
        ]
    )


@pytest.mark.container
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the filter knows x86-64 only")
def test_a_disk_without_hard_links(artifact: Artifact, tmp_path: Path) -> None:
    """A USB disk with FAT or exFAT is a registry too, and still nothing is overwritten."""
    bwrap = find_program("bwrap")
    require("bwrap", bwrap)
    (tmp_path / "filter").write_bytes(without_hard_links())
    program = (
        "import os, sys, pathlib\n"
        "from envferry.artifacts import read_artifact\n"
        "from envferry.progress import Silent\n"
        "from envferry.registry import Registry\n"
        "from envferry.registry.push import push_artifact\n"
        "from envferry.stores.port import KeyTaken\n"
        "registry = Registry.open(sys.argv[1])\n"
        "try:\n"
        "    os.link(sys.argv[2], sys.argv[1] + '.link')\n"
        "except PermissionError:\n"
        "    sys.stdout.write('no links;')\n"
        "artifact = read_artifact(pathlib.Path(sys.argv[2]))\n"
        "push_artifact(artifact, registry=registry, tags=('usb',), progress=Silent())\n"
        "try:\n"
        "    registry.store.create(next(registry.store.list('v1/envs/')).key, b'x')\n"
        "except KeyTaken:\n"
        "    sys.stdout.write('kept')\n"
    )
    script = f'exec "$0" --bind / / --dev /dev --seccomp 3 "$@" 3<{tmp_path}/filter'
    url = str(tmp_path / "usb")
    inside = [sys.executable, "-c", program, url, str(artifact.archive_path)]
    assert run(["sh", "-c", script, str(bwrap), *inside]).stdout == "no links;kept"
    fetch(Registry.open(url), tmp_path / "fetched", Ref.parse("demo@usb"))
    assert contents(tmp_path / "fetched") == contents(tmp_path / "packed")
