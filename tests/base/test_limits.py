"""Servers that lie or dawdle: what they cost has a bound, before anything is verified."""

from __future__ import annotations

import gc
import http.client
import itertools
import os
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from envferry.artifacts import read_artifact, read_proof
from envferry.base.limits import MIB, Limits, limited, limited_connection, most_bytes
from envferry.base.retry import RetryPolicy
from envferry.build.downloads import DownloadCache
from envferry.config import NetworkSettings, Settings
from envferry.errors import IntegrityError, PipelineError, SpecError, StoreError
from envferry.models import LockedPackage
from envferry.progress import Silent
from envferry.stores.directory import DirectoryStore
from envferry.stores.http import HttpStore
from envferry.stores.s3.store import S3Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MANIFEST = "v1/envs/demo/linux-64/0123456789ab/manifest.json"
ONCE = RetryPolicy(attempts=1, unreachable_attempts=1)
TWICE = RetryPolicy(attempts=2, unreachable_attempts=2, first_pause=0)
QUICK = Limits(least_speed=1000, window_seconds=0.2, answer_bytes=4 * MIB, text_bytes=MIB)
SHA256 = "0" * 64
OK = b"HTTP/1.1 200 OK\r\n"


@contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[bytes]]]:
    """Answer each connection by a function; yield the URL and what was asked."""
    asked: list[bytes] = []
    ending = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                asked.append(connection.recv(65536))
                answer(connection)
            except OSError:
                return  # the client had enough

    def accept() -> None:
        while not ending.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
    finally:
        ending.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def endlessly(piece: bytes, pause: float = 0) -> Callable[[socket.socket], None]:
    """Send something again and again, until nobody listens any more."""
    waiting = threading.Event()

    def send(connection: socket.socket) -> None:
        while not waiting.wait(pause):
            connection.sendall(piece)

    return send


def after(head: bytes, then: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
    """Send something once, then go on."""

    def send(connection: socket.socket) -> None:
        connection.sendall(head)
        then(connection)

    return send


def silent(connection: socket.socket) -> None:
    """Send nothing more, and close."""


MEGABYTE = b"x" * MIB
HUGE = OK + b"Content-Length: 100000000000000000\r\n\r\n"
LONG = OK + b"Content-Length: 16777217\r\n\r\n"
PAGE = OK + b"Content-Type: text/html\r\n\r\n"
CHUNKS = OK + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNK = b"100000\r\n" + MEGABYTE + b"\r\n"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
TOO_MUCH = {
    "a length that nobody has": (after(HUGE, silent), "at most"),
    "more than a manifest has": (after(LONG, silent), "at most 16,777,216"),
    "an endless body": (after(OK + b"\r\n", endlessly(MEGABYTE)), "more than 4,194,304 bytes"),
    "an endless page": (after(PAGE, endlessly(MEGABYTE)), "more than 1,048,576 bytes"),
    "endless interim answers": (endlessly(INTERIM * 1000), "more than 1,048,576 bytes"),
    "endless chunks": (after(CHUNKS, endlessly(CHUNK)), "more than 4,194,304 bytes"),
}
MEGABYTES = OK + b"Content-Length: 2000000\r\n\r\n"
TOO_SLOW = {
    "in the status line": endlessly(b"H", 0.02),
    "in the headers": after(OK + b"X-Long: ", endlessly(b"x", 0.02)),
    "in the body": after(MEGABYTES, endlessly(b"x", 0.02)),
    "in the size of a chunk": after(CHUNKS, endlessly(b"0", 0.02)),
    "after much": after(MEGABYTES + MEGABYTE, endlessly(b"x", 0.02)),
}


@pytest.mark.parametrize("lie", TOO_MUCH)
def test_a_server_cannot_send_without_end(lie: str) -> None:
    answer, words = TOO_MUCH[lie]
    with (
        server(answer) as (url, _),
        pytest.raises((StoreError, IntegrityError), match=words) as caught,
    ):
        HttpStore(url, QUICK, policy=ONCE).read(MANIFEST)
    assert caught.value.hint


@pytest.mark.parametrize("place", TOO_SLOW)
def test_a_server_cannot_hang_by_a_trickle(place: str) -> None:
    with server(TOO_SLOW[place]) as (url, asked):
        with pytest.raises(StoreError, match=r"it sent \d+ bytes in .*ENVFERRY_MIN_SPEED"):
            HttpStore(url, QUICK, policy=TWICE).read(MANIFEST)
        assert len(asked) == 2, "a busy network may be to blame: one more attempt, and no more"


def test_slow_is_fine_where_the_site_says_so() -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(OK + b"Content-Length: 20\r\n\r\n")
        for _ in range(20):
            threading.Event().wait(0.02)
            connection.sendall(b"x")

    patient = Limits(least_speed=0, window_seconds=0.01)
    with server(answer) as (url, _):
        assert HttpStore(url, patient, policy=ONCE).read(MANIFEST) == b"x" * 20
    assert Settings.from_environ({"ENVFERRY_MIN_SPEED": "0"}).min_speed == 0
    with pytest.raises(SpecError, match="ENVFERRY_MIN_SPEED"):
        Settings.from_environ({"ENVFERRY_MIN_SPEED": "fast"})


def test_time_that_we_take_ourselves_does_not_count() -> None:
    """A host that writes slowly is not the server's fault."""
    body = b"x" * 3_000_000
    with server(after(OK + b"Content-Length: 3000000\r\n\r\n" + body, silent)) as (url, _):
        connection = limited_connection(http.client.HTTPConnection, QUICK)(
            url.removeprefix("http://")
        )
        connection.request("GET", "/")
        response = connection.getresponse()
        while response.read(MIB):
            threading.Event().wait(0.3)
        connection.close()


# urllib3 leaves the connection open that told it of a place which it cannot parse.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "place",
    [
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "http://[::1",
        "http://127.0.0.1:1234567/",
        "http://127.0.0.1:port/",
        "http://.../",
        f"http://{'a' * 300}.example/",
    ],
)
def test_redirects_lead_to_http_only(place: str, tmp_path: Path) -> None:
    head = f"HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()
    with server(after(head, silent)) as (url, asked):
        with pytest.raises(StoreError, match=r"redirects to|HTTP 302|cannot read"):
            HttpStore(url, QUICK, policy=ONCE).read(MANIFEST)
        with pytest.raises(PipelineError):
            download(url, tmp_path)
    assert all(b"passwd" not in line for line in asked)
    # urllib3 forgets the connection of a redirect that it cannot parse: its warning belongs here.
    gc.collect()


