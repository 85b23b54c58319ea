"""The download cache against a local server that misbehaves in every way we know of."""

from __future__ import annotations

import base64
import socketserver
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import hashes
from msgspec.structs import replace

from envferry.base.proxies import choose_proxy
from envferry.base.retry import RetryPolicy
from envferry.build.downloads import DownloadCache
from envferry.config import NetworkSettings
from envferry.errors import IntegrityError, NotFound, SpecError, StoreError
from envferry.models import LockedPackage
from envferry.progress import Expected, Silent
from envferry.redaction import redact
from tests.support.digests import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CONTENT = bytes(range(256)) * 4096
HALF = len(CONTENT) // 2


class Server(ThreadingHTTPServer):
    """Serves CONTENT under names that say how; counts what was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.headers: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.strip("/").split("?")[0].split("/")[-1]
        self.server.requests[name] += 1
        self.server.headers.append(self.headers["Authorization"])
        serve = getattr(self, f"serve_{name.partition('.')[0]}", self.serve_good)
        serve(self.server.requests[name])

    def serve_good(self, _count: int) -> None:
        start = 0
        if wanted := self.headers["Range"]:
            self.server.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(CONTENT):
            self.refuse(416)
            return
        self.send_response(206 if start else 200)
        if start:
            last = len(CONTENT) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(CONTENT)}")
        self.answer(CONTENT[start:])

    def serve_truncated(self, count: int) -> None:
        if count > 1:
            self.serve_good(count)
            return
        self.send_response(200)
        self.answer(CONTENT[:HALF], len(CONTENT))
        self.close_connection = True

    def serve_stuttering(self, _count: int) -> None:
        """A tenth at a time, then the connection ends."""
        start = int((self.headers["Range"] or "bytes=0-")[6:-1])
        last = len(CONTENT) - 1
        self.send_response(206 if start else 200)
        self.send_header("Content-Range", f"bytes {start}-{last}/{len(CONTENT)}")
        self.answer(CONTENT[start : start + len(CONTENT) // 10 + 1], len(CONTENT) - start)
        self.close_connection = True

    def serve_busy(self, count: int) -> None:
        self.refuse(503) if count <= 2 else self.serve_good(count)

    def serve_overloaded(self, _count: int) -> None:
        self.refuse(503)

    def serve_limited(self, _count: int) -> None:
        self.send_response(429)
        self.send_header("Retry-After", "3600")
        self.answer(b"")

    def serve_wrong(self, _count: int) -> None:
        self.send_response(200)
        self.answer(CONTENT[::-1])

    def serve_norange(self, _count: int) -> None:
        self.send_response(200)
        self.answer(CONTENT)

    def serve_missing(self, _count: int) -> None:
        self.refuse(404)

    def serve_private(self, count: int) -> None:
        expected = "Basic " + base64.b64encode(b"me:secret").decode()
        self.serve_good(count) if self.headers["Authorization"] == expected else self.refuse(401)

    def serve_moved(self, _count: int) -> None:
        self.send_response(302)
        self.send_header("Location", "/good.whl")
        self.answer(b"")

    def refuse(self, status: int) -> None:
        self.send_response(status)
        self.answer(b"")

    def answer(self, content: bytes, length: int | None = None) -> None:
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


QUICK = RetryPolicy(attempts=5, first_pause=0)
SLOW = RetryPolicy(first_pause=30, longest_pause=30)
NO_SETTINGS = NetworkSettings(certificates=None, netrc=None, proxies={})


def cache_in(path: Path, netrc: Path | None = None) -> DownloadCache:
    settings = replace(NO_SETTINGS, netrc=netrc)
    return DownloadCache(path, network=settings, policy=QUICK)


@pytest.fixture
def cache(tmp_path: Path) -> DownloadCache:
    return cache_in(tmp_path / "downloads")


def package(url: str, **hashes_of: str) -> LockedPackage:
    return LockedPackage(
        manager="pip",
        name="demo",
        version="1",
        platform="linux-64",
        url=url,
        **(hashes_of or {"sha256": digest(CONTENT)}),  # type: ignore[arg-type]
    )


def fetch(cache: DownloadCache, *packages: LockedPackage, offline: bool = False) -> list[Path]:
    found = cache.fetch_all(packages, progress=Silent(), offline=offline)
    return [found[item.url] for item in packages]


def partial_path(cache: DownloadCache, name: str) -> Path:
    key = digest(CONTENT)
    path = cache.root / "sha256" / key[:2] / key / f".{name}.partial"
    path.parent.mkdir(parents=True)
    return path


def test_a_file_is_kept_under_its_hash_and_downloaded_once(
    cache: DownloadCache, server: Server
) -> None:
    item = package(f"{server.url}/good-1%2B2.whl#sha256=abc")
    [path] = fetch(cache, item)
    key = digest(CONTENT)
    assert path == cache.root / "sha256" / key[:2] / key / "good-1+2.whl"
    assert path.read_bytes() == CONTENT
    assert fetch(cache, item) == [path]
    assert sum(server.requests.values()) == 1
    assert not list(cache.root.rglob("*.partial"))


def test_a_cached_file_needs_no_network(cache: DownloadCache, server: Server) -> None:
    item = package(f"{server.url}/good.whl")
    fetch(cache, item)
    server.requests.clear()
    assert fetch(cache, item, offline=True)[0].read_bytes() == CONTENT
    assert not server.requests


def test_offline_names_every_missing_file(cache: DownloadCache) -> None:
    items = [package(f"https://user:pw@example.invalid/{name}.whl") for name in "ab"]
    with pytest.raises(NotFound) as caught:
        fetch(cache, *items, offline=True)
    assert "/a.whl" in caught.value.message
    assert "/b.whl" in caught.value.message
    assert "pw" not in caught.value.message


def test_a_damaged_cache_entry_is_fetched_again(cache: DownloadCache, server: Server) -> None:
    item = package(f"{server.url}/good.whl")
    [path] = fetch(cache, item)
    path.write_bytes(CONTENT[:-1] + b"\0")
    with pytest.raises(IntegrityError, match="damaged"):
        fetch(cache, item, offline=True)
    assert fetch(cache, item)[0].read_bytes() == CONTENT


def test_a_truncated_answer_is_resumed(cache: DownloadCache, server: Server) -> None:
    [path] = fetch(cache, package(f"{server.url}/truncated.whl"))
    assert path.read_bytes() == CONTENT
    assert server.ranges == [f"bytes={HALF}-"]


def test_a_connection_that_breaks_ever_again_is_no_end(
    cache: DownloadCache, server: Server
) -> None:
    [path] = fetch(cache, package(f"{server.url}/stuttering.whl"))
    assert path.read_bytes() == CONTENT
    assert sum(server.requests.values()) == 10


def test_a_busy_server_is_asked_again(cache: DownloadCache, server: Server) -> None:
    [path] = fetch(cache, package(f"{server.url}/busy.whl"))
    assert path.read_bytes() == CONTENT
    assert server.requests["busy.whl"] == 3


def test_a_server_that_stays_busy_is_an_error(cache: DownloadCache, server: Server) -> None:
    with pytest.raises(StoreError, match=r"/overloaded\.whl: the server answered 503"):
        fetch(cache, package(f"{server.url}/overloaded.whl"))
    assert server.requests["overloaded.whl"] == 5


def test_a_busy_server_says_when_to_come_back(cache: DownloadCache, server: Server) -> None:
    with pytest.raises(StoreError, match=r"answered 429 .*and asks to wait 3600 s"):
        fetch(cache, package(f"{server.url}/limited.whl"))
    assert server.requests["limited.whl"] == 1


def test_a_server_without_tls_is_not_a_matter_of_certificates(
    cache: DownloadCache, server: Server
) -> None:
    url = server.url.replace("http://", "https://")
    with pytest.raises(StoreError, match="cannot download") as caught:
        fetch(cache, package(f"{url}/good.whl"))
    assert caught.value.hint
    assert "does that server speak https?" in caught.value.hint
    assert "SSL_CERT_FILE" not in caught.value.hint


def test_a_connection_that_is_cut_off_in_its_handshake_is_tried_again(tmp_path: Path) -> None:
    cut_off = []

    class Closing(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1)
            cut_off.append(self.client_address)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Closing) as closing:
        thread = threading.Thread(target=closing.serve_forever, args=(0.01,))
        thread.start()
        url = f"https://127.0.0.1:{closing.server_address[1]}/good.whl"
        try:
            with pytest.raises(StoreError, match="cannot download"):
                fetch(cache_in(tmp_path / "downloads"), package(url))
        finally:
            closing.shutdown()
            thread.join()
    assert len(cut_off) == QUICK.attempts


def test_the_first_error_ends_what_others_wait_for(tmp_path: Path, server: Server) -> None:
    cache = DownloadCache(tmp_path / "cache", network=NO_SETTINGS, policy=SLOW)
    names = ["missing.whl", *(f"overloaded.{number}.whl" for number in range(40))]
    # Each with a digest of its own: what has the same one waits for the other's place in the cache.
    items = [package(f"{server.url}/{name}", sha256=digest(name.encode())) for name in names]
    with pytest.raises(NotFound, match=r"missing\.whl"):
        fetch(cache, *items)
    assert sum(server.requests.values()) < len(names)


def test_an_interrupted_download_is_resumed(cache: DownloadCache, server: Server) -> None:
    partial_path(cache, "good.whl").write_bytes(CONTENT[:1000])
    assert fetch(cache, package(f"{server.url}/good.whl"))[0].read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-"]


@pytest.mark.parametrize("left", [b"other", b"\0" * 2 * len(CONTENT)], ids=["short", "long"])
def test_a_wrong_partial_file_is_thrown_away(
    cache: DownloadCache, server: Server, left: bytes
) -> None:
    partial_path(cache, "good.whl").write_bytes(left)
    assert fetch(cache, package(f"{server.url}/good.whl"))[0].read_bytes() == CONTENT


def test_a_complete_partial_file_is_not_fetched_again(cache: DownloadCache, server: Server) -> None:
    partial_path(cache, "good.whl").write_bytes(CONTENT)
    assert fetch(cache, package(f"{server.url}/good.whl"))[0].read_bytes() == CONTENT


def test_a_server_without_ranges_sends_it_all(cache: DownloadCache, server: Server) -> None:
    partial_path(cache, "norange.whl").write_bytes(CONTENT[:1000])
    assert fetch(cache, package(f"{server.url}/norange.whl"))[0].read_bytes() == CONTENT


def test_wrong_bytes_name_url_expected_and_found(cache: DownloadCache, server: Server) -> None:
    with pytest.raises(IntegrityError) as caught:
        fetch(cache, package(f"{server.url}/wrong.whl"))
    for part in (f"{server.url}/wrong.whl", digest(CONTENT), digest(CONTENT[::-1])):
        assert part in caught.value.message
    assert not [path for path in cache.root.rglob("*") if path.is_file() and path.stat().st_size]


def test_md5_counts_only_without_sha256(cache: DownloadCache, server: Server) -> None:
    md5 = digest(CONTENT, hashes.MD5())
    [path] = fetch(cache, package(f"{server.url}/good.conda", md5=md5))
    assert path.relative_to(cache.root).parts[0] == "md5"
    with pytest.raises(IntegrityError, match="sha256"):
        fetch(cache, package(f"{server.url}/good.conda", md5=md5, sha256="0" * 64))


@pytest.mark.parametrize("hashes_of", [{"sha256": ""}, {"sha256": "abc"}], ids=["none", "short"])
def test_an_entry_without_a_hash_is_refused(
    cache: DownloadCache, server: Server, hashes_of: dict[str, str]
) -> None:
    with pytest.raises(IntegrityError, match=r"/good\.whl"):
        fetch(cache, package(f"{server.url}/good.whl", **hashes_of))
    assert not server.requests


def test_a_missing_file_is_not_found(cache: DownloadCache, server: Server) -> None:
    with pytest.raises(NotFound, match=r"/missing\.whl does not exist: the server answered 404"):
        fetch(cache, package(f"{server.url}/missing.whl"))
    assert server.requests["missing.whl"] == 1


def test_an_unreachable_server_is_named_without_secrets(cache: DownloadCache) -> None:
    with Server() as closed:
        port = closed.server_port
    with pytest.raises(StoreError) as caught:
        fetch(cache, package(f"http://me:secret@127.0.0.1:{port}/t/abc/a.whl?token=xyz"))
    assert f"127.0.0.1:{port}/t/…/a.whl" in caught.value.message
    for secret in ("secret", "abc", "xyz"):
        assert secret not in caught.value.message


def test_credentials_come_from_the_url_or_netrc(tmp_path: Path, server: Server) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    with_netrc = cache_in(tmp_path / "one", netrc)
    assert fetch(with_netrc, package(f"{server.url}/private.whl"))[0].read_bytes() == CONTENT
    without = cache_in(tmp_path / "two")
    url = server.url.replace("//", "//me:secret@")
    assert fetch(without, package(f"{url}/private.whl"))[0].read_bytes() == CONTENT
    with pytest.raises(StoreError, match="401") as caught:
        fetch(cache_in(tmp_path / "three"), package(f"{server.url}/private.whl"))
    assert "netrc" in caught.value.hint


def test_redirects_are_followed(cache: DownloadCache, server: Server) -> None:
    assert fetch(cache, package(f"{server.url}/moved.whl"))[0].read_bytes() == CONTENT


def test_local_files_are_copied_and_checked(cache: DownloadCache, tmp_path: Path) -> None:
    source = tmp_path / "a b.whl"
    source.write_bytes(CONTENT)
    [path] = fetch(cache, package(source.as_uri()))
    assert path.read_bytes() == CONTENT
    assert path.stat().st_ino != source.stat().st_ino
    source.write_bytes(b"changed")
    with pytest.raises(IntegrityError, match="does not match its checksum"):
        fetch(cache, package(source.as_uri(), sha256="1" * 64))
    with pytest.raises(NotFound, match=r"gone\.whl"):
        fetch(cache, package((tmp_path / "gone.whl").as_uri(), sha256="1" * 64))


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "http://127.0.0.1/a/%2e%2e", "ftp://a/b.whl"])
def test_a_url_that_names_no_file_is_a_bad_lock(cache: DownloadCache, url: str) -> None:
    with pytest.raises(SpecError):
        fetch(cache, package(url))


def test_two_caches_on_one_directory_download_once(tmp_path: Path, server: Server) -> None:
    item = package(f"{server.url}/good.whl")
    with ThreadPoolExecutor(4) as threads:
        paths = list(threads.map(lambda _: fetch(cache_in(tmp_path), item), range(4)))
    assert {path for [path] in paths} == {paths[0][0]}
    assert server.requests["good.whl"] == 1


def test_many_files_arrive_in_parallel(cache: DownloadCache, server: Server) -> None:
    items = [package(f"{server.url}/good-{number}.whl") for number in range(20)]
    assert [path.name for path in fetch(cache, *items)] == [item.file_name for item in items]


def test_redact_keeps_what_people_need() -> None:
    shown = redact("https://u:p@host:8443/t/tk-123/linux-64/a.conda?sig=1#sha256=2")
    assert shown == "https://host:8443/t/…/linux-64/a.conda"


@pytest.mark.parametrize(
    ("environ", "url", "expected"),
    [
        ({"https_proxy": "http://p:1"}, "https://a.b/c", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:2", "https_proxy": "http://p:1"}, "https://a.b/c", "http://p:1"),
        ({"https_proxy": "http://p:1"}, "http://a.b/c", None),
        ({"ALL_PROXY": "http://p:3"}, "http://a.b/c", "http://p:3"),
        ({"https_proxy": "http://p:1", "no_proxy": "x, .b"}, "https://a.b/c", None),
        ({"https_proxy": "http://p:1", "no_proxy": "*"}, "https://a.b/c", None),
        ({"https_proxy": "http://p:1", "no_proxy": "ab"}, "https://a.b/c", "http://p:1"),
        ({"all_proxy": "p:3128"}, "https://a.b/c", "http://p:3128"),
        ({"HTTPS_PROXY": "http://p:2", "https_proxy": ""}, "https://a.b/c", None),
        ({"HTTP_PROXY": "http://p:2", "REQUEST_METHOD": "GET"}, "http://a.b/c", None),
        ({"all_proxy": "http://p", "no_proxy": "10.0.0.0/8"}, "http://10.9.8.7/c", None),
        ({"all_proxy": "http://p", "no_proxy": "10.0.0.0/8"}, "http://11.9.8.7/c", "http://p"),
        ({"all_proxy": "http://p", "no_proxy": "10.0.0.0/8"}, "http://10.a.b/c", "http://p"),
        ({"all_proxy": "http://p", "no_proxy": "fd00::/8"}, "http://[fd00::1]:8/c", None),
        ({"all_proxy": "http://p", "no_proxy": "[::1]"}, "http://[::1]:8/c", None),
        ({"all_proxy": "http://p", "no_proxy": "::1"}, "http://[0:0::1]/c", None),
        ({"all_proxy": "http://p", "no_proxy": "0.0.1"}, "http://10.0.0.1/c", "http://p"),
        ({"all_proxy": "http://p", "no_proxy": "a.b:8080"}, "http://a.b:8080/c", None),
        ({"all_proxy": "http://p", "no_proxy": "a.b:8080"}, "http://a.b/c", "http://p"),
        ({"all_proxy": "http://p", "no_proxy": "a.b:443"}, "https://x.a.b/c", None),
        ({"all_proxy": "http://p", "no_proxy": "*.b"}, "https://a.b/c", None),
        ({"all_proxy": "http://p", "no_proxy": "x A.B"}, "https://a.b/c", None),
        ({"all_proxy": "http://p", "no_proxy": "a.b."}, "https://a.b/c", None),
        ({"all_proxy": "http://p", "no_proxy": "x/y, 1.2.3.4/99,"}, "https://a.b/c", "http://p"),
    ],
)
def test_proxies_are_read_as_others_read_them(
    environ: dict[str, str], url: str, expected: str | None
) -> None:
    assert choose_proxy(NetworkSettings.from_environ(environ).proxies, url) == expected


class Watched:
    """Progress that can be asked afterwards."""

    done_bytes = 0
    expected: Expected | int | None = None

    @contextmanager
    def task(
        self, label: str, total_bytes: int | Expected | None = None
    ) -> Iterator[Callable[[int], None]]:
        self.expected = total_bytes
        yield self.add

    def add(self, done_bytes: int) -> None:
        self.done_bytes += done_bytes


def test_the_total_is_known_when_all_have_begun(server: Server, tmp_path: Path) -> None:
    """By the server, the disk or the cache."""
    local = tmp_path / "local-1-0.conda"
    local.write_bytes(CONTENT)
    packages = [package(f"{server.url}/good.conda"), package(local.as_uri())]
    cache = DownloadCache(tmp_path / "cache", policy=QUICK)
    for _ in ("downloaded", "found in the cache"):
        watched = Watched()
        cache.fetch_all(packages, progress=watched)
        assert isinstance(watched.expected, Expected)
        assert watched.expected.unknown_items == 0
        assert watched.expected.known_bytes == watched.done_bytes == 2 * len(CONTENT)
