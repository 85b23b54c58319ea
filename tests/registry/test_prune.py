"""What goes and what stays, and that a prune and a push at once lose nothing that is tagged."""

from __future__ import annotations

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from envferry.errors import IntegrityError, NotFound, StoreError
from envferry.names import Ref
from envferry.progress import Silent
from envferry.registry import Registry, RemovedMeanwhile
from envferry.registry.check import check_registry
from envferry.registry.inventory import Folder
from envferry.registry.prune import PrunePlan, RetentionPolicy, Scope, carry_out, plan_prune
from envferry.registry.push import push_artifact
from envferry.registry.removal import remove_artifact
from envferry.stores.directory import DirectoryStore
from tests.support.artifacts import PLATFORM, make_artifact

if TYPE_CHECKING:
    from envferry.models import Artifact

NOW = datetime.now(timezone.utc)
DAY = timedelta(days=1)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(str(tmp_path / "registry"))


@pytest.fixture
def artifacts(tmp_path: Path, registry: Registry) -> list[Artifact]:
    """Five artifacts, the first of them 50 days old, the last 10; the third is tagged."""
    made = [make_artifact(tmp_path / "packed", seed=seed) for seed in range(5)]
    for number, artifact in enumerate(made):
        registry.publish(artifact, progress=Silent())
        grow_old(registry, artifact, days=50 - 10 * number)
    registry.move_tag("demo", PLATFORM, "stable", made[2].manifest.id)
    return made


def grow_old(registry: Registry, artifact: Artifact, days: int) -> None:
    when = (NOW - days * DAY).timestamp()
    for path in Path(registry.url, "v1/envs").glob(f"*/*/{artifact.manifest.id}/*"):
        os.utime(path, (when, when))


def plan(registry: Registry, **rules: object) -> PrunePlan:
    scope = Scope(names=(), platform=None)
    return plan_prune(registry, scope, RetentionPolicy(**rules), NOW)  # type: ignore[arg-type]


def gone(found: PrunePlan, artifacts: list[Artifact]) -> list[int]:
    ids = [artifact.manifest.id for artifact in artifacts]
    return sorted(ids.index(decision.id) for decision in found.decisions if decision.goes)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, []),
        ({"keep_tagged": True}, [0, 1, 3, 4]),
        ({"keep_last": 1}, [0, 1, 3]),
        ({"keep_last": 3}, [0, 1]),
        ({"keep_last": 9}, []),
        ({"keep_within": 25 * DAY}, [0, 1]),
        ({"keep_within": DAY}, [0, 1, 3, 4]),
        ({"keep_last": 1, "keep_within": 45 * DAY}, [0]),
        ({"keep_tagged": True, "under_way": 15 * DAY}, [0, 1, 3]),
    ],
)
def test_rules(
    registry: Registry, artifacts: list[Artifact], rules: dict[str, object], expected: list[int]
) -> None:
    found = plan(registry, **rules)
    assert gone(found, artifacts) == expected
    assert [decision.id for decision in found.decisions] == [
        one.manifest.id for one in reversed(artifacts)
    ]
    assert len(registry.environments()) == 5
    done = carry_out(registry, found, progress=Silent())
    assert gone(done, artifacts) == expected
    left = {entry.id for entry in registry.environments()}
    assert left == {one.manifest.id for n, one in enumerate(artifacts) if n not in expected}
    assert check_registry(registry, read_bytes=True, progress=Silent()).findings == ()
    assert registry.resolve(Ref.parse("demo@stable"), PLATFORM) == artifacts[2].manifest.id
    folders = {path.name for path in Path(registry.url, "v1/envs/demo", PLATFORM).iterdir()}
    assert folders == left


def test_sizes_are_those_of_the_files(registry: Registry, artifacts: list[Artifact]) -> None:
    before = sum(path.stat().st_size for path in Path(registry.url).rglob("*") if path.is_file())
    done = carry_out(registry, plan(registry, keep_tagged=True), progress=Silent())
    after = sum(path.stat().st_size for path in Path(registry.url).rglob("*") if path.is_file())
    assert done.size == before - after


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        (Scope(names=("demo",)), 4),
        (Scope(platform=PLATFORM), 4),
        (Scope(names=("demo",), platform="osx-64"), 0),
    ],
)
def test_scope(registry: Registry, artifacts: list[Artifact], scope: Scope, expected: int) -> None:
    assert artifacts
    found = plan_prune(registry, scope, RetentionPolicy(keep_tagged=True), NOW)
    assert sum(decision.goes for decision in found.decisions) == expected