def test_redirects_to_http_are_followed() -> None:
    def elsewhere(connection: socket.socket) -> None:
        head = f"HTTP/1.1 307 X\r\nLocation: {there}/x\r\nContent-Length: 0\r\n\r\n"
        connection.sendall(head.encode())

    with (
        server(after(OK + b"Content-Length: 2\r\n\r\nok", silent)) as (there, _),
        server(elsewhere) as (url, _),
    ):
        assert HttpStore(url, QUICK, policy=ONCE).read(MANIFEST) == b"ok"


def download(url: str, tmp_path: Path, limits: Limits = QUICK) -> None:
    """Download a package from a server."""
    network = NetworkSettings(certificates=None, netrc=None, proxies={})
    cache = DownloadCache(tmp_path / "cache", network=network, policy=TWICE, limits=limits)
    package = LockedPackage(manager="conda", name="a", version="1", platform="linux-64",
                            url=f"{url}/a-1-0.conda", sha256=SHA256)  # fmt: skip
    cache.fetch_all([package], progress=Silent())


@pytest.mark.parametrize("lie", ["a length that nobody has", "an endless body", "endless chunks"])
def test_a_package_server_cannot_send_without_end(lie: str, tmp_path: Path) -> None:
    answer, _ = TOO_MUCH[lie]
    with (
        server(answer) as (url, asked),
        pytest.raises(StoreError, match="more than 4,194,304 bytes"),
    ):
        download(url, tmp_path)
    assert len(asked) == 1, "it lies again: nothing is gained by asking"
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 5 * MIB


@pytest.mark.parametrize("place", TOO_SLOW)
def test_a_package_server_cannot_hang_by_a_trickle(place: str, tmp_path: Path) -> None:
    """Though each attempt brings a byte more."""
    with server(TOO_SLOW[place]) as (url, asked):
        with pytest.raises(StoreError, match="ENVFERRY_MIN_SPEED"):
            download(url, tmp_path)
        assert len(asked) <= 6


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Return what sets variables, with those set that S3 clients need."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    return monkeypatch


S3_HEAD = b'HTTP/1.1 206 X\r\nETag: "x"\r\n'
S3_LIES = {
    "a length that nobody has": S3_HEAD
    + b"Content-Range: bytes 0-1/100000000000000000\r\nContent-Length: 2\r\n\r\nxx",
    "a longer length": S3_HEAD + b"Content-Length: 100000000000000000\r\n\r\n",
}


