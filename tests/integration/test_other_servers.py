"""S3 servers of other makers, their moods, and what stands between: clocks, limits, proxies."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest

from envferry.errors import IntegrityError, PipelineError, StoreError
from envferry.names import Ref
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.check import check_registry
from envferry.registry.prune import RetentionPolicy, Scope, carry_out, plan_prune
from envferry.registry.push import push_artifact
from envferry.stores.opening import open_store
from envferry.stores.s3.conditions import IgnoresConditions
from envferry.stores.s3.store import S3Store
from envferry.stores.source import ContentSource
from tests.integration.conftest import empty_registry
from tests.support.artifacts import PLATFORM, make_artifact
from tests.support.fault_proxy import Plan, fault_proxy
from tests.support.forward_proxy import forward_proxy
from tests.support.packed import random_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from demo.seaweed import S3Server

pytestmark = pytest.mark.s3
SERVERS = ("s3_server", "moto_server", "s3rver_server")
SKEW = timedelta(minutes=20)


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> S3Server:
    """Each server that there is."""
    found: S3Server = request.getfixturevalue(request.param)
    return found


def test_a_server_that_ignores_conditions_is_found_out(
    s3rver_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before anything is sent; and who says that it does not matter may use it."""
    registry = Registry.open(empty_registry(s3rver_server, monkeypatch))
    artifact = make_artifact(tmp_path / "packed")
    with pytest.raises(IgnoresConditions, match="ignores If-None-Match") as caught:
        push_artifact(artifact, registry=registry, tags=(), progress=Silent())
    assert "ENVFERRY_ALLOW_RACES" in caught.value.hint
    assert list(registry.store.list()) == []
    monkeypatch.setenv("ENVFERRY_ALLOW_RACES", "1")
    registry = Registry.open(registry.url)
    push_artifact(artifact, registry=registry, tags=(), progress=Silent())
    assert check_registry(registry, read_bytes=True, progress=Silent()).findings == ()