def test_what_broken_pushes_left_goes_when_it_is_old(
    registry: Registry, artifacts: list[Artifact]
) -> None:
    broken = artifacts[4]
    next(Path(registry.url).rglob(f"{broken.manifest.id}/manifest.json")).unlink()
    archive = next(Path(registry.url).rglob(artifacts[0].archive_path.name))
    half = archive.with_name(f".{archive.name}.0a1b2c3d")
    half.write_bytes(b"half")
    found = plan(registry, under_way=20 * DAY)
    assert gone(found, artifacts) == []
    assert found.unfinished == ()
    os.utime(half, (0, 0))
    found = plan(registry)
    assert gone(found, artifacts) == [4]
    assert [one.size for one in found.unfinished] == [4]
    carry_out(registry, found, progress=Silent())
    assert not half.exists()
    assert archive.exists()
    assert len(registry.environments()) == 4
    assert registry.publish(broken, progress=Silent())


def test_what_a_killed_move_left_of_a_tag_goes_when_it_is_old(
    registry: Registry, artifacts: list[Artifact]
) -> None:
    tag = next(Path(registry.url).rglob("stable"))
    half = tag.with_name(f".{tag.name}.ab_12345")
    half.write_bytes(b"{")
    assert plan(registry).unfinished == ()
    os.utime(half, (0, 0))
    found = plan(registry)
    assert [one.key.rpartition("/")[2] for one in found.unfinished] == [half.name]
    carry_out(registry, found, progress=Silent())
    assert not half.exists()
    assert tag.exists()


def test_damaged_manifests_do_not_stop_it_and_damaged_tags_do(
    registry: Registry, artifacts: list[Artifact]
) -> None:
    for path in Path(registry.url).rglob("manifest.json"):
        path.write_bytes(b"?")
    grow_old(registry, artifacts[0], 50)
    assert 0 in gone(plan(registry, keep_within=25 * DAY), artifacts)
    next(Path(registry.url).rglob("stable")).write_bytes(b"?")
    with pytest.raises(IntegrityError, match="stable"):
        plan(registry, keep_tagged=True)


def test_a_tag_that_came_after_the_plan_keeps(
    registry: Registry, artifacts: list[Artifact]
) -> None:
    found = plan(registry, keep_tagged=True)
    registry.move_tag("demo", PLATFORM, "late", artifacts[0].manifest.id)
    done = carry_out(registry, found, progress=Silent())
    assert gone(done, artifacts) == [1, 3, 4]
    (kept,) = (decision for decision in done.decisions if decision.id == artifacts[0].manifest.id)
    assert "late" in kept.reason
    assert check_registry(registry, read_bytes=True, progress=Silent()).findings == ()


def test_missing_files_and_a_second_prune_do_no_harm(
    registry: Registry, artifacts: list[Artifact]
) -> None:
    found = plan(registry, keep_tagged=True)
    for path in Path(registry.url).rglob("*.tar.zst"):
        if artifacts[2].manifest.id not in path.name:
            path.unlink()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: carry_out(registry, found, progress=Silent()), range(2)))
    assert [entry.id for entry in registry.environments()] == [artifacts[2].manifest.id]
    assert check_registry(registry, read_bytes=True, progress=Silent()).findings == ()


class DyingStore(DirectoryStore, frozen=True):
    """A directory whose process dies at the so-many-th removal."""

    removals: list[str] = msgspec.field(default_factory=list)
    dies_at: int = 1

    def delete(self, key: str) -> None:
        """Remove, or die."""
        self._die_or_note(key)
        DirectoryStore.delete(self, key)

    def delete_folder(self, prefix: str) -> None:
        """Remove, or die."""
        self._die_or_note(prefix)
        DirectoryStore.delete_folder(self, prefix)

    def _die_or_note(self, key: str) -> None:
        self.removals.append(key)
        if len(self.removals) == self.dies_at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("dies_at", range(1, 6))
def test_a_prune_that_dies_is_ended_by_the_next(
    registry: Registry, artifacts: list[Artifact], dies_at: int
) -> None:
    """No reader is led astray meanwhile, no push completes what is half gone, `check` says so."""
    victim = artifacts[0]
    dying = Registry(DyingStore(Path(registry.url), dies_at=dies_at))
    folder = Folder("demo", PLATFORM, victim.manifest.id)
    with pytest.raises(KeyboardInterrupt):
        remove_artifact(dying, folder, 0)
    report = check_registry(registry, read_bytes=True, progress=Silent())
    assert report.broken == 0
    assert "removal of" in report.findings[0].what
    assert remove_artifact(registry, folder, 3600) == "another process is removing it"
    found = plan(registry, under_way=timedelta(0))
    assert gone(found, artifacts) == [0]
    carry_out(registry, found, progress=Silent())
    assert check_registry(registry, read_bytes=True, progress=Silent()).findings == ()
    assert registry.publish(victim, progress=Silent())


