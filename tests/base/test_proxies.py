"""Registries and downloads behind a proxy that is really one."""

from __future__ import annotations

import datetime
import http.server
import ssl
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from envferry.base.proxies import proxies_words
from envferry.base.retry import RetryPolicy
from envferry.build.downloads import DownloadCache
from envferry.config import NetworkSettings
from envferry.errors import HostError, PipelineError, StoreError
from envferry.models import LockedPackage
from envferry.progress import Silent
from envferry.stores.http import HttpStore
from envferry.stores.opening import open_store
from tests.integration.test_s3_ways_in import Authority
from tests.support.digests import digest
from tests.support.forward_proxy import ForwardProxy, forward_proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CONTENT = b"0123456789" * 1000
QUICK = RetryPolicy(attempts=2, first_pause=0)
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("PIP_CERT", raising=False)


class Files(http.server.BaseHTTPRequestHandler):
    """Has one file everywhere, whole: nobody asks here for a range of it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Send the file."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(CONTENT)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve the file while the block runs; yields the URL."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.daemon_threads = True
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def secured(folder: Path, age_days: int = 0) -> tuple[ssl.SSLContext, Path]:
    """Return what a server needs for https, and the certificate of who signed it."""
    authority = Authority.make(folder, datetime.timedelta(days=age_days))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server_path)
    return context, authority.ca_path


def read_from_registry(url: str, _: Path) -> bytes:
    return HttpStore(url, policy=QUICK).read("a")


def download(url: str, folder: Path) -> bytes:
    package = LockedPackage(
        manager="pip",
        name="demo",
        version="1",
        platform="linux-64",
        url=f"{url}/a.whl",
        sha256=digest(CONTENT),
    )
    cache = DownloadCache(folder / "cache", policy=QUICK)
    (path,) = cache.fetch_all([package], progress=Silent()).values()
    return path.read_bytes()


@pytest.fixture(params=[read_from_registry, download])
def read(request: pytest.FixtureRequest) -> Callable[[str, Path], bytes]:
    """Each way to read from a web server."""
    found: Callable[[str, Path], bytes] = request.param
    return found


def let(monkeypatch: pytest.MonkeyPatch, proxy: ForwardProxy, *names: str, login: str = "") -> None:
    for name in names:
        monkeypatch.setenv(name, proxy.url.replace("//", f"//{login}@") if login else proxy.url)


@pytest.mark.parametrize("name", ["http_proxy", "all_proxy", "ALL_PROXY"])
def test_through_a_proxy_with_a_login(
    read: Callable[[str, Path], bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    with serving() as url, forward_proxy("me:s3cret") as proxy:
        let(monkeypatch, proxy, name, login="me:s3cret")
        assert read(url, tmp_path) == CONTENT
        assert proxy.seen
        assert all(url in line for line in proxy.seen)


def test_through_a_tunnel(
    read: Callable[[str, Path], bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tls, authority = secured(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    with serving(tls) as url, forward_proxy("me:s3cret") as proxy:
        let(monkeypatch, proxy, "https_proxy", login="me:s3cret")
        assert read(url, tmp_path) == CONTENT
        assert proxy.seen == [f"CONNECT {url.removeprefix('https://')}"]


@pytest.mark.parametrize("rule", ["127.0.0.0/8", "127.0.0.1", "x,127.0.0.1:{port}", "*"])
def test_past_a_proxy(
    read: Callable[[str, Path], bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rule: str
) -> None:
    with serving() as url, forward_proxy() as proxy:
        let(monkeypatch, proxy, "http_proxy")
        monkeypatch.setenv("no_proxy", rule.format(port=url.rpartition(":")[2]))
        assert read(url, tmp_path) == CONTENT
        assert not proxy.seen


@pytest.mark.parametrize("mood", ["gone", "requires a login", "refuses"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_proxy_is_named(
    read: Callable[[str, Path], bytes],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    mood: str,
    scheme: str,
) -> None:
    login = "me:s3cret" if mood == "requires a login" else ""
    with forward_proxy(login, refuses=mood == "refuses") as proxy:
        let(monkeypatch, proxy, f"{scheme}_proxy", login="you:wr0ng")
        if mood != "gone":
            with pytest.raises(StoreError) as caught:
                read(f"{scheme}://127.0.0.1:9", tmp_path)
    if mood == "gone":
        with pytest.raises(StoreError) as caught:
            read(f"{scheme}://127.0.0.1:9", tmp_path)
    assert f"through the proxy {proxy.url}" in caught.value.message
    assert "wr0ng" not in caught.value.message + caught.value.hint
    assert "proxy" in caught.value.hint or mood == "refuses"


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "ftp://127.0.0.1", "http://"])
def test_a_proxy_of_another_kind(
    read: Callable[[str, Path], bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, proxy: str
) -> None:
    monkeypatch.setenv("all_proxy", proxy)
    with pytest.raises(HostError, match=f"the proxy {proxy}"):
        read("http://127.0.0.1:9", tmp_path)


@pytest.mark.parametrize("age", [-10, 10])
def test_a_wrong_clock_is_named(
    read: Callable[[str, Path], bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, age: int
) -> None:
    """A certificate that is valid, but not by the time that it is here."""
    tls, authority = secured(tmp_path, age)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    with serving(tls) as url, pytest.raises(PipelineError, match="this machine's clock") as caught:
        read(url, tmp_path)
    assert "set the clock" in caught.value.hint


def test_hints_say_which_proxies_there_are() -> None:
    environ = {"https_proxy": "http://me:s3cret@p:1", "ALL_PROXY": "q:2", "no_proxy": "a.b"}
    proxies = NetworkSettings.from_environ(environ).proxies
    expected = "all_proxy is http://q:2, https_proxy is http://p:1, no_proxy is a.b"
    assert proxies_words(proxies) == expected
    assert proxies_words({"no": "a.b"}) == ""


def test_a_registry_opened_by_its_url_goes_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as url, forward_proxy() as proxy:
        let(monkeypatch, proxy, "http_proxy")
        assert open_store(url).read("a") == CONTENT
        assert len(proxy.seen) == 1
