"""A registry behind a proxy that breaks things: nothing wrong kept, nothing lost, clear words."""

from __future__ import annotations

import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from envferry.errors import PipelineError, StoreError
from envferry.names import Ref
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.fetch import fetch_artifact
from envferry.registry.inventory import Folder
from envferry.registry.layout import PRUNING
from envferry.registry.push import push_artifact, push_untagged
from envferry.registry.release_lookup import require_writable
from envferry.registry.removal import remove_artifact
from envferry.stores.opening import open_store
from envferry.stores.port import KeyTaken, LostRace
from envferry.stores.receive import REQUEST_BYTES
from tests.support.artifacts import PLATFORM, make_artifact
from tests.support.cli_runner import CliRunner
from tests.support.fault_proxy import FAULTS, Plan, fault_proxy
from tests.support.interrupting import interrupted
from tests.support.packed import pack, random_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from demo.seaweed import S3Server
    from envferry.stores.port import Store

pytestmark = pytest.mark.s3
OPERATIONS = 2000
WORKERS = 16


@pytest.fixture
def plan(s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plan]:
    """The plan of a proxy that the S3 configuration of this process leads to."""
    plan = Plan(upstream=s3_server.endpoint_url)
    with fault_proxy(plan) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        yield plan


class Witness:
    """What keys must hold, by all that was promised; values say which key they are for."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.random = random.Random(seed)
        self.own = f"w{seed}"
        self.begun: dict[str, bytes] = {}
        self.created: dict[str, bytes] = {}
        self.count = 0
        self.failed = 0

    def step(self) -> None:
        """Do one operation; giving up with a StoreError is allowed, everything else is not."""
        operation = self.random.choice((self.create, self.read, self.replace, self.list))
        try:
            operation()
        except StoreError:
            self.failed += 1

    def create(self) -> None:
        key = f"{self.own}/{self.random.randrange(60)}"
        data = self.random.randbytes(self.random.choice((0, 100, 30_000)))
        if key in self.created:
            with pytest.raises(StoreError):
                self.store.create(key, data)
            return
        data = self.begun.setdefault(key, data)
        try:
            self.store.create(key, data)
        except KeyTaken:
            assert self.store.read(key) == data, "a lost answer is the only reason"
        self.created[key] = data

    def read(self) -> None:
        if not self.created:
            return
        key = self.random.choice(sorted(self.created))
        data, stat = self.created[key], self.store.stat(key)
        assert stat is not None
        assert stat.size == len(data)
        assert self.store.read(key) == data
        if len(data) > 50:
            assert self.store.read(key, 7, 20) == data[7:27]

    def replace(self) -> None:
        """Count up; a count is never lost, and never moves back."""
        key = f"{self.own}/tag"
        stat = self.store.stat(key)
        count = int(self.store.read(key)) if stat else 0
        assert count >= self.count
        try:
            self.store.replace(key, str(count + 1).encode(), stat.version if stat else None)
        except LostRace:
            assert int(self.store.read(key)) == count + 1, "a lost answer is the only reason"
        self.count = count + 1

    def list(self) -> None:
        found = {listed.key for listed in self.store.list(f"{self.own}/")}
        assert set(self.created) <= found <= {*self.begun, f"{self.own}/tag"}


def test_thousands_of_operations_through_faults(plan: Plan, s3_url: str) -> None:
    """Every seventh request breaks; what was promised is there afterwards, byte for byte."""
    store = open_store(s3_url)
    plan.rate = 0.14
    witnesses = [Witness(store, seed) for seed in range(WORKERS)]

    def work(witness: Witness) -> None:
        for _ in range(OPERATIONS // WORKERS):
            witness.step()

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(work, witnesses))
    assert all(plan.seen[fault] > 10 for fault in FAULTS), plan.seen
    plan.rate = 0
    for witness in witnesses:
        for key, data in witness.created.items():
            assert store.read(key) == data
    assert sum(witness.failed for witness in witnesses) < OPERATIONS / 10


@pytest.mark.parametrize("seed", range(3))
def test_artifacts_through_faults(
    plan: Plan, s3_server: S3Server, s3_url: str, tmp_path: Path, seed: int
) -> None:
    """Push and fetch until they succeed: whatever a reader sees in between is whole."""
    plan.random.seed(seed)
    plan.rate = 0.15
    artifact = make_artifact(tmp_path / "packed", 40_000_000, seed=seed)
    registry = Registry.open(s3_url)
    for _ in range(20):
        try:
            push_artifact(artifact, registry=registry, tags=("stable",), progress=Silent())
            break
        except StoreError:
            plan.rate, rate = 0, plan.rate
            for entry in registry.environments():
                registry.require_archive(registry.manifest(entry.name, PLATFORM, entry.id))
            for id_ in registry.tags("demo", PLATFORM).values():
                registry.manifest("demo", PLATFORM, id_)
            plan.rate = rate
    for _ in range(20):
        try:
            fetch_artifact(Ref.parse("demo@stable"), registry=registry, directory=tmp_path / "out",
                           platform=PLATFORM, progress=Silent())  # fmt: skip
            break
        except StoreError:
            assert not list((tmp_path / "out").glob("*.tar.zst"))
    fetched = tmp_path / "out" / artifact.archive_path.name
    assert fetched.read_bytes() == artifact.archive_path.read_bytes()


def test_a_remover_knows_its_own_mark(plan: Plan, s3_url: str, tmp_path: Path) -> None:
    """The server wrote it and the answer got lost: that is not another process's removal."""
    artifact = make_artifact(tmp_path / "packed", 1000)
    registry = Registry.open(s3_url)
    push_untagged(artifact, registry=registry, progress=Silent())
    plan.lost_answer = f"PUT .*{PRUNING}"
    folder = Folder("demo", PLATFORM, artifact.manifest.id)
    assert remove_artifact(registry, folder, older_than_seconds=86400) is None
    assert plan.seen["reset after"] == 1
    assert not list(registry.store.list(folder.key))