@pytest.mark.parametrize("lie", S3_LIES)
def test_an_s3_server_cannot_claim_any_length(lie: str, aws: pytest.MonkeyPatch) -> None:
    with server(after(S3_LIES[lie], silent)) as (url, _):
        aws.setenv("AWS_ENDPOINT_URL_S3", url)
        with pytest.raises(IntegrityError, match="at most 16,777,216 are expected"):
            S3Store.open("s3://bucket", QUICK).read(MANIFEST)


@pytest.mark.parametrize("kind", [b"application/xml", b"binary/octet-stream"])
def test_an_s3_server_cannot_list_without_end(kind: bytes, aws: pytest.MonkeyPatch) -> None:
    head = OK + b"Content-Type: " + kind + b"\r\n\r\n<ListBucketResult>"
    with server(after(head, endlessly(MEGABYTE))) as (url, _):
        aws.setenv("AWS_ENDPOINT_URL_S3", url)
        with pytest.raises(StoreError, match=r"stopped reading .* it sent more than"):
            list(S3Store.open("s3://bucket", QUICK).list("v1/"))


def test_an_s3_server_cannot_send_a_body_without_end(aws: pytest.MonkeyPatch) -> None:
    with server(after(S3_HEAD + b"\r\n", endlessly(MEGABYTE))) as (url, _):
        aws.setenv("AWS_ENDPOINT_URL_S3", url)
        with pytest.raises(StoreError, match=r"stopped reading .* it sent more than"):
            S3Store.open("s3://bucket", QUICK).read(MANIFEST)


@pytest.mark.parametrize("place", ["headers", "body", "listing"])
def test_an_s3_server_cannot_hang_by_a_trickle(place: str, aws: pytest.MonkeyPatch) -> None:
    head = S3_HEAD + b"Content-Length: 100000\r\n" + (b"\r\n" if place != "headers" else b"X: ")
    with server(after(head, endlessly(b"x", 0.02))) as (url, asked):
        aws.setenv("AWS_ENDPOINT_URL_S3", url)
        store = S3Store.open("s3://bucket", QUICK)
        with pytest.raises(StoreError, match=r"stopped reading .*ENVFERRY_MIN_SPEED"):
            list(store.list("v1/")) if place == "listing" else store.read(MANIFEST)
        assert len(asked) < 12


def test_a_listing_that_never_ends_is_given_up() -> None:
    with pytest.raises(StoreError, match="lists more than 1,000 values"):
        list(limited(itertools.count(), "s3://bucket", 1000))
    assert list(limited(iter(range(1000)), "s3://bucket", 1000)) == list(range(1000))


def test_the_limits_hold_what_large_environments_need() -> None:
    assert most_bytes("v1/tags/demo/linux-64/stable") == 64 << 10
    assert most_bytes(MANIFEST) == 16 * MIB
    assert most_bytes("v1/envs/a/b/c/conda-lock.yml") == 64 * MIB
    assert most_bytes("v1/envs/a/b/c/a-b-c.tar.zst.xxh128") == 4096
    assert most_bytes("anything") == 256 * MIB


def test_a_disk_cannot_claim_any_length(tmp_path: Path) -> None:
    """Sparse files cost an attacker nothing."""
    for name in (MANIFEST, "demo-linux-64-0123456789ab.manifest.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.truncate(path, 10**12)
    with pytest.raises(IntegrityError, match="at most 16,777,216 are expected"):
        DirectoryStore(tmp_path).read(MANIFEST)
    with pytest.raises(IntegrityError, match="more than this kind of file can have"):
        read_artifact(path)
    with pytest.raises(IntegrityError, match="more than this kind of file can have"):
        read_proof(path)


def test_the_page_of_a_login_is_no_damaged_file() -> None:
    def answer(connection: socket.socket) -> None:
        page = b"<html>Please log in</html>"
        head = f"Content-Type: text/html; charset=utf-8\r\nContent-Length: {len(page)}\r\n\r\n"
        connection.sendall(OK + head.encode() + page)

    with (
        server(answer) as (url, _),
        pytest.raises(StoreError, match="is answered with a web page") as caught,
    ):
        HttpStore(url, QUICK, policy=ONCE).read(MANIFEST)
    assert "login or a proxy" in (caught.value.hint or "")
