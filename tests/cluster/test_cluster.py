"""What a client believes of workers, and which schedulers it talks to; no cluster is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from msgspec.structs import replace

from envferry import __version__
from envferry.artifacts import ATTESTATION, write_companions
from envferry.cluster.address import check_scheduler, is_private
from envferry.cluster.job import work
from envferry.cluster.messages import BuildChoice
from envferry.cluster.release import accept, make_job, move_all_tags, sign
from envferry.errors import HostError, IntegrityError, NotFound, UsageError
from envferry.models import CHECKS, Artifact, Checks, SystemRequirements
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.layout import folder_of, tag_key
from envferry.registry.removal import RemovedMeanwhile
from envferry.specs.locks import read_lock
from envferry.trust.signing import Signer, generate_key, parse_signing_key
from tests.support.artifacts import PLATFORM, make_artifact

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.cluster.messages import BuildJob
    from envferry.models import Lock, Manifest

CHOICE = BuildChoice(sandbox="auto", level=3)
KEY = parse_signing_key(generate_key()[0], "test key")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    signer = Signer(keys=(KEY,), who="test@host", time="2026-01-01T00:00:00Z")
    return Registry.open(str(tmp_path / "registry"), signer=signer)


def built(directory: Path, seed: int = 1, **changes: Any) -> Artifact:
    """Make an artifact as a worker would, but for `changes` of its manifest."""
    artifact = make_artifact(directory, seed=seed)
    tools = {"tools": {"envferry": __version__}}
    manifest = msgspec.structs.replace(artifact.manifest, **(tools | changes))
    changed = Artifact(directory=directory, manifest=manifest)
    write_companions(changed, artifact.lock_path.read_bytes())
    return changed


def pushed(registry: Registry, artifact: Artifact) -> Manifest:
    """Push as a worker does: without a key, without tags."""
    replace(registry, signer=None).publish(artifact, progress=Silent())
    return artifact.manifest


def asked(registry: Registry, artifact: Artifact) -> tuple[Lock, BuildJob]:
    """Return the lock and the job that an artifact is the right answer to."""
    lock = replace(read_lock(artifact.lock_path), name="demo")
    return lock, make_job("1", lock, PLATFORM, registry.url, CHOICE)


def test_what_was_asked_for_is_signed(registry: Registry, tmp_path: Path) -> None:
    artifact = built(tmp_path)
    manifest = pushed(registry, artifact)
    lock, job = asked(registry, artifact)
    sign(registry, accept(registry, lock, job, manifest.id, uploaded=True))
    assert registry.attachment(manifest, ATTESTATION)
    again = accept(registry, lock, job, manifest.id, uploaded=True)
    before = registry.attachment(manifest, ATTESTATION)
    sign(registry, again)
    assert registry.attachment(manifest, ATTESTATION) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"version": "2.0"}, "version is '2.0', expected None"),
        ({"checks": Checks(imports=("numpy",))}, "checks is"),
        ({"requirements": SystemRequirements(glibc="2.0")}, "system requirements is"),
        ({"tools": {"envferry": "0.0.1"}}, "envferry is '0.0.1'"),
        ({"tools": {"envferry": __version__, CHECKS: "not run"}}, "checks that ran is 'none'"),
        ({"tools": {"envferry": __version__, "exclude": "lib"}}, "excluded files is"),
        ({"prefix": "/opt/conda/envs/other"}, "prefix is"),
    ],
)
def test_a_stolen_worker_that_describes_something_else(
    registry: Registry, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    artifact = built(tmp_path, **changes)
    manifest = pushed(registry, artifact)
    lock, job = asked(registry, artifact)
    with pytest.raises(IntegrityError, match="not what was asked for") as caught:
        accept(registry, lock, job, manifest.id, uploaded=True)
    assert named in caught.value.message
    assert registry.attachment(manifest, ATTESTATION) is None
    assert registry.tags("demo", PLATFORM) == {}


def test_a_stolen_worker_that_pushes_another_lock(registry: Registry, tmp_path: Path) -> None:
    wanted, other = built(tmp_path / "1"), built(tmp_path / "2", seed=2)
    manifest = pushed(registry, other)
    lock, job = asked(registry, wanted)
    with pytest.raises(IntegrityError, match=r"lock is '\w+', expected"):
        accept(registry, lock, job, manifest.id, uploaded=True)
    with pytest.raises(NotFound):
        accept(registry, lock, job, "0" * 12, uploaded=True)


def test_a_stolen_worker_that_changes_the_manifest_after_the_check(
    registry: Registry, tmp_path: Path
) -> None:
    artifact = built(tmp_path)
    manifest = pushed(registry, artifact)
    lock, job = asked(registry, artifact)
    accepted = accept(registry, lock, job, manifest.id, uploaded=True)
    path = tmp_path / "registry" / f"{folder_of(manifest)}manifest.json"
    path.write_bytes(path.read_bytes().replace(b"numpy", b"nvmpy"))
    with pytest.raises(IntegrityError, match="was changed while it was read"):
        sign(registry, accepted)
    assert registry.attachment(manifest, ATTESTATION) is None


def test_a_stolen_worker_that_signs_itself(registry: Registry, tmp_path: Path) -> None:
    artifact = built(tmp_path)
    manifest = pushed(registry, artifact)
    stranger = parse_signing_key(generate_key()[0], "a stranger's key")
    theirs = Signer(keys=(stranger,), who="worker", time="2026-01-01T00:00:00Z")
    replace(registry, signer=theirs).publish(artifact, progress=Silent())
    lock, job = asked(registry, artifact)
    with pytest.raises(IntegrityError, match="signed by unknown keys"):
        sign(registry, accept(registry, lock, job, manifest.id, uploaded=True))


def test_tags_move_together_or_not_at_all(registry: Registry, tmp_path: Path) -> None:
    old = pushed(registry, built(tmp_path / "1"))
    artifact = built(tmp_path / "2", seed=2)
    new = pushed(registry, artifact)
    registry.move_tag("demo", PLATFORM, "latest", old.id)
    tag = tmp_path / "registry" / tag_key("demo", PLATFORM, "stable")
    with pytest.raises(NotFound):
        # The artifact of the second move is not there.
        move_all_tags(registry, (new, msgspec.structs.replace(new, id="0" * 12)), ("latest",))
    assert registry.tags("demo", PLATFORM) == {"latest": old.id}
    gone = msgspec.structs.replace(new, id="0" * 12)
    with pytest.raises(NotFound):
        move_all_tags(registry, (new, gone), ("stable",))
    assert not tag.exists(), "a tag that was not there before is not there now"
    lock, job = asked(registry, artifact)
    sign(registry, accept(registry, lock, job, new.id, uploaded=True))
    move_all_tags(registry, (new,), ("latest", "stable"))
    assert registry.tags("demo", PLATFORM) == {"latest": new.id, "stable": new.id}


def test_tags_move_back_from_what_was_removed_meanwhile(registry: Registry, tmp_path: Path) -> None:
    """By a prune, after the worker's push was accepted."""
    unsigned = replace(registry, signer=None)
    old = pushed(registry, built(tmp_path / "1"))
    new = pushed(registry, built(tmp_path / "2", seed=2))
    unsigned.move_tag("demo", PLATFORM, "stable", old.id)
    (removed,) = (tmp_path / "registry" / folder_of(new)).glob("*.xxh128")
    removed.unlink()
    with pytest.raises(RemovedMeanwhile):
        move_all_tags(unsigned, (new,), ("latest", "stable"))
    assert registry.tags("demo", PLATFORM) == {"stable": old.id}


