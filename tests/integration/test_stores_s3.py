"""The store suite on SeaweedFS, and what only object storage can get wrong."""

from __future__ import annotations

import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from envferry.artifacts import write_companions
from envferry.base.files import digest_file
from envferry.errors import IntegrityError, StoreError
from envferry.models import Artifact, Manifest
from envferry.process import run
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.check import check_registry
from envferry.registry.prune import RetentionPolicy, Scope, carry_out, plan_prune
from envferry.registry.push import push_artifact
from envferry.stores.opening import open_store
from envferry.stores.port import KnownRange
from envferry.stores.receive import content_of_file
from envferry.stores.s3.multipart import (
    LARGEST_PART,
    LEAST_PART,
    MOST_PARTS,
    PART_BYTES,
    part_size,
    plan_parts,
)
from envferry.stores.s3.store import S3Store
from tests.integration.conftest import empty_registry
from tests.support.archives import small_archive
from tests.support.artifacts import make_artifact
from tests.support.fault_proxy import Plan, fault_proxy
from tests.support.store_suite import StoreSuite
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from demo.seaweed import S3Server
    from envferry.stores.port import Store

pytestmark = pytest.mark.s3


class TestS3(StoreSuite):
    completes_atomically = False
    """SeaweedFS looks at the condition of a completed upload first, and completes it then."""

    @pytest.fixture
    def store(self, s3_url: str) -> Store:
        return open_store(s3_url)


