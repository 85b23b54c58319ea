"""An OCI registry behind a proxy that breaks things, lies, or is none at all."""

from __future__ import annotations

import http.server
import json
import os
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from envferry.base.retry import RetryPolicy
from envferry.base.sha256 import sha256_of_file
from envferry.errors import IntegrityError, PipelineError, StoreError
from envferry.names import Ref
from envferry.process import run
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.check import check_registry
from envferry.registry.fetch import fetch_artifact
from envferry.registry.prune import RetentionPolicy, Scope, carry_out, plan_prune
from envferry.registry.push import push_artifact
from envferry.stores.oci import sending
from envferry.stores.oci.client import RegistryClient
from envferry.stores.oci.documents import (
    CONFIG,
    INDEX,
    MANIFEST,
    REF_NAME,
    describe,
    digest_of,
    encode,
    image_config,
    image_manifest,
    read_index,
)
from envferry.stores.oci.image_store import OciStore
from envferry.stores.oci.key_tags import ArchiveName
from envferry.stores.oci.registry_session import RegistrySession
from envferry.stores.oci.views import Views
from envferry.stores.opening import open_store
from envferry.stores.receive import REQUEST_BYTES
from tests.conftest import require
from tests.integration.test_faults import Witness
from tests.support.artifacts import PLATFORM, make_artifact
from tests.support.cli_runner import CliRunner
from tests.support.fault_proxy import FaultHandler, Plan, fault_proxy
from tests.support.oci_registry import docker_registry, find_oci_program
from tests.support.web_server import web_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.oci_registry import OciServer

pytestmark = pytest.mark.oci
OPERATIONS, WORKERS = 160, 8
QUICK = RetryPolicy(attempts=6, first_pause=0.01)
FAULTS = ("500", "503", "html", "reset before", "reset after", "cut body", "short body")


@contextmanager
def proxied(
    server: OciServer, kind: type[FaultHandler] = FaultHandler
) -> Iterator[tuple[Plan, str]]:
    """Yield the plan of a proxy before a registry, and the URL of an empty one through it."""
    plan = Plan(upstream=server.url, faults=FAULTS)
    with fault_proxy(plan, kind) as url:
        yield plan, f"oci://{url.removeprefix('http://')}/faults-{secrets.token_hex(4)}"


@pytest.fixture
def through(oci_server: OciServer, oci_url: str) -> Iterator[tuple[Plan, str]]:
    """A proxy that does what its plan says."""
    with proxied(oci_server) as found:
        yield found


def quick_store(url: str) -> OciStore:
    """Open a registry without pauses between attempts."""
    store = open_store(url)
    assert isinstance(store, OciStore)
    assert isinstance(store.space, RegistryClient)
    session = RegistrySession(store.space.session.base, policy=QUICK)
    return replace(store, space=RegistryClient(session))


def push(url: str, directory: Path, size: int = 1000) -> Registry:
    registry = Registry(quick_store(url))
    artifact = make_artifact(directory, size)
    push_artifact(artifact, registry=registry, tags=("stable",), progress=Silent())
    return registry


def fetch(registry: Registry, directory: Path) -> None:
    fetch_artifact(Ref.parse("demo@stable"), registry=registry, directory=directory,
                   platform=PLATFORM, progress=Silent())  # fmt: skip


def test_hundreds_of_operations_through_faults(through: tuple[Plan, str]) -> None:
    """Every tenth request breaks; what was promised is there afterwards, byte for byte."""
    plan, url = through
    store = quick_store(url)
    plan.rate = 0.1
    witnesses = [Witness(store, seed) for seed in range(WORKERS)]

    def work(witness: Witness) -> None:
        for _ in range(OPERATIONS // WORKERS):
            witness.step()

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(work, witnesses))
    assert all(plan.seen[fault] for fault in FAULTS), plan.seen
    plan.rate = 0
    for witness in witnesses:
        for key, data in witness.created.items():
            assert store.read(key) == data
    assert sum(witness.failed for witness in witnesses) < OPERATIONS / 10


