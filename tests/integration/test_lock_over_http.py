"""Channels behind http: with a login, slow, failing for a while, or with wrong bytes."""

from __future__ import annotations

import base64
import functools
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from envferry.base.retry import RetryPolicy
from envferry.build.downloads import DownloadCache
from envferry.errors import IntegrityError, NotFound, StoreError
from envferry.lock.lock_options import LockOptions
from envferry.lock.stage import lock_spec
from envferry.progress import Silent
from envferry.specs.reading import read_spec
from tests.support.private_channel import break_off
from tests.support.tiny_channel import make_channel, python_packages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envferry.models import Lock, LockedPackage

LOGIN = "user:secret"

QUICK = RetryPolicy(first_pause=0.01)


@dataclass
class Manners:
    """How a server behaves."""

    login: str = ""
    pause_seconds: float = 0
    failures: int = 0
    """How many requests are answered with 503 before the rest is served."""
    cut: str = ""
    """What is in the names of files that break off half way."""
    guard: threading.Lock = field(default_factory=threading.Lock)


class Handler(SimpleHTTPRequestHandler):
    """Serves a channel with the manners that a test wants."""

    def __init__(self, *arguments: object, manners: Manners, directory: str) -> None:
        self.manners = manners
        super().__init__(*arguments, directory=directory)  # type: ignore[arg-type]

    def log_message(self, *arguments: object) -> None:
        """Keep the tests' output to what failed."""

    def do_GET(self) -> None:
        """Answer, or fail as agreed."""
        time.sleep(self.manners.pause_seconds)
        with self.manners.guard:
            fails = self.manners.failures > 0
            self.manners.failures -= 1
        expected = "Basic " + base64.b64encode(self.manners.login.encode()).decode()
        if fails:
            self.send_error(503)
        elif self.manners.login and self.headers.get("Authorization") != expected:
            self.send_error(401)
        elif self.manners.cut and self.manners.cut in self.path:
            break_off(self)
        else:
            super().do_GET()


@contextmanager
def serving(channel: Path, manners: Manners) -> Iterator[str]:
    """Serve a channel; yield its URL."""
    handler = functools.partial(Handler, manners=manners, directory=str(channel.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/{channel.name}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_channel(tmp_path_factory.mktemp("channels") / "tiny", python_packages())


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No login of this machine's user takes part, and no cached answer of another server."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RATTLER_CACHE_DIR", str(tmp_path / "rattler"))
    monkeypatch.delenv("NETRC", raising=False)
    return tmp_path


def lock(home: Path, url: str, *, offline: bool = False) -> Lock:
    path = home / "spec.yml"
    path.write_text(f"channels: ['{url}']\ndependencies: [python=3.10]\n")
    options = LockOptions(platforms=("linux-64",), offline=offline)
    return lock_spec(read_spec(path), options=options, progress=Silent())


def python_url(lock: Lock) -> str:
    return next(item.url for item in lock.packages if item.name == "python")


def test_a_login_in_the_url_and_nowhere_else(own_home: Path, channel: Path) -> None:
    with serving(channel, Manners(login=LOGIN)) as url:
        made = lock(own_home, url.replace("//", f"//{LOGIN}@"))
        assert python_url(made) == f"{url}/linux-64/python-3.10.13-h1_0.conda"
        assert "secret" not in made.path.read_text()


def test_a_login_from_netrc(own_home: Path, channel: Path) -> None:
    with serving(channel, Manners(login=LOGIN)) as url:
        with pytest.raises(StoreError) as caught:
            lock(own_home, url)
        assert "401" in caught.value.message
        assert "netrc" in caught.value.hint
        (own_home / ".netrc").write_text("machine 127.0.0.1 login user password secret\n")
        (own_home / ".netrc").chmod(0o600)
        made = lock(own_home, url)
        assert python_url(made).startswith(url)
        cache = DownloadCache(own_home / "cache")
        assert len(cache.fetch_all(made.packages, progress=Silent())) == len(made.packages)


def test_slow_servers_and_those_that_fail_twice(own_home: Path, channel: Path) -> None:
    with serving(channel, Manners(pause_seconds=0.2)) as url:
        made = lock(own_home, url)
        assert python_url(made).startswith(url)
    with serving(channel, Manners(failures=2)) as again:
        cache = DownloadCache(own_home / "cache", policy=QUICK)
        made = lock(own_home, again)
        assert len(cache.fetch_all(made.packages, progress=Silent())) == len(made.packages)


def test_of_two_mirrors_the_one_that_answers(own_home: Path, channel: Path) -> None:
    with serving(channel, Manners()) as closed:
        pass
    with serving(channel, Manners()) as url:
        places = [closed, f"{url}/nothing", url]
        (own_home / ".condarc").write_text(f"mirrored_channels: {{conda-forge: {places}}}\n")
        made = lock(own_home, "conda-forge")
    assert python_url(made).startswith(url)
    assert "conda-forge" in made.path.read_text()


def test_an_index_that_breaks_off(own_home: Path, channel: Path) -> None:
    with serving(channel, Manners(cut="repodata")) as url, pytest.raises(StoreError) as caught:
        lock(own_home, url)
    assert "Traceback" not in caught.value.message
    assert not (own_home / "spec.conda-lock.yml").exists()


def _at(package: LockedPackage, port: str, url: str) -> LockedPackage:
    """Say that a package is at a server of another port."""
    return replace(package, url=package.url.replace(f":{port}", f":{url.split(':')[2]}"))


def test_wrong_and_truncated_packages(own_home: Path, channel: Path) -> None:
    with serving(channel, Manners()) as url:
        made = lock(own_home, url)
    port = url.split(":")[2]
    package = channel / "linux-64/python-3.10.13-h1_0.conda"
    good = package.read_bytes()
    for number, bad in enumerate((b"x" * len(good), good[:100])):
        cache = DownloadCache(own_home / f"cache{number}", policy=QUICK)
        package.write_bytes(bad)
        try:
            with serving(channel, Manners()) as other:
                moved = [_at(item, port, other) for item in made.packages]
                with pytest.raises(
                    IntegrityError, match=r"python-3.10.13-h1_0.conda does not match its"
                ):
                    cache.fetch_all(moved, progress=Silent())
                package.write_bytes(good)
                assert cache.fetch_all(moved, progress=Silent())
        finally:
            package.write_bytes(good)
    with serving(channel, Manners(cut="h1_0.conda")) as other:
        cache = DownloadCache(own_home / "other", policy=QUICK)
        with pytest.raises(StoreError, match="python-3"):
            cache.fetch_all([_at(item, port, other) for item in made.packages], progress=Silent())


def test_offline_from_what_the_cache_holds(own_home: Path, channel: Path) -> None:
    with serving(channel, Manners()) as url:
        with pytest.raises(NotFound) as caught:
            lock(own_home, url, offline=True)
        assert "the cache does not hold all that the lock needs" in caught.value.message
        assert "without `--offline`" in caught.value.hint
        made = lock(own_home, url)
    data = made.path.read_bytes()
    made.path.unlink()
    with pytest.raises(StoreError):  # the server is gone
        lock(own_home, url)
    assert lock(own_home, url, offline=True).packages == made.packages
    assert made.path.read_bytes() == data


def test_offline_with_a_channel_on_a_disk(own_home: Path, channel: Path) -> None:
    assert python_url(lock(own_home, str(channel), offline=True)).startswith("file://")
