"""The server as a registry, feeds, badges, audits; pages that stay short."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pytest
from starlette.testclient import TestClient

from envferry.audit.artifact_audit import Audit
from envferry.audit.audit_policy import load_policy
from envferry.index import RegistryIndex
from envferry.names import Ref
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.push import push_artifact
from envferry.web import columns
from envferry.web.app import make_app, takes_gzip, visible
from envferry.web.registry_files import is_registry_file
from envferry.web.site import RegistryView
from tests.showcase import many_packages
from tests.support.advisories import NOW, database
from tests.support.artifacts import PLATFORM, installable_artifact
from tests.support.browser import serving
from tests.support.cli_runner import CliRunner
from tests.support.published import NUMPY, Made, publish

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def site(tmp_path: Path) -> Iterator[RegistryView]:
    """A registry of two environments, with a database of advisories."""
    registry = Registry.open(str(tmp_path / "registry"))
    publish(registry, tmp_path / "packed", Made(version="1.0", packages=(NUMPY,)), "stable")
    publish(
        registry,
        tmp_path / "packed",
        Made(name="large", seed=2, packages=many_packages()),
        "latest",
    )
    index = RegistryIndex.open(registry, tmp_path / "cache")
    index.refresh()
    audit = Audit(database=database(), loaded=load_policy("any"), now=NOW)
    site = RegistryView(index, audit=audit)
    site.refresh()
    yield site
    site.wait()
    index.close()


@pytest.fixture
def client(site: RegistryView) -> Iterator[TestClient]:
    """Return a reader of its pages."""
    with TestClient(make_app(site), base_url="http://127.0.0.1") as client:
        yield client


def test_the_server_is_a_registry(tmp_path: Path) -> None:
    """What its own page shows can be installed from it."""
    registry = Registry.open(str(tmp_path / "registry"))
    artifact = installable_artifact(tmp_path / "whole", {"lib/one": b"1" * 100_000})
    push_artifact(artifact, registry=registry, tags=("stable",), progress=Silent())
    runner = CliRunner(home=tmp_path, cache=tmp_path / "host")
    with serving(tmp_path / "registry", tmp_path / "cache") as url:
        there = Registry.open(url.rstrip("/"))
        id_ = there.resolve(Ref.parse("demo@stable"), artifact.manifest.platform)
        assert id_ == artifact.manifest.id
        runner.run("fetch", "demo@stable", "-o", tmp_path / "out", "--registry", url)
        runner.run("mirror", url.rstrip("/"), tmp_path / "copy", "demo", "--tag", "stable")
        runner.run("show", "demo@nothing", "--registry", url, expect=7)
    (fetched,) = (tmp_path / "out").glob("*.tar.zst")
    assert fetched.read_bytes() == artifact.archive_path.read_bytes()
    assert list((tmp_path / "copy").rglob("*.tar.zst"))


def test_parts_of_files(client: TestClient) -> None:
    place = client.get("/envs/demo.json").json()["entries"][0]["id"]
    key = f"/v1/envs/demo/{PLATFORM}/{place}/manifest.json"
    whole = client.get(key)
    assert (whole.status_code, whole.headers["accept-ranges"]) == (200, "bytes")
    assert "content-encoding" not in whole.headers, "its bytes are what was signed"
    part = client.get(key, headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, whole.content[2:6])
    assert part.headers["content-range"] == f"bytes 2-5/{len(whole.content)}"
    tail = client.get(key, headers={"Range": "bytes=10-"})
    assert tail.content == whole.content[10:]
    assert client.get(key, headers={"Range": "bytes=999999999-"}).status_code == 416
    for ignored in ("lines=1-2", "bytes=5-2"):
        assert client.get(key, headers={"Range": ignored}).content == whole.content
    head = client.head(key)
    assert (head.content, head.headers["content-length"]) == (b"", str(len(whole.content)))
    etag = {"If-None-Match": whole.headers["etag"]}
    assert client.get(key, headers=etag).status_code == 304


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (f"v1/envs/demo/{PLATFORM}/0123456789ab/manifest.json", True),
        (f"v1/envs/demo/{PLATFORM}/0123456789ab/demo-{PLATFORM}-0123456789ab.tar.zst", True),
        (f"v1/tags/demo/{PLATFORM}/stable", True),
        (f"v1/envs/demo/{PLATFORM}/0123456789ab/other-{PLATFORM}-0123456789ab.tar.zst", False),
        (f"v1/envs/demo/{PLATFORM}/0123456789ab/pruning.json", False),
        (f"v1/envs/demo/{PLATFORM}/../manifest.json", False),
        (f"v1/envs/../{PLATFORM}/0123456789ab/manifest.json", False),
        ("v1/tags/demo/../../../etc/passwd", False),
        (f"v1/tags/demo/{PLATFORM}/..", False),
        ("v1/split.json", False),
        ("keys/root.pub", False),
    ],
)
def test_only_files_of_the_layout_are_served(client: TestClient, key: str, expected: bool) -> None:
    assert is_registry_file(key) is expected
    if not expected:
        assert client.get(f"/{key}").status_code == 404


def test_pages_of_500_packages_stay_short(client: TestClient) -> None:
    place = client.get("/envs/large.json").json()["entries"][0]["id"]
    address = f"/envs/large/{PLATFORM}/{place}/"
    answer = client.get(address, headers={"Accept-Encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert int(answer.headers["content-length"]) < 100_000
    assert answer.text.count("why/?package=") == 50
    assert "Page 1 of 10" in answer.text
    last = client.get(f"{address}?page=10&sort=name")
    assert "package-with-a-rather-long-name-99" in last.text
    assert len(client.get(f"{address[:-1]}.json").json()["packages"]) == 500


def test_answers_are_compressed_for_those_who_take_it(client: TestClient) -> None:
    plain = client.get("/", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    small = client.get("/", headers={"Accept-Encoding": "br, gzip;q=0.5"})
    assert (small.headers["content-encoding"], small.text) == ("gzip", plain.text)
    assert small.headers["vary"] == "Accept-Encoding"
    again = client.get("/", headers={"If-None-Match": small.headers["etag"]})
    assert again.status_code == 304
    for header, expected in (("gzip;q=0", False), ("*", True), ("", False), ("x, GZIP", True)):
        assert takes_gzip(header) is expected


def test_feeds(client: TestClient) -> None:
    names = {"a": "http://www.w3.org/2005/Atom"}
    for address, count in (("/feed.atom", 2), ("/envs/demo/feed.atom", 1)):
        answer = client.get(address)
        assert answer.headers["content-type"] == "application/atom+xml"
        root = ET.fromstring(answer.text)
        assert len(root.findall("a:entry", names)) == count
        for entry in root.findall("a:entry", names):
            link = entry.find("a:link", names)
            assert link is not None
            assert client.get(str(answer.url.join(link.attrib["href"]))).status_code == 200
    assert client.get("/envs/none/feed.atom").status_code == 404


def test_badges(client: TestClient) -> None:
    for query, expected in (("?tag=stable", "1.0"), ("?tag=none", "not published")):
        answer = client.get(f"/envs/demo/badge.svg{query}")
        assert answer.headers["content-type"] == "image/svg+xml"
        root = ET.fromstring(answer.text)
        assert root.attrib["aria-label"].endswith(f": {expected}")
    assert client.get("/envs/demo/badge.svg?tag=..").status_code == 400


def test_the_audit_is_a_page(client: TestClient) -> None:
    place = client.get("/envs/demo.json").json()["entries"][0]["id"]
    address = f"/envs/demo/{PLATFORM}/{place}/"
    assert "audit/" in client.get(address).text
    text = client.get(f"{address}audit/").text
    assert "CVE-2026-0001" in text
    assert "fixed in 1.26.5" in text
    found = client.get(f"{address}audit.json").json()
    assert (found["counts"], found["packages"][0]["state"]) == (
        {"found": 1, "unknown": 0, "clean": 0},
        "found",
    )
    assert len(client.get(f"{address}audit.json?state=found&sort=name").json()["packages"]) == 1
    assert client.get(f"{address}audit.json?state=clean").json()["packages"] == []
    assert "No package is clean" in client.get(f"{address}audit/?state=clean").text
    for column in columns.AUDITED:
        assert f"sort={column}" in text


def test_a_server_without_advisories_says_so(client: TestClient, site: RegistryView) -> None:
    site.audit = None
    place = client.get("/envs/demo.json").json()["entries"][0]["id"]
    answer = client.get(f"/envs/demo/{PLATFORM}/{place}/audit.json")
    assert (answer.status_code, json.loads(answer.text)["status"]) == (404, 404)
    assert "audit/" not in client.get(f"/envs/demo/{PLATFORM}/{place}/").text


def test_what_nobody_would_see_is_shown() -> None:
    assert visible("safe\u202etxt.exe\x00") == "safe⟨U+202E⟩txt.exe⟨U+0000⟩"
    assert visible("日本語 ok\n\t") == "日本語 ok\n\t"
    assert visible(7) == 7


def test_levels_above_an_artifact_lead_somewhere(client: TestClient) -> None:
    assert client.get("/envs/").url.path == "/"
    assert "1.0" in client.get(f"/envs/demo/{PLATFORM}/").text
    assert client.get(f"/envs/demo/{PLATFORM}/").url.query == f"platform={PLATFORM}".encode()
