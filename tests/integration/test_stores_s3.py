"""The store suite on SeaweedFS, and what only object storage can get wrong."""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.errors import StoreError
from pipeline.process import run
from pipeline.stores.opening import open_store
from pipeline.stores.s3 import MOST_PARTS, PART_BYTES, S3Store, part_size
from tests.test_stores import StoreSuite

if TYPE_CHECKING:
    from pathlib import Path

    from demo.seaweed import S3Server
    from pipeline.stores.port import Store

pytestmark = pytest.mark.s3


class TestS3(StoreSuite):
    @pytest.fixture
    def store(self, s3_url: str) -> Store:
        return open_store(s3_url)


def test_a_failed_upload_leaves_no_parts(s3_url: str, tmp_path: Path) -> None:
    store = open_store(s3_url)
    assert isinstance(store, S3Store)
    source = tmp_path / "large"
    source.write_bytes(bytes(3 * PART_BYTES))
    unfinished: list[int] = []

    def interrupt(done_bytes: int) -> None:
        unfinished.append(len(uploads(store)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.create("large", source, interrupt)
    assert max(unfinished) == 1
    assert uploads(store) == []


def uploads(store: S3Store) -> list[Any]:
    answer = store.client.list_multipart_uploads(Bucket=store.bucket, Prefix=store.prefix)
    listed: list[Any] = answer.get("Uploads", [])
    return listed


def test_lists_more_than_a_page(s3_url: str) -> None:
    store = open_store(s3_url)
    for number in range(12):
        store.create(f"a/{number}", b"")
    assert isinstance(store, S3Store)
    pages = store.client.get_paginator("list_objects_v2").paginate(
        Bucket=store.bucket, Prefix=f"{store.prefix}a/", PaginationConfig={"PageSize": 5}
    )
    assert sum(1 for _ in pages) == 3
    assert len(list(store.list("a/"))) == 12


@pytest.mark.parametrize("size", [1, PART_BYTES * MOST_PARTS, PART_BYTES * MOST_PARTS + 1, 1 << 45])
def test_parts_are_few_enough(size: int) -> None:
    assert -(-size // part_size(size)) <= MOST_PARTS


def test_more_than_an_object_can_hold() -> None:
    with pytest.raises(StoreError, match="more than an object"):
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


def test_a_missing_bucket(s3_url: str) -> None:
    store = open_store("s3://no-such-bucket/x")
    for call in (
        lambda: store.read("a"),
        lambda: store.create("a", b""),
        lambda: store.replace("a", b"", None),
        lambda: list(store.list()),
    ):
        with pytest.raises(StoreError, match="bucket no-such-bucket does not exist"):
            call()


def test_an_unreachable_endpoint(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"cannot reach http://127\.0\.0\.1:9") as caught:
        open_store(s3_url).read("a")
    assert time.monotonic() - started < 10
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
        started = time.monotonic()
        with pytest.raises(StoreError, match="cannot reach"):
            open_store(s3_url).read("a")
        assert time.monotonic() - started < 15


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
    deadline = time.monotonic() + 5
    while is_listening(finished.stdout) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_listening(finished.stdout)


def is_listening(url: str) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", int(url.rsplit(":", 1)[1]))) == os.EX_OK