def test_an_artifact_through_faults(through: tuple[Plan, str], tmp_path: Path) -> None:
    plan, url = through
    plan.rate = 0.1
    artifact = make_artifact(tmp_path / "packed", 3 * REQUEST_BYTES)
    registry = Registry(quick_store(url))
    for call in (
        lambda: push_artifact(artifact, registry=registry, tags=("stable",), progress=Silent()),
        lambda: fetch(registry, tmp_path / "out"),
    ):
        for _ in range(20):
            try:
                call()
                break
            except StoreError:
                assert not list((tmp_path / "out").glob("*.tar.zst"))
    fetched = tmp_path / "out" / artifact.archive_path.name
    assert fetched.read_bytes() == artifact.archive_path.read_bytes()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("500", "failed for|failed with"),
        ("html", "is not an OCI registry"),
        ("reset before", "cannot read"),
        ("denied", "is not an OCI registry|denies access"),
        ("limited", "asks to wait 3600 s"),
    ],
)
def test_a_fault_that_stays_is_said_clearly(
    through: tuple[Plan, str], tmp_path: Path, fault: str, words: str
) -> None:
    """Exit code 9, the reason, a hint; also when the registry was reached before."""
    plan, url = through
    store = quick_store(url)
    store.create("there", b"x")
    plan.always, plan.retry_after = fault, "3600" if fault == "limited" else None
    calls: list[Callable[[OciStore], object]] = [
        lambda one: one.read("there"),
        lambda one: one.create("a", b"x"),
    ]
    for one in (store, quick_store(url)):
        for call in calls:
            with pytest.raises(PipelineError, match=words) as caught:
                call(one)
            assert caught.value.exit_code == 9
            assert caught.value.hint


def test_a_push_does_not_read_the_version_before(through: tuple[Plan, str], tmp_path: Path) -> None:
    """No blob can be made of parts of another: what is known to be there is of no use."""
    plan, url = through
    registry = Registry.open(url)
    first, second = (make_artifact(tmp_path, 100_000, seed=seed) for seed in (1, 2))
    push_artifact(first, registry=registry, tags=(), progress=Silent())
    plan.paths.clear()
    push_artifact(second, registry=registry, tags=(), progress=Silent())
    blob = f"blobs/sha256:{sha256_of_file(first.archive_path)}"
    assert plan.paths
    assert not [path for path in plan.paths if path.endswith(blob)]


@pytest.mark.parametrize("change", ["nothing", "file", "upload gone"])
def test_an_interrupted_upload_is_taken_up(
    oci_server: OciServer,
    through: tuple[Plan, str],
    tmp_path: Path,
    change: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By another process: what has arrived is hashed again, and not sent again."""
    monkeypatch.setattr(sending, "CHUNK_BYTES", REQUEST_BYTES)
    plan, url = through
    source = tmp_path / "large"
    source.write_bytes(os.urandom(4 * REQUEST_BYTES))

    def interrupt(done_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_store(url).create_from_file("large", source, interrupt)
    if change == "file":
        source.write_bytes(os.urandom(4 * REQUEST_BYTES))
    elif change == "upload gone":
        uploads = oci_server.repository_path(url.rpartition("/")[2]) / "_uploads"
        shutil.rmtree(uploads)
    plan.sent.clear()
    store = open_store(url)
    store.create_from_file("large", source)
    again = 3 if change == "nothing" else 4
    assert again * REQUEST_BYTES <= plan.sent_bytes < again * REQUEST_BYTES + 20_000
    assert store.read("large") == source.read_bytes()
    assert not list(tmp_path.glob(".large*"))


def test_a_server_that_is_no_registry(tmp_path: Path) -> None:
    with web_server(tmp_path, http.server.SimpleHTTPRequestHandler) as url:
        host = CliRunner(home=tmp_path, cache=tmp_path / "cache")
        registry = url.replace("http", "oci") + "/envs"
        said = host.run("ls", "--registry", registry, expect=9).stderr
    assert "is not an OCI registry: GET /v2/ was answered with HTTP 404" in said


class Refusing(http.server.SimpleHTTPRequestHandler):
    """A registry that has nothing, and answers every write with one error."""

    protocol_version = "HTTP/1.1"
    status, code, words = 403, "DENIED", ""

    def do_GET(self) -> None:
        """Have nothing."""
        self.answer(200 if self.path == "/v2/" else 404, b"{}")

    def do_HEAD(self) -> None:
        """The same."""
        self.do_GET()

    def do_POST(self) -> None:
        """Refuse."""
        error = {"code": self.code, "message": self.words}
        self.answer(self.status, json.dumps({"errors": [error]}).encode())

    def answer(self, status: int, data: bytes) -> None:
        """Send an answer."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@pytest.mark.parametrize(
    ("status", "code", "words", "message", "hint"),
    [
        (403, "DENIED", "requested access is denied", "denies access to an upload", "podman login"),
        (404, "NAME_UNKNOWN", "no such repository", "has no repository envs/demo", "create it"),
        (403, "DENIED", "5 GiB of storage resource will exceed the limit", "has no room", "prune"),
        (413, "", "Repository storage quota exceeded", "has no room", "prune"),
        (418, "", "", "failed for an upload to envs/demo: HTTP 418", "registry's log"),
    ],
)
def test_what_a_registry_refuses_is_said_in_its_words(
    tmp_path: Path, status: int, code: str, words: str, message: str, hint: str
) -> None:
    answers = {"status": status, "code": code, "words": words}
    kind = type("Kind", (Refusing,), answers)
    with web_server(tmp_path, kind) as url, pytest.raises(StoreError) as caught:
        push(url.replace("http", "oci") + "/envs", tmp_path / "packed")
    assert message in caught.value.message
    assert words in caught.value.message
    assert hint in caught.value.hint