def test_a_push_waits_for_a_prune(registry: Registry, artifacts: list[Artifact]) -> None:
    victim = artifacts[0]
    mark = Path(registry.url, "v1/envs/demo", PLATFORM, victim.manifest.id, "pruning.json")
    mark.write_bytes(b"{}")
    ended = threading.Event()

    def end_prune() -> None:
        ended.set()
        mark.unlink()

    timer = threading.Timer(0.4, end_prune)
    timer.start()
    push_artifact(victim, registry=registry, tags=("again",), progress=Silent())
    assert ended.is_set()
    timer.join()
    assert registry.resolve(Ref.parse("demo@again"), PLATFORM) == victim.manifest.id


def test_nobody_waits_for_a_dead_prune_for_ever(
    registry: Registry, artifacts: list[Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envferry.registry.removal.WAIT_SECONDS", 0.2)
    victim = artifacts[0]
    mark = Path(registry.url, "v1/envs/demo", PLATFORM, victim.manifest.id, "pruning.json")
    mark.write_bytes(b"{}")
    with pytest.raises(StoreError, match="is being removed") as caught:
        registry.publish(victim, progress=Silent())
    assert "envferry prune --hours 0 --delete" in caught.value.hint


class PrunedStore(DirectoryStore, frozen=True):
    """A directory in which another process removes the artifact whose lock was just written."""

    def create(self, key: str, data: bytes) -> None:
        """Write a file, and have the other process follow a lock."""
        DirectoryStore.create(self, key, data)
        if key.endswith("conda-lock.yml"):
            id_ = key.split("/")[-2]
            others = Registry.open(str(self.root))
            assert remove_artifact(others, Folder("demo", PLATFORM, id_), 0) is None


def test_a_push_that_is_pruned_while_it_runs_leaves_no_manifest_alone(tmp_path: Path) -> None:
    """Whoever cannot end a push has published nothing: no environment without its archive."""
    artifact = make_artifact(tmp_path / "packed", seed=0)
    registry = Registry(PrunedStore(tmp_path / "registry"))
    with pytest.raises(RemovedMeanwhile, match="was removed from"):
        registry.publish(artifact, progress=Silent())
    assert registry.environments() == ()
    with pytest.raises(RemovedMeanwhile, match="whenever it is pushed"):
        push_artifact(artifact, registry=registry, tags=(), progress=Silent())
    assert check_registry(registry, read_bytes=True, progress=Silent()).findings == ()


def test_pushes_and_prunes_at_once(registry: Registry, tmp_path: Path) -> None:
    """Four pushers and two pruners: whatever a push has answered for is there."""
    made = [make_artifact(tmp_path / "packed", seed=seed) for seed in range(3)]
    registry.publish(made[0], progress=Silent())
    rounds = [0, 0]
    unanswered: list[Artifact] = []

    def is_enough() -> bool:
        return rounds[0] > 10 and rounds[1] > 3

    def push(number: int) -> None:
        chance = random.Random(number)
        while not is_enough():
            artifact = chance.choice(made)
            try:
                push_artifact(artifact, registry=registry, tags=(), progress=Silent())
            except RemovedMeanwhile:
                unanswered.append(artifact)
                continue  # it says so: push again
            except StoreError as error:
                assert "moved by other processes" in error.message  # noqa: PT017
                unanswered.append(artifact)
                continue
            rounds[0] += 1

    def prune(_: int) -> None:
        rule = RetentionPolicy(keep_tagged=True, under_way=timedelta(minutes=1))
        while not is_enough():
            now = datetime.now(timezone.utc) + DAY
            found = plan_prune(registry, Scope(), rule, now)
            done = carry_out(registry, found, progress=Silent())
            rounds[1] += sum(decision.goes for decision in done.decisions)

    with ThreadPoolExecutor(6) as pool:
        tasks = [pool.submit(push, number) for number in range(4)]
        tasks += [pool.submit(prune, number) for number in range(2)]
        for task in tasks:
            task.result()
    for artifact in (*unanswered, made[1]):
        push_artifact(artifact, registry=registry, tags=(), progress=Silent())
    report = check_registry(registry, read_bytes=True, progress=Silent())
    assert [one for one in report.findings if one.severity == "broken"] == []


def test_an_environment_that_is_not_there_is_not_pruned(
    registry: Registry, artifacts: list[Artifact]
) -> None:
    scope = Scope(names=(artifacts[0].manifest.name, "dmeo"))
    with pytest.raises(NotFound, match="dmeo"):
        plan_prune(registry, scope, RetentionPolicy(keep_last=1), NOW)
