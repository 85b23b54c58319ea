"""The nginx configuration of docs/mirrors.md, as it stands there, before a real origin."""

from __future__ import annotations

import os
import re
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import urllib3

from envferry.errors import PipelineError
from envferry.install.stage import InstallOptions, install_artifact
from envferry.names import Ref, current_platform
from envferry.progress import Silent
from envferry.registry import PublishedArchive, Registry
from envferry.registry.layout import archive_key
from tests.conftest import require
from tests.support.artifacts import installable_artifact
from tests.support.nginx import archive_bytes, find_nginx, free_port, nginx, origin_block
from tests.support.web_server import write_certificates

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.models import Manifest

PAGE = Path(__file__).parents[2] / "docs/mirrors.md"
SLICE = 4 << 20
PLATFORM = current_platform()


@dataclass(frozen=True, kw_only=True)
class Rack:
    """An origin, and a cache before it."""

    folder: Path
    url: str
    cache: Path
    manifest: Manifest

    @property
    def archive(self) -> Path:
        """The archive at the origin."""
        return self.folder / "registry" / archive_key(self.manifest)

    @property
    def archive_url(self) -> str:
        """The archive at the cache."""
        return f"{self.url}/{archive_key(self.manifest)}"

    @property
    def sent(self) -> int:
        """How many bytes of archives the origin sent."""
        return archive_bytes(self.folder / "origin")

    def install(self, envs: Path) -> str:
        """Install demo@stable through the cache; return the id."""
        registry = Registry.open(self.url)
        id_ = registry.resolve(Ref.parse("demo@stable"), PLATFORM)
        manifest = registry.manifest("demo", PLATFORM, id_)
        envs.mkdir(exist_ok=True)
        source = PublishedArchive(registry, manifest)
        options = InstallOptions(envs_dir=envs)
        return install_artifact(source, manifest, options=options, progress=Silent()).id


def documented(folder: Path, origin: int, authority: Path, port: int) -> str:
    """Return the configuration of the page, with the names, ports and paths of this test."""
    text: str
    (text,) = re.findall(r"```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for old, new in (
        ("/var/cache/nginx/envferry", str(folder / "cache")),
        ("/etc/ssl/certs/ca-certificates.crt", str(authority)),
        ("listen 8080;", f"listen 127.0.0.1:{port};"),
        ("server origin.example:443;", f"server 127.0.0.1:{origin};"),
        ("min_free=10g ", ""),
        ("origin.example", "localhost"),
    ):
        assert old in text
        text = text.replace(old, new)
    return text