class Liar(FaultHandler):
    """Changes what passes through: what, a test says."""

    lie = ""

    def send(
        self, status: int, headers: dict[str, str], data: bytes, fault: str | None = None
    ) -> None:
        """Send an answer that is not the registry's."""
        is_blob, is_manifest = "/blobs/sha256:" in self.path, "/manifests/" in self.path
        is_read = self.command == "GET" and status in (200, 206)
        if is_read and is_blob and data and self.lie == "blob":
            data = data[:-1] + bytes([data[-1] ^ 1])
        elif is_read and is_blob and data and self.lie == "length":
            data = data[:-1]
        elif is_read and is_manifest and self.lie == "manifest":
            data = data.replace(b"created", b"changed")
        elif self.command == "PUT" and is_manifest and self.lie == "stored":
            headers["Docker-Content-Digest"] = f"sha256:{'0' * 64}"
        elif self.command == "PUT" and is_manifest and self.lie == "referrers":
            headers["OCI-Subject"] = f"sha256:{'0' * 64}"
        super().send(status, headers, data, fault)


@pytest.mark.parametrize(
    ("lie", "code", "words"),
    [
        ("blob", 8, "sends something else for sha256:"),
        ("length", 8, r"received \d+ of \d+ bytes"),
        ("manifest", 8, "sends another manifest of"),
    ],
)
def test_a_registry_that_lies_to_readers(
    oci_server: OciServer, oci_url: str, tmp_path: Path, lie: str, code: int, words: str
) -> None:
    class Kind(Liar):
        pass

    kind = Kind
    kind.lie = lie
    with proxied(oci_server, kind) as (_, url):
        kind.lie = ""
        registry = push(url, tmp_path / "packed")
        kind.lie = lie
        with pytest.raises(PipelineError, match=words) as caught:
            fetch(registry, tmp_path / "out")
        assert caught.value.exit_code == code
        assert not list((tmp_path / "out").glob("*.tar.zst"))