class TestMoto(StoreSuite):
    """It looks at a condition and then writes, without a lock: of two writers both may win."""

    completes_atomically = False
    decides_races = False

    @pytest.fixture
    def store(self, moto_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Store:
        return open_store(empty_registry(moto_server, monkeypatch))


class TestS3rver(StoreSuite):
    """It ignores conditions: the registry is for one writer at a time, and somebody said so."""

    completes_atomically = False
    decides_races = False
    replaces_atomically = False

    @pytest.fixture
    def store(self, s3rver_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Store:
        monkeypatch.setenv("ENVFERRY_ALLOW_RACES", "1")
        return open_store(empty_registry(s3rver_server, monkeypatch))


def interrupted(store: Store, source: Path) -> None:
    """Upload a file and stop after the first part."""

    def interrupt(done_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.create_from_file("large", source, interrupt)


@pytest.mark.parametrize("change", ["nothing", "file", "journal torn", "upload gone"])
def test_an_interrupted_upload_is_taken_up(
    s3_server: S3Server,
    s3_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    plan = Plan(upstream=s3_server.endpoint_url)
    with fault_proxy(plan) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        store = open_store(s3_url)
        assert isinstance(store, S3Store)
        source = tmp_path / "large"
        source.write_bytes(os.urandom(5 * PART_BYTES))
        interrupted(store, source)
        assert len(uploads(store)) == 1
        journal = tmp_path / ".large.upload"
        arrived = len(journal.read_text().splitlines()) - 1
        assert arrived
        if change == "file":
            source.write_bytes(os.urandom(5 * PART_BYTES))
        elif change == "journal torn":
            journal.write_bytes(journal.read_bytes()[:-9])
        elif change == "upload gone":
            assert store.delete_unfinished("", 0) == 1
        again = {"nothing": 5 - arrived, "journal torn": 6 - arrived}.get(change, 5)
        plan.sent.clear()
        store.create_from_file("large", source)
        assert again * PART_BYTES <= plan.sent_bytes < again * PART_BYTES + 10_000
        assert store.read("large") == source.read_bytes()
        assert uploads(store) == []
        assert not journal.exists()


def test_dead_uploads_are_found_and_removed(s3_url: str, tmp_path: Path) -> None:
    store = open_store(s3_url)
    assert isinstance(store, S3Store)
    source = tmp_path / "large"
    source.write_bytes(os.urandom(3 * PART_BYTES))
    store.create("there", b"x")
    interrupted(store, source)
    assert store.delete_unfinished("", 3600) == 0
    assert len(uploads(store)) == 1
    assert store.delete_unfinished("", 0) == 1
    assert uploads(store) == []
    assert [listed.key for listed in store.list()] == ["there"]


def test_more_dead_uploads_than_a_page_holds(s3_url: str) -> None:
    store = open_store(s3_url)
    assert isinstance(store, S3Store)
    keys = [f"v1/envs/demo/linux-64/0123456789ab/{number % 7}" for number in range(1003)]

    def begin(key: str) -> None:
        target = {"Bucket": store.call.bucket, "Key": store.call.prefix + key}
        store.call.client.create_multipart_upload(**target)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(begin, keys))
    assert len(list(store.list_unfinished("v1/envs/"))) == len(keys)
    assert store.delete_unfinished("v1/envs/", 3600) == 0
    assert store.delete_unfinished("v1/envs/", 0) == len(keys)
    assert list(store.list_unfinished("v1/envs/")) == []


def test_prune_in_object_storage(s3_url: str, tmp_path: Path) -> None:
    """What is listed of an unfinished upload is its bytes; old artifacts go, tagged ones stay."""
    registry = Registry.open(s3_url)
    made = [make_artifact(tmp_path / "packed", 1000, seed=seed) for seed in range(3)]
    for artifact in made:
        push_artifact(artifact, registry=registry, tags=(), progress=Silent())
    source = tmp_path / "large"
    source.write_bytes(os.urandom(3 * PART_BYTES))
    with pytest.raises(KeyboardInterrupt):
        registry.store.create_from_file("v1/envs/demo/linux-64/0123456789ab/x", source, _interrupt)
    policy = RetentionPolicy(keep_tagged=True, under_way=timedelta(hours=1))
    found = plan_prune(registry, Scope(), policy, datetime.now(timezone.utc))
    assert not any(decision.goes for decision in found.decisions)
    assert not found.unfinished
    policy = RetentionPolicy(keep_tagged=True, under_way=timedelta(0))
    now = datetime.now(timezone.utc) + timedelta(seconds=5)
    found = plan_prune(registry, Scope(), policy, now)
    (upload,) = found.unfinished
    assert upload.size >= PART_BYTES
    done = carry_out(registry, found, progress=Silent())
    assert sum(decision.goes for decision in done.decisions) == 2
    (entry,) = registry.environments()
    assert entry.id == made[2].manifest.id
    assert entry.published is not None
    assert abs((datetime.now(timezone.utc) - entry.published).total_seconds()) < 60
    assert check_registry(registry, read_bytes=True, progress=Silent()).findings == ()
    assert list(registry.store.list_unfinished("")) == []


def _interrupt(done_bytes: int) -> None:
    raise KeyboardInterrupt


def test_what_is_known_is_copied_in_the_store(
    s3_server: S3Server, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(upstream=s3_server.endpoint_url)
    with fault_proxy(plan) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        store = open_store(s3_url)
        old, new = tmp_path / "old", tmp_path / "new"
        data = os.urandom(96 << 20)
        old.write_bytes(data)
        store.create_from_file("a/old", old)
        # A megabyte more at the front, one byte other in the middle.
        new.write_bytes(os.urandom(1 << 20) + data[: 40 << 20] + b"x" + data[(40 << 20) + 1 :])
        known = (
            KnownRange(1 << 20, 40 << 20, "a/old", 0),
            KnownRange((41 << 20) + 1, (56 << 20) - 1, "a/old", (40 << 20) + 1),
        )
        plan.sent.clear()
        done: list[int] = []
        with content_of_file(new) as content:
            store.receive("a/new", content, done.append, known)
        assert plan.sent_bytes < 11 << 20
        assert sum(done) == new.stat().st_size
        assert store.read("a/new") == new.read_bytes()


@pytest.mark.parametrize("damage", ["what is copied", "what is sent"])
def test_a_damaged_archive_is_found_out_while_it_is_sent(
    s3_url: str, tmp_path: Path, damage: str
) -> None:
    """The server copies what an index says that it has: the file itself may hold other bytes."""
    store = open_store(s3_url)
    assert isinstance(store, S3Store)
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(os.urandom(2 * PART_BYTES))
    whole = os.urandom(PART_BYTES) + old.read_bytes()
    new.write_bytes(whole)
    digests = digest_file(new)
    known = (KnownRange(PART_BYTES, 2 * PART_BYTES, "old", 0),)
    store.create_from_file("old", old)
    with new.open("r+b") as stream:
        stream.seek(5 if damage == "what is sent" else 2 * PART_BYTES + 5)
        stream.write(b"damage")
    with (
        pytest.raises(IntegrityError, match=f"{new} is damaged: XXH3-128 is") as caught,
        content_of_file(new, digests) as content,
    ):
        store.receive("new", content, known=known)
    assert caught.value.hint == "pack the environment again, or fetch it again"
    assert store.stat("new") is None
    assert uploads(store) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
    new.write_bytes(whole)
    with content_of_file(new, digests) as content:
        store.receive("new", content, known=known)
    assert store.read("new") == whole


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_parts_cover_a_file_and_are_long_enough(data: st.DataObject) -> None:
    size = data.draw(st.integers(PART_BYTES + 1, 40 << 30))
    cuts = sorted(data.draw(st.sets(st.integers(0, size), max_size=12)))
    known = [KnownRange(a, b - a, "k", 7 * a) for a, b in list(pairwise(cuts))[::2]]
    parts = plan_parts(size, known)
    assert [part.number for part in parts] == list(range(1, len(parts) + 1))
    assert parts[0].offset == 0
    assert all(a.offset + a.length == b.offset for a, b in pairwise(parts))
    assert parts[-1].offset + parts[-1].length == size
    assert all(LEAST_PART <= part.length <= LARGEST_PART for part in parts[:-1])
    for part in parts:
        if part.known:
            (run,) = (one for one in known if one.offset <= part.offset < one.end)
            assert part.offset + part.length <= run.end
            assert part.known.key_offset - run.key_offset == part.offset - run.offset


def test_a_run_of_one_part_is_copied() -> None:
    run = KnownRange(1, 2 * LEAST_PART, "k", 0)
    parts = plan_parts(4 * LEAST_PART, [run])
    assert [(part.length, part.known is not None) for part in parts] == [
        (LEAST_PART, False),
        (LEAST_PART + 1, True),
        (2 * LEAST_PART - 1, False),
    ]


def uploads(store: S3Store) -> list[Any]:
    answer = store.call.client.list_multipart_uploads(
        Bucket=store.call.bucket, Prefix=store.call.prefix
    )
    listed: list[Any] = answer.get("Uploads", [])
    return listed


def test_lists_more_than_a_page(s3_url: str) -> None:
    store = open_store(s3_url)
    for number in range(12):
        store.create(f"a/{number}", b"")
    assert isinstance(store, S3Store)
    pages = store.call.client.get_paginator("list_objects_v2").paginate(
        Bucket=store.call.bucket, Prefix=f"{store.call.prefix}a/", PaginationConfig={"PageSize": 5}
    )
    assert sum(1 for _ in pages) == 3
    assert len(list(store.list("a/"))) == 12


@pytest.mark.parametrize("size", [1, PART_BYTES * MOST_PARTS, PART_BYTES * MOST_PARTS + 1, 1 << 45])
def test_parts_are_few_enough(size: int) -> None:
    assert -(-size // part_size(size)) <= MOST_PARTS


def test_more_than_an_object_can_hold() -> None:
    with pytest.raises(StoreError, match="an object cannot hold"):
        part_size(1 << 50)


@pytest.mark.parametrize(
    ("name", "value"),
    [("AWS_SECRET_ACCESS_KEY", "not-the-secret"), ("AWS_ACCESS_KEY_ID", "nobody-knows-me")],
)
def test_wrong_credentials(
    s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    store = open_store(s3_url)
    for call in (lambda: store.read("a"), lambda: store.create("a", b""), lambda: store.stat("a")):
        with pytest.raises(StoreError) as caught:
            call()
        said = caught.value.message + caught.value.hint
        assert "AWS_ACCESS_KEY_ID" in said
        assert "AWS_PROFILE" in said
        assert "not-the-secret" not in said
        assert s3_server.secret_key not in said


def test_no_credentials(s3_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match="no credentials") as caught:
        open_store(s3_url).read("a")
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint


def test_an_unknown_profile(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreError, match="nobody") as caught:
        open_store(s3_url)
    assert "AWS_PROFILE" in caught.value.hint


@pytest.mark.parametrize("style", ["virtual", "path", None])
def test_a_profile_says_how_to_address(
    s3_server: S3Server,
    s3_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    style: str | None,
) -> None:
    """Endpoint, keys and style all come from a profile, as everywhere in AWS."""
    lines = ["[profile site]", f"endpoint_url = {s3_server.endpoint_url}", "region = us-east-1"]
    if style:
        lines += ["s3 =", f"  addressing_style = {style}"]
    (tmp_path / "config").write_text("\n".join(lines) + "\n")
    keys = f"aws_access_key_id = {s3_server.access_key}\n"
    keys += f"aws_secret_access_key = {s3_server.secret_key}\n"
    (tmp_path / "credentials").write_text(f"[site]\n{keys}")
    for name in s3_server.environ:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "site")
    store = open_store(s3_url)
    assert isinstance(store, S3Store)
    assert store.call.client.meta.config.s3["addressing_style"] == (style or "path")
    if style != "virtual":
        store.create("a", b"x")
        assert store.read("a") == b"x"


@pytest.mark.parametrize(
    ("name", "hint"), [("no-such-bucket", "create it"), ("NoSuchBucket", "lower-case letters")]
)
@pytest.mark.usefixtures("s3_url")
def test_a_missing_bucket(name: str, hint: str) -> None:
    store = open_store(f"s3://{name}/x")
    for call in (
        lambda: store.read("a"),
        lambda: store.create("a", b""),
        lambda: store.replace("a", b"", None),
        lambda: list(store.list()),
    ):
        with pytest.raises(StoreError, match=f"bucket {name} does not exist") as caught:
            call()
        assert hint in caught.value.hint


def test_an_unreachable_endpoint(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"cannot reach http://127\.0\.0\.1:9") as caught:
        open_store(s3_url).read("a")
    assert "AWS_ENDPOINT_URL_S3" in caught.value.hint


def test_an_endpoint_that_swallows_packets(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener whose queue is full drops connections: what a firewall looks like."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
        with pytest.raises(StoreError, match="cannot reach"):
            open_store(s3_url).read("a")


def test_works_without_a_region(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.delenv("AWS_REGION", raising=False)
    store = open_store(s3_url)
    store.create("a", b"x")
    assert store.read("a") == b"x"


def test_the_server_dies_with_its_parent(tmp_path: Path) -> None:
    """A test run that is killed leaves no server behind."""
    program = (
        "import os, pathlib, signal, sys\n"
        "from demo.seaweed import seaweed\n"
        "with seaweed(pathlib.Path(sys.argv[1])) as server:\n"
        "    sys.stdout.write(server.endpoint_url)\n"
        "    sys.stdout.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    finished = run([sys.executable, "-c", program, tmp_path / "data"], check=False)
    assert finished.returncode == -9
    wait_until(lambda: not is_listening(finished.stdout), "the server has ended")


def is_listening(url: str) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", int(url.rsplit(":", 1)[1]))) == os.EX_OK


def test_a_new_version_sends_only_what_is_new(
    s3_server: S3Server, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine of ten packages are as they were: their frames are copied inside the store."""
    kept = {f"lib/{number}": os.urandom(9 << 20) for number in range(9)}
    plan = Plan(upstream=s3_server.endpoint_url)
    with fault_proxy(plan) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        registry = Registry.open(s3_url)
        for version in range(2):
            artifact = packed(tmp_path / "packed", {**kept, "zz/new": os.urandom(1 << 20)})
            plan.sent.clear()
            push_artifact(artifact, registry=registry, tags=(), progress=Silent())
            size = artifact.archive_path.stat().st_size
            assert plan.sent_bytes < (size * 1.01 if version == 0 else size / 10)
            registry.verify_archive(artifact.manifest, progress=Silent())


def packed(directory: Path, contents: dict[str, bytes]) -> Artifact:
    """Pack these files, and describe the archive."""
    directory.mkdir(exist_ok=True)
    draft = directory / "draft"
    written = small_archive(draft, contents)
    index = written.index
    file = f"demo-{index.platform}-{index.id}.tar.zst"
    draft.rename(directory / file)
    facts = written.facts
    manifest = Manifest(
        name="demo",
        platform=index.platform,
        id=index.id,
        prefix="/opt/conda/envs/demo",
        archive=facts,
        lock_digest=blake3(b"").hexdigest(),
        content_hash="",
        packages=(),
    )
    artifact = Artifact(directory=directory, manifest=manifest)
    write_companions(artifact, b"")
    return artifact