def publish(folder: Path, size: int) -> Manifest:
    """Publish an environment whose archive has about `size` bytes."""
    contents = {f"lib/noise{number}": os.urandom(size // 4) for number in range(4)}
    artifact = installable_artifact(folder / "dist", contents)
    registry = Registry.open(str(folder / "registry"))
    registry.publish(artifact, progress=Silent())
    registry.move_tag("demo", PLATFORM, "stable", artifact.manifest.id)
    return artifact.manifest


@contextmanager
def running(folder: Path, size: int, extra: str = "") -> Iterator[Rack]:
    """Run an origin with TLS and the cache."""
    (folder / "registry").mkdir()
    manifest = publish(folder, size)
    authority, certificate = write_certificates(folder)
    origin, port = free_port(), free_port()
    block = origin_block(
        folder / "origin", folder / "registry", origin, tls=certificate, extra=extra
    )
    cache = documented(folder, origin, authority, port)
    with (
        nginx(folder / "origin", block, port=origin),
        nginx(folder / "rack", cache, port=port),
    ):
        yield Rack(
            folder=folder,
            url=f"http://127.0.0.1:{port}",
            cache=folder / "cache",
            manifest=manifest,
        )


@pytest.fixture
def rack(tmp_path: Path) -> Iterator[Rack]:
    """Run an origin that has demo@stable, an archive of three slices, and the cache."""
    require("nginx", find_nginx())
    with running(tmp_path, 11 << 20) as made:
        yield made


def test_many_hosts_take_one_copy_from_the_origin(tmp_path: Path) -> None:
    require("nginx", find_nginx())
    # Slow enough that all hosts are there before the first slice is.
    with running(tmp_path, 11 << 20, extra="limit_rate 8m;") as rack:
        places = [tmp_path / f"envs{number}" for number in range(6)]
        with ThreadPoolExecutor(len(places)) as hosts:
            installed = list(hosts.map(rack.install, places))
        assert set(installed) == {rack.manifest.id}
        assert rack.sent == rack.archive.stat().st_size


def test_ranges_are_those_of_the_file(rack: Rack) -> None:
    content = rack.archive.read_bytes()
    pool = urllib3.PoolManager()
    size = len(content)
    for first, last in ((0, 0), (SLICE - 1, SLICE), (SLICE, 2 * SLICE - 1), (100, size - 1)):
        found = pool.request("GET", rack.archive_url, headers={"Range": f"bytes={first}-{last}"})
        assert found.status == 206
        assert found.data == content[first : last + 1]
        assert found.headers["Content-Range"] == f"bytes {first}-{last}/{size}"
    tail = pool.request("GET", rack.archive_url, headers={"Range": "bytes=-10"})
    assert tail.data == content[-10:]
    whole = pool.request("GET", rack.archive_url)
    assert (whole.status, whole.data) == (200, content)
    beyond = pool.request("GET", rack.archive_url, headers={"Range": f"bytes={size}-"})
    assert beyond.status == 416
    head = pool.request("HEAD", rack.archive_url)
    assert head.headers["Content-Length"] == str(size)


def test_a_small_part_does_not_fetch_the_whole(rack: Rack) -> None:
    pool = urllib3.PoolManager()
    pool.request("GET", rack.archive_url, headers={"Range": f"bytes={SLICE}-{SLICE + 9}"})
    assert rack.sent <= 2 * SLICE, "its slice, and the first for the length at most"


def test_a_moved_tag_is_seen_at_once(rack: Rack, tmp_path: Path) -> None:
    assert rack.install(tmp_path / "envs") == rack.manifest.id
    second = publish(tmp_path, 1 << 20)
    assert rack.install(tmp_path / "envs") == second.id != rack.manifest.id


def test_not_found_is_not_remembered(rack: Rack) -> None:
    away = rack.archive.with_name("away")
    rack.archive.rename(away)
    pool = urllib3.PoolManager()
    assert pool.request("GET", rack.archive_url).status == 404
    away.rename(rack.archive)
    assert pool.request("GET", rack.archive_url).status == 200


def test_a_changed_object_is_never_joined_from_two_versions(rack: Rack, tmp_path: Path) -> None:
    pool = urllib3.PoolManager(retries=False)
    pool.request("GET", rack.archive_url, headers={"Range": "bytes=0-9"})
    content = rack.archive.read_bytes()
    rack.archive.write_bytes(content[:SLICE] + os.urandom(len(content) - SLICE - 1))
    with pytest.raises(urllib3.exceptions.HTTPError):
        pool.request("GET", rack.archive_url)
    with pytest.raises(PipelineError):
        rack.install(tmp_path / "envs")
    assert not (tmp_path / "envs/demo").exists()
    # Put right at the origin, it is served again when the cache is emptied.
    rack.archive.write_bytes(content)
    for entry in rack.cache.iterdir():
        shutil.rmtree(entry)
    assert rack.install(tmp_path / "envs") == rack.manifest.id


def test_a_damaged_cache_installs_nothing(rack: Rack, tmp_path: Path) -> None:
    rack.install(tmp_path / "first")
    for entry in (path for path in rack.cache.rglob("*") if path.is_file()):
        data = bytearray(entry.read_bytes())
        data[-1000:-900] = bytes(100)
        entry.write_bytes(data)
    with pytest.raises(PipelineError):
        rack.install(tmp_path / "second")
    assert not (tmp_path / "second/demo").exists()


@pytest.mark.parametrize("query", ["?versionId=1", "?response-content-type=text/html"])
def test_questions_to_an_object_store_are_refused(rack: Rack, query: str) -> None:
    assert urllib3.PoolManager().request("GET", rack.archive_url + query).status == 400
    assert rack.sent == 0


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST"])
def test_nobody_writes_through_it(rack: Rack, method: str) -> None:
    pool = urllib3.PoolManager()
    for url in (rack.archive_url, f"{rack.url}/v1/tags/demo/{PLATFORM}/stable"):
        assert pool.request(method, url, body=b"x").status == 403
    log = (rack.folder / "origin/access.log").read_text()
    assert f" {method} " not in log


def test_an_origin_of_somebody_else_is_refused(rack: Rack, tmp_path: Path) -> None:
    """The certificate is checked: another server on the origin's address is a gateway error."""
    (tmp_path / "other").mkdir()
    _, certificate = write_certificates(tmp_path / "other")
    authority, _ = write_certificates(tmp_path)
    origin, port = free_port(), free_port()
    block = origin_block(tmp_path / "o", tmp_path / "registry", origin, tls=certificate)
    other = documented(tmp_path / "other", origin, authority, port)
    with nginx(tmp_path / "o", block, port=origin), nginx(tmp_path / "c", other, port=port):
        found = urllib3.PoolManager().request("GET", f"http://127.0.0.1:{port}/v1/tags/x/y/z")
    assert found.status == 502


def test_the_page_says_what_the_test_assumes() -> None:
    assert f"slice {SLICE >> 20}m;" in PAGE.read_text()
    assert socket.gethostbyname("localhost") == "127.0.0.1"
