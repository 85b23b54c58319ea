from __future__ import annotations

import functools
import http.server
import os
import re
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envferry.base.retry import RetryPolicy
from envferry.errors import IntegrityError, NotFound, StoreError, UsageError
from envferry.process import run
from envferry.stores.directory import DirectoryStore
from envferry.stores.http import HttpStore
from envferry.stores.opening import open_store, require_public
from envferry.stores.split import SplitStore
from tests.support.range_server import RangeHandler
from tests.support.store_suite import NOBODY, StoreSuite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envferry.stores.port import Store

    Serve = Callable[[type[http.server.SimpleHTTPRequestHandler]], str]

QUICK = RetryPolicy(attempts=3, first_pause=0)


class TestDirectory(StoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return open_store(str(tmp_path / "registry"))


def test_leaves_no_temporary_files(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.create("a/b", b"1")
    store.replace("t", b"1", None)
    names = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert names == [".lock", "b", "t"]


def test_reading_a_registry_that_is_not_there(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "none")
    for read in (lambda: store.read("a"), lambda: list(store.list())):
        with pytest.raises(NotFound, match=r"registry .*/none does not exist"):
            read()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_a_file_that_never_ends_is_refused(tmp_path: Path, kind: str) -> None:
    """A disk can hold a pipe, or a link to a device, where a manifest or a tag must be."""
    key = "v1/tags/demo/linux-64/latest"
    store = DirectoryStore(tmp_path)
    store.create("v1/other", b"there")
    path = tmp_path / key
    path.parent.mkdir(parents=True)
    path.symlink_to("/dev/null") if kind == "device" else os.mkfifo(path)
    for read in (
        lambda: store.stat(key),
        lambda: store.read(key),
        lambda: store.read(key, 0, 4),
        lambda: store.read_into(key, 0, memoryview(bytearray(4))),
        lambda: store.replace(key, b"", None),
    ):
        with pytest.raises(IntegrityError, match="latest is a pipe or a device, not a file"):
            read()
    assert {one.key for one in store.list()} >= {"v1/other"}


def test_a_registry_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = DirectoryStore(tmp_path / "file")
    with pytest.raises(StoreError, match="file"):
        store.create("a/b", b"")
    with pytest.raises((StoreError, NotFound), match="file"):
        store.read("a/b")


@pytest.fixture
def read_only_directory() -> Iterator[Path]:
    """A directory that this process may not write to, also when it is root's."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        directory = Path(name)
        (directory / "there").write_bytes(b"x")
        (directory / "secret").write_bytes(b"x")
        (directory / "secret").chmod(0)
        directory.chmod(0o555)
        was_root = os.geteuid() == 0
        if was_root:
            os.seteuid(NOBODY)
        yield directory
        if was_root:
            os.seteuid(0)
        directory.chmod(0o755)


def test_a_read_only_directory(read_only_directory: Path) -> None:
    store = DirectoryStore(read_only_directory)
    assert store.read("there") == b"x"
    for write in (
        lambda: store.create("a/b", b""),
        lambda: store.create("b", b""),
        lambda: store.replace("t", b"", None),
        lambda: store.delete("there"),
        lambda: store.read("secret"),
    ):
        with pytest.raises(StoreError, match=re.escape(str(read_only_directory))) as caught:
            write()
        assert "Permission denied" in caught.value.message
        assert "permissions" in caught.value.hint


def test_lists_nothing_in_silence(read_only_directory: Path) -> None:
    """A folder that may not be read is an error, not an empty folder."""
    store = DirectoryStore(read_only_directory)
    if os.getuid() == 0:
        os.seteuid(0)
        closed = read_only_directory / "closed"
        closed.mkdir(mode=0o700)
        os.seteuid(NOBODY)
    else:
        pytest.skip("needs another user's folder")
    with pytest.raises(StoreError, match="Permission denied"):
        list(store.list())


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a web server on `tmp_path`."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(handler: type[http.server.SimpleHTTPRequestHandler]) -> str:
        make = functools.partial(handler, directory=str(tmp_path))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), make)
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class TestHttp:
    @pytest.fixture
    def store(self, serve: Serve, tmp_path: Path) -> Store:
        DirectoryStore(tmp_path / "mirror").create("a/b", b"0123456789")
        return SplitStore(HttpStore(serve(RangeHandler) + "/mirror", policy=QUICK), sys.maxsize)

    def test_reads(self, store: Store) -> None:
        assert store.read("a/b") == b"0123456789"
        assert store.read("a/b", 4) == b"456789"
        assert store.read("a/b", 4, 3) == b"456"
        stat = store.stat("a/b")
        assert stat is not None
        assert stat.size == 10
        assert store.stat("a/c") is None
        with pytest.raises(NotFound, match="a/c"):
            store.read("a/c")

    @pytest.mark.parametrize(("offset", "length"), [(8, 3), (10, 1)])
    def test_a_short_file_is_an_error(self, store: Store, offset: int, length: int) -> None:
        with pytest.raises(StoreError, match="a/b"):
            store.read("a/b", offset, length)

    def test_is_read_only(self, store: Store) -> None:
        for refused in (
            lambda: store.create("x", b""),
            lambda: store.replace("x", b"", None),
            lambda: store.delete("x"),
            store.list,
        ):
            with pytest.raises(StoreError, match="web server"):
                refused()
        assert store.writable is None
        assert store.disk is None

    def test_tries_again(self, store: Store) -> None:
        RangeHandler.failures = 2
        assert store.read("a/b", 1, 2) == b"12"
        RangeHandler.failures = 3
        with pytest.raises(StoreError, match="503"):
            store.read("a/b", 1, 2)

    @pytest.mark.parametrize("length", ["many", "-5", "9" * 5000, ""])
    def test_a_length_that_is_none(self, serve: Serve, length: str) -> None:
        class Odd(RangeHandler):
            def do_HEAD(self) -> None:  # noqa: N802  (http.server calls it)
                self.send_response(200)
                self.send_header("Content-Length", length)
                self.send_header("Last-Modified", "Fri, 31 Dec 9999 23:59:59 -2359")
                self.end_headers()

        with pytest.raises(
            StoreError, match=r"a/b has a Content-Length of .*, which is not a valid size"
        ):
            HttpStore(serve(Odd), policy=QUICK).stat("a/b")

    def test_a_time_that_is_none(self, serve: Serve) -> None:
        class Late(RangeHandler):
            def do_HEAD(self) -> None:  # noqa: N802  (http.server calls it)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.send_header("Last-Modified", "Fri, 31 Dec 9999 23:59:59 -2359")
                self.end_headers()

        stat = HttpStore(serve(Late), policy=QUICK).stat("a/b")
        assert stat is not None
        assert stat.modified is None

    def test_a_server_without_ranges(self, serve: Serve, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"0123456789")

        class Plain(RangeHandler):
            do_GET = http.server.SimpleHTTPRequestHandler.do_GET  # noqa: N815

        store = open_store(serve(Plain))
        assert store.read("a") == b"0123456789"
        assert store.read("a", 0, 3) == b"012"
        with pytest.raises(StoreError, match="ignores range requests"):
            store.read("a", 4, 3)


class Sizeless(RangeHandler):
    """Makes its answers as it goes, as far as HEAD knows."""

    def send_header(self, keyword: str, value: str) -> None:
        """Leave out how long an answer is."""
        if not (self.command == "HEAD" and keyword == "Content-Length"):
            super().send_header(keyword, value)


class Silent(http.server.SimpleHTTPRequestHandler):
    """Says nowhere how long an answer is, and knows no ranges."""

    def send_header(self, keyword: str, value: str) -> None:
        """Leave it out."""
        if keyword != "Content-Length":
            super().send_header(keyword, value)


class Compressing(RangeHandler):
    """Compresses without being asked to."""

    def end_headers(self) -> None:
        """Say so."""
        self.send_header("Content-Encoding", "gzip")
        super().end_headers()


def test_a_size_that_no_header_says_is_asked_for(serve: Serve, tmp_path: Path) -> None:
    for key, content in {"a": b"0123456789", "empty": b""}.items():
        DirectoryStore(tmp_path).create(key, content)
        found = open_store(serve(Sizeless)).stat(key)
        assert found is not None
        assert found.size == len(content)
    assert open_store(serve(Sizeless)).stat("missing") is None
    with pytest.raises(StoreError, match="does not say how large"):
        open_store(serve(Silent)).stat("a")


def test_a_server_that_compresses_is_named(serve: Serve, tmp_path: Path) -> None:
    """What it sends, and its ranges, are of another file."""
    DirectoryStore(tmp_path).create("a", b"0123456789")
    store = open_store(serve(Compressing))
    for ask in (lambda: store.stat("a"), lambda: store.read("a", 2, 3)):
        with pytest.raises(StoreError, match="in the encoding gzip, not as it is"):
            ask()


def test_a_web_server_that_is_not_there() -> None:
    store = HttpStore("http://127.0.0.1:9", policy=QUICK)
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:9"):
        store.read("a")


class Kept(RangeHandler):
    """Keeps connections, and counts them."""

    protocol_version = "HTTP/1.1"
    connections = 0

    def setup(self) -> None:
        """Count a connection."""
        super().setup()
        type(self).connections += 1


def test_connections_are_kept(serve: Serve, tmp_path: Path) -> None:
    DirectoryStore(tmp_path).create("a", b"0123456789")
    Kept.connections = 0
    store = open_store(serve(Kept))
    for offset in range(5):
        assert store.stat("a")
        assert store.read("a", offset, 2) == b"0123456789"[offset : offset + 2]
    assert store.read("a") == b"0123456789"
    assert Kept.connections == 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_web_server_says_when_to_come_back(serve: Serve, status: int) -> None:
    class Busy(RangeHandler):
        asked = 0

        def do_GET(self) -> None:  # noqa: N802  (http.server calls it)
            type(self).asked += 1
            self.send_response(status)
            self.send_header("Retry-After", "3600")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

    store = HttpStore(serve(Busy))
    with pytest.raises(StoreError, match=f"HTTP {status} and asks to wait 3600 s"):
        store.read("a")
    assert Busy.asked == 1, "an hour is more than anybody waits: nobody is asked in vain"


@pytest.mark.parametrize(
    "url",
    [
        "https://user:pass-word@host/x",
        "https://host/x?token=pass-word",
        "s3://user:pass-word@bucket/x",
        "s3://user:some/pass-word@bucket/x",
        "s3://user:some?pass-word@bucket/x",
        "s3://us/pass-word@bucket",
        "s3://user:pass-word",
        "s3://bucket/x?secret=pass-word",
        "https://user:some/pass-word@host/x",
        "https://user:some#pass-word@host/x",
        "https://user:pass-word/x",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(url)
    assert "pass-word" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    "url", ["", "ftp://host/x", "s3://", "https:///x", "s3:/b/x", "https:host/x", "file://b/x"]
)
def test_urls_that_are_no_registry(url: str) -> None:
    with pytest.raises(UsageError):
        open_store(url)


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://host/x", "s3://", "s3:///x", "https:///x", "https:host/x", "file://b/x"),
        *("https://user:secret@host/x", "https://host/x?token=secret", "s3://bucket/x?secret"),
        *("artifacts", "./artifacts", "~/artifacts", "host/x", "envs.example"),
        *("https://host/a b", "https://host/x\nRUN reboot", "/srv/a\x1b[31m", "oci://host"),
    ],
)
def test_what_no_other_machine_can_take_as_a_url(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        require_public(url)
    assert caught.value.hint
    assert "secret" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    "url",
    [
        *("https://host/envs", "http://10.0.0.1:8000", "http://[::1]:8000/x", "s3://bucket/x"),
        *("oci://host/envs", "oci+http://host:5000/envs", "/srv/my envs", "file:///srv/a%20b"),
    ],
)
def test_urls_that_other_machines_can_take(url: str) -> None:
    require_public(url)


@pytest.mark.parametrize("bucket", ["a b", "Bücket", "x" * 300])
def test_buckets_that_cannot_be(bucket: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a bucket") as caught:
        open_store(f"s3://{bucket}/prefix")
    assert "s3://BUCKET/PREFIX" in caught.value.hint


def test_kinds_of_urls(tmp_path: Path) -> None:
    assert open_store(f"file://{tmp_path}/a%20b") == DirectoryStore(tmp_path / "a b")
    assert open_store("./artifacts") == DirectoryStore(Path("artifacts"))
    assert open_store("https://host/path/").place == "https://host/path"


def test_s3_without_boto3() -> None:
    program = (
        "import sys\n"
        "sys.modules['botocore'] = None\n"
        "from envferry.errors import UsageError\n"
        "from envferry.stores.opening import open_store\n"
        "try:\n"
        "    open_store('s3://bucket')\n"
        "except UsageError as error:\n"
        "    sys.stdout.write(error.hint)\n"
    )
    assert "envferry[s3]" in run([sys.executable, "-c", program]).stdout