def test_a_lost_answer_does_not_make_a_registry_read_only(plan: Plan, s3_url: str) -> None:
    registry = Registry.open(s3_url)
    plan.lost_answer = f"PUT .*{PLATFORM}/probe-"
    require_writable(registry, "demo", PLATFORM)
    assert plan.seen["reset after"] == 1
    assert not list(registry.store.list())


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("500", "InternalError|500"),
        ("slow down", "SlowDown|503"),
        ("html", "not an S3 server"),
        ("reset before", "cannot reach"),
        ("clock", "clock is wrong|denies access"),
        ("denied", "denies access"),
        ("no bucket", "does not exist"),
    ],
)
def test_a_fault_that_stays_is_said_clearly(
    plan: Plan, s3_url: str, tmp_path: Path, fault: str, words: str
) -> None:
    """Exit code 9, the reason, and no traceback; an answer to HEAD has no words, only a status."""
    artifact = make_artifact(tmp_path / "packed", 1000)
    plan.always = fault
    host = CliRunner(home=tmp_path, cache=tmp_path / "cache", environ={"ENVFERRY_REGISTRY": s3_url})
    said = host.run("push", artifact.archive_path, expect=9).stderr
    assert "hint: " in said
    store = open_store(s3_url)
    calls = (
        lambda: store.read("a"),
        lambda: store.create("a", b"x"),
        lambda: store.replace("a", b"x", None),
        lambda: list(store.list()),
        lambda: store.delete("a"),
    )

    def fail(call: Callable[[], object]) -> None:
        with pytest.raises(PipelineError, match=words) as caught:
            call()
        assert caught.value.exit_code == 9
        assert caught.value.hint

    with ThreadPoolExecutor() as pool:  # each waits for its tries
        list(pool.map(fail, calls))


@pytest.mark.parametrize("command", ["fetch", "install", "push"])
def test_a_server_that_hangs_is_not_waited_for(
    plan: Plan, s3_url: str, tmp_path: Path, command: str
) -> None:
    artifact = pack(tmp_path / "packed", {"big": random_bytes(1, 3 * REQUEST_BYTES)})
    host = CliRunner(home=tmp_path, cache=tmp_path / "cache", environ={"ENVFERRY_REGISTRY": s3_url})
    if command != "push":
        push_artifact(artifact, registry=Registry.open(s3_url), tags=(), progress=Silent())
    plan.hung = threading.Event()
    words = {
        "fetch": ("fetch", "demo", "-o", "out"),
        "install": ("install", "demo", "--envs-dir", "envs", "--no-check"),
        "push": ("push", str(artifact.archive_path)),
    }[command]
    interrupted(host, signal.SIGINT, plan.hung, *words)
    plan.hung = None
    host.run(*words)


def test_a_bucket_that_may_only_be_read(plan: Plan, s3_url: str, tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "packed", 1000)
    registry = Registry.open(s3_url)
    push_artifact(artifact, registry=registry, tags=(), progress=Silent())
    plan.always, plan.methods = "denied", ("PUT", "POST", "DELETE")
    fetch_artifact(Ref.parse("demo"), registry=registry, directory=tmp_path / "out",
                   platform=PLATFORM, progress=Silent())  # fmt: skip
    with pytest.raises(StoreError, match="denies access"):
        registry.move_tag("demo", PLATFORM, "stable", artifact.manifest.id)