def test_a_server_that_knows_no_conditions_is_named(
    s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(upstream=s3_server.endpoint_url, always="unimplemented", methods=("PUT",))
    with fault_proxy(plan) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        with pytest.raises(IgnoresConditions, match="does not know If-None-Match"):
            open_store(s3_url).create("a", b"")
        with pytest.raises(IgnoresConditions, match="does not know If-None-Match"):
            open_store(s3_url).replace("a", b"", None)


def test_who_may_write_only_somewhere_is_let_through(
    s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not every key may be written by everybody: what cannot be tried out is taken on trust."""
    plan = Plan(upstream=s3_server.endpoint_url, refused_part="/v1/probe-")
    with fault_proxy(plan) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        store = open_store(s3_url)
        store.create("v1/envs/a", b"x")
        assert store.read("v1/envs/a") == b"x"


def test_the_probe_is_one_for_a_command_and_leaves_nothing(
    s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(upstream=s3_server.endpoint_url)
    with fault_proxy(plan) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        store = open_store(s3_url)
        for number in range(3):
            store.create(f"v1/envs/{number}", b"x")
            store.replace(f"v1/tags/{number}", b"x", None)
    assert sum("/v1/probe-" in path for path in plan.paths) == 1
    assert sorted(one.key for one in store.list_level("v1/")) == ["v1/envs/", "v1/tags/"]


@pytest.mark.parametrize("name", ["s3_server", "moto_server"])
def test_an_upload_that_is_gone_does_not_stay(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    """Wrong bytes, whose parts a prune has removed by then: nobody is told that some stay."""
    server: S3Server = request.getfixturevalue(name)
    store, data = S3Store.open(empty_registry(server, monkeypatch)), random_bytes(1, 20_000_000)
    seen, ended = [0], [0]

    def watch(piece: bytes | memoryview) -> None:
        seen[0] += len(piece)
        if seen[0] == len(data):
            ended[0] = store.delete_unfinished("", 0)

    content = ContentSource(
        name="large",
        size=len(data),
        token="large",
        read_at=lambda offset, length: data[offset : offset + length],
        digests=("0" * 32, "0" * 64),
        watch=watch,
    )
    with pytest.raises(IntegrityError, match="large is damaged"):
        store.receive("large", content)
    assert ended == [1]
    assert not [one for one in caplog.records if one.levelname == "WARNING"]


@pytest.mark.parametrize("name", ["s3_server", "moto_server"])
def test_more_parts_than_a_page_holds(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """All bytes that have arrived count; SeaweedFS lists all parts at once, moto a thousand."""
    server: S3Server = request.getfixturevalue(name)
    store = S3Store.open(empty_registry(server, monkeypatch))
    target = {"Bucket": store.call.bucket, "Key": f"{store.call.prefix}large"}
    upload = store.call.client.create_multipart_upload(**target)["UploadId"]

    def send(number: int) -> None:
        store.call.client.upload_part(**target, UploadId=upload, PartNumber=number, Body=b"x")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, range(1, 1004)))
    assert [one.size for one in store.list_unfinished("")] == [1003]


@pytest.mark.parametrize("lacking", ["Initiated", "LastModified"])
def test_uploads_whose_age_is_not_said_are_pruned_by_their_parts(
    s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    """SeaweedFS 4.45 does not say when an upload began; one without parts may be under way."""
    with fault_proxy(Plan(upstream=s3_server.endpoint_url, without=lacking)) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        store = open_store(s3_url)
        assert isinstance(store, S3Store)
        for key in ("empty", "begun"):
            target = {"Bucket": store.call.bucket, "Key": f"{store.call.prefix}{key}"}
            answer = store.call.client.create_multipart_upload(**target)
        part = {"UploadId": answer["UploadId"], "PartNumber": 1, "Body": b"x"}
        store.call.client.upload_part(**target, **part)
        assert {one.key: one.size for one in store.list_unfinished("")} == {"empty": 0, "begun": 1}
        assert store.delete_unfinished("", 3600) == 0
        assert store.delete_unfinished("", 0) == 2
        assert list(store.list_unfinished("")) == []


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ("Size", "to list_objects_v2 has no Size"),
        ("ETag", "to list_objects_v2 has no ETag"),
        ("LastModified", "to list_objects_v2 has no LastModified"),
        ("Key", "did not answer list_objects_v2 as one"),
    ],
)
def test_what_an_answer_lacks_is_named(
    s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch, lacking: str, said: str
) -> None:
    open_store(s3_url).create("v1/envs/a", b"x")
    with fault_proxy(Plan(upstream=s3_server.endpoint_url, without=lacking)) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        with pytest.raises(StoreError, match=said) as caught:
            list(open_store(s3_url).list())
    assert url in caught.value.message


def test_a_bucket_without_upload_lists_is_pruned(
    s3rver_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("ENVFERRY_ALLOW_RACES", "1")
    registry = Registry.open(empty_registry(s3rver_server, monkeypatch))
    made = [make_artifact(tmp_path / "packed", 1000, seed=seed) for seed in range(3)]
    for artifact in made:
        push_artifact(artifact, registry=registry, tags=(), progress=Silent())
    policy = RetentionPolicy(keep_tagged=True, under_way=timedelta(0))
    now = datetime.now(timezone.utc) + timedelta(seconds=5)
    done = carry_out(registry, plan_prune(registry, Scope(), policy, now), progress=Silent())
    assert sum(decision.goes for decision in done.decisions) == 2
    (entry,) = registry.environments()
    assert entry.id == made[2].manifest.id
    assert "cannot list unfinished uploads" in caplog.text


def test_a_missing_bucket_is_one_everywhere(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    empty_registry(server, monkeypatch)
    large = tmp_path / "large"
    large.write_bytes(bytes(40_000_000))
    for call in (
        lambda: open_store("s3://no-such-bucket/x").stat("a"),
        lambda: open_store("s3://no-such-bucket/x").read("a"),
        lambda: open_store("s3://no-such-bucket/x").create("a", b""),
        lambda: open_store("s3://no-such-bucket/x").create_from_file("a", large),
        lambda: open_store("s3://no-such-bucket/x").replace("a", b"", None),
        lambda: list(open_store("s3://no-such-bucket/x").list()),
        lambda: list(open_store("s3://no-such-bucket/x").list_unfinished("v1/")),
        lambda: open_store("s3://no-such-bucket/x").delete("a"),
        lambda: list(open_store("s3://no-such-bucket/x").list_level("v1/")),
        lambda: Registry.open("s3://no-such-bucket/x").resolve(Ref.parse("demo"), PLATFORM),
        lambda: Registry.open("s3://no-such-bucket/x").environments(),
        lambda: push_artifact(
            make_artifact(tmp_path / "packed"),
            registry=Registry.open("s3://no-such-bucket/x"),
            tags=(),
            progress=Silent(),
        ),
    ):
        with pytest.raises(StoreError, match="bucket no-such-bucket does not exist"):
            call()


@pytest.mark.parametrize("says", ["code", "date"])
def test_a_wrong_clock_is_named_by_whatever_asks(
    s3_server: S3Server,
    s3_url: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    says: str,
) -> None:
    """The answer to HEAD has no body; and some servers only refuse, but say what time it is."""
    plan = Plan(upstream=s3_server.endpoint_url, always="clock")
    if says == "date":
        there = datetime.now(timezone.utc) - SKEW
        plan.always, plan.bare, plan.date = "denied", True, f"{there:%a, %d %b %Y %H:%M:%S GMT}"
    artifact = make_artifact(tmp_path / "packed")
    with fault_proxy(plan) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        registry = Registry.open(s3_url)
        id_ = artifact.manifest.id
        for call in (
            lambda: push_artifact(artifact, registry=registry, tags=(), progress=Silent()),
            lambda: registry.resolve(Ref.parse("demo@stable"), PLATFORM),
            lambda: registry.manifest("demo", PLATFORM, id_),
            lambda: registry.move_tag("demo", PLATFORM, "stable", id_),
            registry.environments,
        ):
            with pytest.raises(PipelineError, match="this machine's clock is wrong") as caught:
                call()
            assert "chrony" in caught.value.hint
            assert says == "code" or "20 minutes ahead" in caught.value.message


@pytest.mark.parametrize("fault", ["limited", "slow down"])
def test_a_server_that_asks_to_wait_too_long_is_given_up(
    s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    plan = Plan(upstream=s3_server.endpoint_url, always=fault, retry_after="3600")
    with fault_proxy(plan) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        store = open_store(s3_url)
        for call in (lambda: store.read("a"), lambda: list(store.list())):
            plan.seen.clear()
            with pytest.raises(StoreError, match="asks to wait 3600 s"):
                call()
            assert plan.seen[fault] == 1, "nobody is asked in vain"


def test_a_limit_that_passes_is_waited_for(
    s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(upstream=s3_server.endpoint_url, rate=0.5, faults=("limited",), retry_after="0")
    with fault_proxy(plan) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        store = open_store(s3_url)
        store.create("a", b"x")
        assert store.read("a") == b"x"
    assert plan.seen["limited"]


@pytest.mark.parametrize("place", ["directory", "s3_server", "moto_server"])
def test_eight_pushes_of_one_tag_end_right(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    url = str(tmp_path / "registry")
    if place != "directory":
        url = empty_registry(request.getfixturevalue(place), monkeypatch)
    made = [make_artifact(tmp_path / f"packed-{seed}", 1000, seed=seed) for seed in range(8)]

    def push(number: int) -> str:
        registry = Registry.open(url)
        push_artifact(made[number], registry=registry, tags=("stable",), progress=Silent())
        return made[number].manifest.id

    with ThreadPoolExecutor(8) as pool:
        pushed = set(pool.map(push, range(8)))
    registry = Registry.open(url)
    assert {entry.id for entry in registry.environments()} == pushed
    for tag in ("stable", "latest"):
        assert registry.resolve(Ref.parse(f"demo@{tag}"), PLATFORM) in pushed
        _, moves = registry_tag(registry, tag)
        assert moves == 8
    assert check_registry(registry, read_bytes=True, progress=Silent()).findings == ()


def registry_tag(registry: Registry, tag: str) -> tuple[str, int]:
    """Return where a tag points, and how often it was moved."""
    from envferry.registry.layout import tag_key
    from envferry.registry.tags import read_tag

    _, record = read_tag(registry, tag_key("demo", PLATFORM, tag))
    assert record is not None
    return record.id, record.counter


def test_s3_through_a_proxy(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = os.environ["AWS_ENDPOINT_URL_S3"]
    with forward_proxy(login="me:s3cret") as proxy:
        monkeypatch.setenv("all_proxy", proxy.url.replace("//", "//me:s3cret@"))
        store = open_store(s3_url)
        store.create("a", b"x")
        assert store.read("a") == b"x"
        assert proxy.seen
        assert all(endpoint in line for line in proxy.seen)
        proxy.seen.clear()
        monkeypatch.setenv("no_proxy", "10.0.0.0/8, 127.0.0.0/8")
        assert open_store(s3_url).read("a") == b"x"
        assert not proxy.seen


def test_s3_names_the_proxy_that_does_not_answer(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with forward_proxy() as proxy:
        gone = proxy.url
    monkeypatch.setenv("http_proxy", gone.replace("//", "//me:s3cret@"))
    with pytest.raises(StoreError, match=f"through the proxy {gone}") as caught:
        open_store(s3_url).read("a")
    assert "s3cret" not in caught.value.message
    assert "no_proxy" in caught.value.hint