def test_a_worker_refuses_what_it_cannot_build(registry: Registry, tmp_path: Path) -> None:
    _, job = asked(registry, built(tmp_path))
    old = work(msgspec.structs.replace(job, version="0.0.1"), tmp_path)
    other = work(msgspec.structs.replace(job, platform="osx-arm64"), tmp_path)
    for answer, named in ((old, "expected 0.0.1"), (other, "not for osx-arm64")):
        assert answer.failure is not None
        assert answer.failure.exit_code == HostError.exit_code
        assert named in answer.failure.message


def test_what_the_registry_has_is_not_built(registry: Registry, tmp_path: Path) -> None:
    artifact = built(tmp_path)
    manifest = pushed(registry, artifact)
    _, job = asked(registry, artifact)
    choice = msgspec.structs.replace(CHOICE, reuse=True)
    answer = work(msgspec.structs.replace(job, choice=choice), tmp_path)
    assert (answer.id, answer.built, answer.failure) == (manifest.id, False, None)


@pytest.mark.parametrize(
    "address",
    ["tls://build.example:8786", "tcp://127.0.0.1:8786", "tcp://localhost:1", "tcp://[::1]:8786"],
)
def test_schedulers_that_are_talked_to(address: str) -> None:
    assert check_scheduler(address) == address


@pytest.mark.parametrize(
    "address",
    [
        *("tcp://build.example:8786", "tcp://10.0.0.1:8786", "tcp://127.0.0.1.example:8786"),
        *("tcp://localhost.example:1", "tcp://0.0.0.0:8786", "ws://127.0.0.1:8786", "build:8786"),
        *("tls://build.example", "tls://build.example:port", "tls://:8786", "", "127.0.0.1:8786"),
        *("tls://user:word@build.example:8786", "tcp://localhost@build.example:8786"),
    ],
)
def test_schedulers_that_are_not(address: str) -> None:
    with pytest.raises(UsageError):
        check_scheduler(address)


def test_workers_on_a_network_use_tls() -> None:
    assert is_private("tls://10.0.0.1:41")
    assert is_private("inproc://10.0.0.1/1/2")
    assert not is_private("tcp://10.0.0.1:41")
    assert not is_private("ucx://10.0.0.1:41")