def test_a_changed_archive_is_found_by_its_index(
    oci_server: OciServer, oci_url: str, tmp_path: Path
) -> None:
    """Ranges of a blob have no digest of their own: frames and index have."""
    registry = push(oci_url, tmp_path / "packed", 200_000)
    manifest = registry.manifest("demo", PLATFORM, registry.resolve(Ref.parse("demo"), PLATFORM))
    data = (tmp_path / "packed" / manifest.archive.file).read_bytes()
    path = oci_server.blob_path(digest_of(data))
    path.write_bytes(data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
    host = CliRunner(home=tmp_path, cache=tmp_path / "cache",
                     environ={"ENVFERRY_REGISTRY": oci_url})  # fmt: skip
    host.run("install", "demo", "--envs-dir", "envs", "--no-check", expect=8)
    assert not (tmp_path / "envs/demo").exists()
    (finding,) = check_registry(registry, read_bytes=True, progress=Silent()).findings
    assert finding.key.endswith(".tar.zst")


@pytest.mark.parametrize(
    ("lie", "code", "words"),
    [
        ("stored", 8, "says that .* is sha256:0000"),
        ("referrers", 9, "which refers to .* does not list it"),
    ],
)
def test_a_registry_that_lies_to_writers(
    oci_server: OciServer, oci_url: str, tmp_path: Path, lie: str, code: int, words: str
) -> None:
    class Kind(Liar):
        pass

    kind = Kind
    kind.lie = lie
    with proxied(oci_server, kind) as (_, url):
        with pytest.raises(PipelineError, match=words) as caught:
            push(url, tmp_path / "packed")
        assert caught.value.exit_code == code
        assert caught.value.hint
        kind.lie = ""
        assert Registry.open(url).environments() == ()


class Referring(FaultHandler):
    """Keeps the lists of OCI 1.1 that docker-registry 2.8 does not know."""

    kept: ClassVar[dict[str, list[dict[str, Any]]]] = {}

    def pass_on(self, body: bytes, fault: str | None) -> None:
        """Answer what is asked of referrers; note what refers to what."""
        if "/referrers/" in self.path:
            listed = self.kept.get(self.path.rpartition("/")[2], [])
            index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
            self.send(200, {"Content-Type": INDEX}, json.dumps(index).encode())
            return
        if self.command == "PUT" and "/manifests/" in self.path and b'"subject"' in body:
            found = json.loads(body)
            described = json.loads(encode(describe(body, found["mediaType"])))
            described["artifactType"] = found["artifactType"]
            self.kept.setdefault(found["subject"]["digest"], []).append(described)
        super().pass_on(body, fault)

    def send(
        self, status: int, headers: dict[str, str], data: bytes, fault: str | None = None
    ) -> None:
        """Say that what refers to something was understood."""
        if self.command == "PUT" and "/manifests/" in self.path:
            headers["OCI-Subject"] = "noted"
        super().send(status, headers, data, fault)


def test_a_registry_that_keeps_referrers(
    oci_server: OciServer, oci_url: str, tmp_path: Path
) -> None:
    """Then we keep no list of our own; types are those that other tools know."""
    with proxied(oci_server, Referring) as (_, url):
        registry = push(url, tmp_path / "packed")
        store = quick_store(url)
        tags = set(store.space.tags(store.names.repository("demo")))
        assert not [tag for tag in tags if tag.startswith("sha256-")]
        (tag,) = [tag for tag in tags if tag.startswith(PLATFORM)]
        image = store.space.manifest_digest(store.names.repository("demo"), tag)
        listed = store.space.referrers(store.names.repository("demo"), image or "")
        assert {one.artifact_type for one in listed or ()} >= {
            "application/vnd.envferry.archive.v1",
            "application/vnd.envferry.manifest.v1+json",
            "application/vnd.conda.lock.v1+yaml",
        }
        assert check_registry(registry, read_bytes=True, progress=Silent()).findings == ()


def test_an_image_that_is_not_ours(oci_url: str, tmp_path: Path) -> None:
    """Neither read nor overwritten: exit code 8, and its type."""
    require("oci", shutil.which("skopeo"))
    image = tmp_path / "image"
    write_foreign_image(image)
    place = f"{oci_url.removeprefix('oci://')}/demo:latest"
    run(("skopeo", "copy", "--dest-tls-verify=false", f"oci:{image}:x", f"docker://{place}"))
    host = CliRunner(home=tmp_path, cache=tmp_path / "cache",
                     environ={"ENVFERRY_REGISTRY": oci_url})  # fmt: skip
    kind = "application/vnd.oci.image.config.v1+json"
    said = host.run("install", "demo", "--envs-dir", "envs", expect=8).stderr
    assert f"demo:latest was not written by envferry: its type is {kind}" in said
    with pytest.raises(IntegrityError, match="was not written by envferry"):
        push(oci_url, tmp_path / "packed")
    assert json.loads(run(("skopeo", "inspect", "--raw", "--tls-verify=false",
                           f"docker://{place}")).stdout)["layers"] == []  # fmt: skip


def write_foreign_image(directory: Path) -> None:
    """Write a layout with an image of no layers, as any tool may have made it."""

    def keep(data: bytes) -> None:
        path = directory / "blobs/sha256" / digest_of(data)[7:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    config = image_config(PLATFORM, ())
    manifest = image_manifest(config=describe(config, CONFIG), layers=())
    keep(config)
    keep(manifest)
    described: dict[str, Any] = json.loads(encode(describe(manifest, MANIFEST)))
    described["annotations"] = {REF_NAME: "x"}
    index = {"schemaVersion": 2, "manifests": [described]}
    (directory / "index.json").write_text(json.dumps(index))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def test_a_registry_that_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tags move all the same; `prune` says what to allow."""
    require("oci", find_oci_program("docker-registry"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "none.json"))
    with docker_registry(tmp_path / "registry", deletes=False) as server:
        url = f"oci://{server.host}/kept"
        registry = push(url, tmp_path / "packed")
        second = make_artifact(tmp_path / "packed", 1000, seed=2)
        push_artifact(second, registry=registry, tags=("stable",), progress=Silent())
        assert registry.resolve(Ref.parse("demo@stable"), PLATFORM) == second.manifest.id
        policy = RetentionPolicy(keep_tagged=True, under_way=timedelta(0))
        now = datetime.now(timezone.utc) + timedelta(seconds=5)
        with pytest.raises(StoreError, match="does not offer") as caught:
            carry_out(registry, plan_prune(registry, Scope(), policy, now), progress=Silent())
        assert "enabled: true" in caught.value.hint


def test_two_platforms_move_one_tag_at_once(oci_url: str) -> None:
    """The index that pullers read has both in the end, whoever came last."""
    store = open_store(oci_url)
    assert isinstance(store, OciStore)
    platforms = ("linux-64", "linux-aarch64", "osx-arm64")
    for platform in platforms:
        key = f"v1/envs/demo/{platform}/0123456789ab/x"
        store.create(key, b"")
        name = ArchiveName("demo", platform, "0123456789ab")
        store.views.make_image(key, name, (), (digest_of(platform.encode()),))
    record = b'{"schema": 1, "id": "0123456789ab", "counter": 1}'
    with ThreadPoolExecutor(len(platforms)) as pool:
        list(
            pool.map(
                lambda one: store.replace(f"v1/tags/demo/{one}/stable", record, None), platforms
            )
        )
    found = store.space.manifest(store.names.repository("demo"), "stable")
    assert found is not None
    assert describe(found.data, "").digest == found.digest
    assert len(read_index(found.data, "it").manifests) == len(platforms)


class Slow(RegistryClient, frozen=True):
    """A client that is overtaken while it is about to write `run.stable` for the first time."""

    overtaken: list[Callable[[], object]]

    def put_manifest(self, repository: str, tag: str, data: bytes, media_type: str) -> bool:
        if tag == "run.stable" and self.overtaken:
            self.overtaken.pop()()
        return super().put_manifest(repository, tag, data, media_type)


def test_two_platforms_get_a_system_below_them_at_once(oci_url: str) -> None:
    """The image of each stays, whoever began first; so does one that an older version wrote."""
    store = open_store(oci_url)
    assert isinstance(store, OciStore)
    assert isinstance(store.space, RegistryClient)
    repository = store.names.repository("demo")

    def write(views: Views, platform: str, tag: str = "stable") -> None:
        views.make_runnable(("demo", platform, "0123456789ab"), platform.encode(), (), (tag,))

    def listed() -> list[str]:
        found = store.space.manifest(repository, "run.stable")
        assert found
        platforms = [one.platform for one in read_index(found.data, "it").manifests]
        return [f"{one.os}-{one.architecture}" for one in platforms if one]

    write(store.views, "osx-arm64")
    before = store.space.manifest(repository, "run.stable")
    image = store.space.manifest(repository, "run._t.osx-arm64.stable")
    assert before
    assert image
    # As before there was a tag for each platform.
    store.space.delete_manifest(repository, image.digest)
    store.space.put_manifest(repository, "run.osx-arm64-0123456789ab", image.data, MANIFEST)
    store.space.put_manifest(repository, "run.stable", before.data, INDEX)
    slow = Slow(store.space.session, [lambda: write(store.views, "linux-aarch64")])
    write(Views(slow, store.names), "linux-64")
    assert listed() == ["darwin-arm64", "linux-amd64", "linux-arm64"]
    # A new image of a platform takes the place of its old one alone.
    write(store.views, "linux-64")
    write(store.views, "linux-64", "other")
    assert listed() == ["darwin-arm64", "linux-amd64", "linux-arm64"]
    # What is removed is not listed, and takes none of the others along.
    store.views.remove_image(ArchiveName("demo", "linux-64", "0123456789ab"))
    assert listed() == ["linux-arm64"]
    tags = [tag for tag in store.space.tags(repository) if tag.startswith("run.")]
    assert sorted(tags) == [
        "run._t.linux-aarch64.stable",
        "run.linux-aarch64-0123456789ab",
        "run.osx-arm64-0123456789ab",
        "run.stable",
    ]
