from __future__ import annotations

import base64
import json
import logging
import re
import socket
import threading
from contextlib import closing
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.testclient import TestClient

from envferry.artifacts import SBOM, SIGSTORE
from envferry.errors import TargetOccupied
from envferry.index import RegistryIndex
from envferry.models import Checks, PackageFacts
from envferry.registry import Registry
from envferry.registry.host_reports import (
    HostReport,
    ReportedEnvironment,
    ReportedTag,
    write_report,
)
from envferry.trust.bundle import RevokedArtifact, TrustBundle
from envferry.trust.host_trust import Trust
from envferry.trust.signing import Signer, generate_key, parse_signing_key
from envferry.web.app import Pages as Answers
from envferry.web.app import make_app
from envferry.web.guard import HEADERS
from envferry.web.server import LOCAL_NAMES, is_local, listen
from envferry.web.site import RegistryView
from envferry.web.treemap import Block, gather, lay_out
from tests.support.artifacts import LOCK, PLATFORM
from tests.support.published import NUMPY, TORCH, Made, attach, publish
from tests.support.sigstore import GITHUB_ISSUER, Sigstore
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from httpx2 import Response

KEY = parse_signing_key(generate_key()[0], "a test key")
EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
NEWER_NUMPY = msgspec.structs.replace(NUMPY, version="2.0.0", size=50)


@dataclass
class Pages:
    """A registry with two environments, and a client of its pages."""

    registry: Registry
    client: TestClient
    site: RegistryView
    home: Path
    old: str
    new: str

    def get(self, path: str, status: int = 200) -> Response:
        """Ask for a page; every answer has the headers that keep it harmless."""
        answer: Response = self.client.get(path)
        assert answer.status_code == status, answer.text
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
        return answer

    def json(self, path: str, status: int = 200) -> Any:
        """Ask for a JSON twin."""
        answer = self.get(path, status)
        assert answer.headers["content-type"] == "application/json"
        return answer.json()

    def publish(self, made: Made, *tags: str) -> str:
        """Push one more artifact; the index knows it."""
        id_ = publish(self.registry, self.home / "packed", made, *tags).id
        self.site.refresh()
        return id_

    def manifest_path(self, id_: str, name: str = "demo") -> Path:
        """Where a manifest is."""
        return Path(self.registry.url) / f"v1/envs/{name}/{PLATFORM}/{id_}/manifest.json"


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[Pages]:
    registry = Registry.open(str(tmp_path / "registry"))
    old = publish(registry, tmp_path / "packed", Made(version="1.0"), "stable").id
    signed = Registry(registry.store, Signer(keys=(KEY,), who="ci@builder", time="2026-01-02"))
    packages = (NEWER_NUMPY, TORCH, PackageFacts(name="rich", version="14.0", kind="pypi"))
    new = publish(signed, tmp_path / "packed", Made(seed=2, version="2.0", packages=packages)).id
    publish(registry, tmp_path / "packed", Made(name="other", seed=3, packages=(NUMPY,)))
    index = RegistryIndex.open(registry, tmp_path / "cache")
    index.refresh()
    site = RegistryView(index)
    site.refresh()
    with TestClient(make_app(site), base_url="http://127.0.0.1") as client:
        yield Pages(registry, client, site, tmp_path, old, new)
    site.wait()
    index.close()


class Reader(HTMLParser):
    """Notes elements and attributes of a page."""

    def __init__(self, text: str, at: str = "/") -> None:
        super().__init__()
        self.at = at
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.tags.append((tag, dict(attrs)))

    @property
    def links(self) -> set[str]:
        """Where all links lead to."""
        return {urljoin(self.at, attrs["href"] or "") for _, attrs in self.tags if "href" in attrs}


def test_the_list_of_environments(pages: Pages) -> None:
    text = pages.get("/").text
    assert "2 environments in 3 versions" in text
    assert {"/envs/demo/", "/envs/other/"} <= Reader(text).links
    found = pages.json("/index.json")
    assert [one["name"] for one in found["environments"]] == ["demo", "other"]
    assert found["totals"]["artifacts"] == 3
    filtered = pages.json("/index.json?q=OTH")
    assert [one["name"] for one in filtered["environments"]] == ["other"]
    assert "No environment has" in pages.get("/?q=none").text


def test_an_empty_registry_says_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir()
    index = RegistryIndex.open(Registry.open(str(tmp_path / "registry")), tmp_path / "cache")
    with closing(index) as index, TestClient(make_app(RegistryView(index))) as client:
        index.refresh()
        assert "envferry push" in client.get("/").text
        assert "envferry tag" in client.get("/tags/").text
        assert "report_to" in client.get("/hosts/").text
        assert client.get("/index.json").json()["environments"] == []


def test_the_versions_of_an_environment(pages: Pages) -> None:
    text = pages.get("/envs/demo/").text
    assert f"/envs/demo/{PLATFORM}/{pages.old}/" in Reader(text, "/envs/demo/").links
    found = pages.json("/envs/demo.json")
    assert {
        one["id"]: (one["version"], one["tags"], one["attested"]) for one in found["entries"]
    } == {
        pages.old: ("1.0", ["stable"], False),
        pages.new: ("2.0", [], True),
    }
    assert pages.json("/envs/none.json", 404)["error"]


def test_an_artifact(pages: Pages) -> None:
    place = f"/envs/demo/{PLATFORM}/{pages.old}"
    text = pages.get(f"{place}/").text
    command = f"envferry install demo@{pages.old} --registry {pages.registry.url}"
    assert command in text
    found = pages.json(f"{place}.json")
    assert found["install"] == command
    assert [one["name"] for one in found["packages"]] == ["torch", "openssl", "numpy"]
    assert {one["license"]: one["packages"] for one in found["licenses"]} == {
        "BSD-3-Clause": 1,
        "BSD": 1,
        "OpenSSL": 1,
    }
    assert found["provenance"]["status"] == "unsigned"
    assert "Not signed" in text


def test_packages_are_searched_and_sorted(pages: Pages) -> None:
    place = f"/envs/demo/{PLATFORM}/{pages.old}"

    def names(query: str) -> list[str]:
        text = pages.get(f"{place}/?{query}").text
        found = [one["name"] for one in pages.json(f"{place}.json?{query}")["packages"]]
        cells = re.findall(r'<th scope="row"><a href="[./]+/find/[^>]*>([^<]+)', text)
        assert cells == found
        return found

    assert names("sort=name") == ["numpy", "openssl", "torch"]
    assert names("sort=name&order=desc") == ["torch", "openssl", "numpy"]
    assert names("sort=kind") == ["openssl", "numpy", "torch"]
    assert names("sort=bogus") == ["torch", "openssl", "numpy"]
    assert names("q=TORCH") == ["torch"]
    assert names("q=bsd") == ["torch", "numpy"]
    assert "No package here has" in pages.get(f"{place}/?q=zzz").text


def test_the_treemap_has_a_table_beside_it(pages: Pages) -> None:
    tags = Reader(pages.get(f"/envs/demo/{PLATFORM}/{pages.old}/").text).tags
    pictures = [attrs for tag, attrs in tags if tag == "svg"]
    assert [attrs["role"] for attrs in pictures] == ["img", "img"]
    tiles = [attrs for tag, attrs in tags if tag == "rect" and "class" not in attrs]
    assert len(tiles) == 2 * 3
    # Without colours, conda's tiles are known by a second, dashed line.
    assert sum(1 for tag, attrs in tags if tag == "rect" and attrs.get("class") == "mark") == 2


def test_a_tag_leads_to_its_artifact(pages: Pages) -> None:
    for end in ("/", ".json"):
        answer = pages.client.get(f"/envs/demo/{PLATFORM}/stable{end}", follow_redirects=False)
        assert answer.status_code == 307
        found = urljoin(f"/envs/demo/{PLATFORM}/stable{end}", answer.headers["location"])
        assert found == f"/envs/demo/{PLATFORM}/{pages.old}{end}"
    pages.get(f"/envs/demo/{PLATFORM}/nightly/", 404)


def test_pages_anywhere_on_a_server(pages: Pages) -> None:
    """A proxy that puts them below a path, and takes that away from what it asks for."""
    found: set[str] = set()
    waiting = [f"/x/y/envs/demo/{PLATFORM}/stable/", "/x/y/"]
    while waiting:
        address = waiting.pop()
        assert address.startswith("/x/y/"), address
        answer = pages.client.get(address.removeprefix("/x/y"), follow_redirects=False)
        there: set[str] = set()
        if answer.status_code == 307:
            there = {urljoin(address, answer.headers["location"])}
        elif answer.headers["content-type"].startswith("text/html"):
            # No list of materials lies beside these artifacts.
            assert answer.status_code == 200 or "/why/" in address, address
            reader = Reader(answer.text, address)
            actions = {urljoin(address, attrs.get("action") or "") for _, attrs in reader.tags}
            there = {link.partition("#")[0] for link in reader.links | actions}
        new = {one for one in there if not one.startswith("https://")} - found
        found |= new
        waiting += new
    assert {
        "/x/y/style.css",
        "/x/y/envs/other.json",
        f"/x/y/envs/demo/{PLATFORM}/{pages.old}/",
    } <= {one.partition("?")[0] for one in found}
    missing = pages.get("/no/such/page", 404)
    assert "/x/y/find/" in Reader(missing.text, "/x/y/no/such/page").links


def test_who_signed(pages: Pages) -> None:
    place = f"/envs/demo/{PLATFORM}/{pages.new}"
    assert "not checked" in pages.get(f"{place}/").text
    found = pages.json(f"{place}.json")["provenance"]
    assert (found["status"], found["who"]) == ("unchecked", "ci@builder")
    stranger = parse_signing_key(generate_key()[0], "a stranger's key")
    for key, status in ((KEY, "valid"), (stranger, "invalid")):
        app = make_app(RegistryView(pages.site.index, Trust(keys=(key.public,))))
        with TestClient(app) as client:
            assert client.get(f"{place}.json").json()["provenance"]["status"] == status


def test_whom_a_sigstore_certificate_names(pages: Pages) -> None:
    place = f"/envs/demo/{PLATFORM}/{pages.old}"
    who = "https://github.com/acme/envs/.github/workflows/release.yml@refs/heads/main"
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    certificate = Sigstore().certify(key, who).public_bytes(serialization.Encoding.DER)
    bundle = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "dsseEnvelope": {"payload": "", "payloadType": ""},
        "verificationMaterial": {
            "certificate": {"rawBytes": base64.b64encode(certificate).decode()}
        },
    }
    beside = pages.manifest_path(pages.old).with_name(SIGSTORE)
    assert "Not signed" in pages.get(f"{place}/").text
    beside.write_text(json.dumps(bundle))
    with TestClient(make_app(RegistryView(pages.site.index))) as client:
        text = client.get(f"{place}/").text
        assert f"{who} ({GITHUB_ISSUER})" in text
        assert "Not signed" not in text
    beside.write_text("<script>")
    with TestClient(make_app(RegistryView(pages.site.index))) as client:
        assert "is damaged" in client.get(f"{place}.json").json()["provenance"]["identity"]


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"thresholds": {"release": 2}}, "signed by 1 trusted keys, 2 are required"),
        ({"revoked": True}, "was revoked on 2026-11-29: stolen"),
    ],
)
def test_what_hosts_refuse_is_not_shown_as_valid(
    pages: Pages, more: dict[str, Any], problem: str
) -> None:
    gone = RevokedArtifact(
        name="demo", platform=PLATFORM, id=pages.new, why="stolen", time="2026-11-29T00:00:00Z"
    )
    bundle = TrustBundle(
        version=1,
        created="2026-11-29T00:00:00Z",
        keys=(),
        thresholds=more.get("thresholds", {}),
        revoked_artifacts=(gone,) if "revoked" in more else (),
    )
    trust = Trust(keys=(KEY.public,), named_keys=(KEY.public,), bundle=bundle)
    app = make_app(RegistryView(pages.site.index, trust))
    with TestClient(app) as client:
        found = client.get(f"/envs/demo/{PLATFORM}/{pages.new}.json").json()["provenance"]
    assert found["status"] == "invalid"
    assert problem in found["problem"]


def test_files_beside_an_artifact(pages: Pages) -> None:
    place = f"/envs/demo/{PLATFORM}/{pages.old}"
    manifest = pages.get(f"{place}/manifest.json")
    assert manifest.content == pages.manifest_path(pages.old).read_bytes()
    name = f"demo-{PLATFORM}-{pages.old}.manifest.json"
    assert manifest.headers["content-disposition"] == f'attachment; filename="{name}"'
    assert pages.get(f"{place}/conda-lock.yml").content == LOCK.format(seed=1).encode()
    pages.get(f"{place}/sbom.cdx.json", 404)
    pages.manifest_path(pages.old).with_name("sbom.cdx.json").write_bytes(b"{}")
    assert pages.get(f"{place}/sbom.cdx.json").content == b"{}"
    for other in ("attestation.json", "x", "..", "%2e%2e"):
        assert pages.client.get(f"{place}/{other}").status_code in (200, 404)
        assert b"PRIVATE" not in pages.client.get(f"{place}/{other}").content


def test_what_changed(pages: Pages) -> None:
    query = f"old=demo/{PLATFORM}/stable&new=demo/{PLATFORM}/{pages.new}"
    text = pages.get(f"/diff/?{query}").text
    assert "3 packages changed, 1 the same" in text
    found = pages.json(f"/diff.json?{query}")
    assert {one["name"]: one["change"] for one in found["changes"]} == {
        "numpy": "changed",
        "openssl": "removed",
        "rich": "added",
    }
    assert "Compare two versions" in pages.get("/diff/").text
    pages.get(f"/diff/?old=demo/{PLATFORM}/none&new=demo/{PLATFORM}/stable", 404)
    assert "NAME/PLATFORM/TAG" in pages.get("/diff/?old=demo&new=x", 400).text


def test_finds_packages(pages: Pages) -> None:
    found = pages.json("/find.json?q=numpy%3C2")
    assert {one["name"] for one in found["matches"]} == {"demo", "other"}
    tagged = pages.json("/find.json?q=numpy&tagged=1")
    assert [one["id"] for one in tagged["matches"]] == [pages.old]
    assert "2.0.0" in pages.get("/find/?q=numpy%3E3").text
    assert "*zzz*" in pages.get("/find/?q=zzz").text
    assert "is not a valid version condition" in pages.get("/find/?q=numpy%3E%3E3", 400).text
    assert pages.json("/find.json?q=numpy%3E%3E3", 400)["hint"]
    pages.get(f"/find/?q={'x' * 201}", 400)


def test_tags(pages: Pages) -> None:
    assert "stable" in pages.get("/tags/").text
    (tag,) = pages.json("/tags.json")["tags"]
    assert (tag["tag"], tag["id"], tag["problem"]) == ("stable", pages.old, None)


def test_long_lists_come_in_parts(pages: Pages) -> None:
    for seed in range(10, 10 + 105):
        publish(pages.registry, pages.home / "packed", Made(name="many", seed=seed, packages=()))
    pages.site.refresh()
    first = pages.json("/envs/many.json")
    assert (len(first["entries"]), first["paging"]["pages"]) == (100, 2)
    second = pages.json("/envs/many.json?page=2")
    assert len(second["entries"]) == 5
    assert "Page 2 of 2" in pages.get("/envs/many/?page=2").text
    for odd in ("0", "-1", "99999999999", "x", "²"):
        pages.get(f"/envs/many/?page={odd}")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "X"])
@pytest.mark.parametrize("path", ["/", "/envs/demo/", "/nope", "/style.css"])
def test_nothing_but_reading_exists(pages: Pages, method: str, path: str) -> None:
    answer = pages.client.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD"


def test_hosts_are_shown_as_they_report(pages: Pages) -> None:
    def reported(id_: str) -> ReportedEnvironment:
        return ReportedEnvironment(
            name="demo", id=id_, platform=PLATFORM, is_current=True, ref="<b>demo</b>"
        )

    tag = ReportedTag(ref="demo@stable", id=pages.old, error="<script>alert(1)</script>")
    for host, id_ in (("gpu01", pages.old), ("gpu02", "0" * 12)):
        report = HostReport(
            host=host,
            time="2026-11-29T08:00:00Z",
            envferry="1",
            environments=(reported(id_),),
            follows=(tag,),
        )
        write_report(pages.registry, report)
    empty = HostReport(host="gpu04", time="2026-11-29T08:00:00Z", envferry="1", follows=(tag,))
    write_report(pages.registry, empty)
    (Path(pages.registry.url) / "v1/hosts/gpu03.json").write_text("no JSON")
    text = pages.get("/hosts/").text
    assert f"/envs/demo/{PLATFORM}/{pages.old}/" in Reader(text, "/hosts/").links
    assert f"/envs/demo/{PLATFORM}/{'0' * 12}/" not in Reader(text, "/hosts/").links
    assert "<script>" not in text
    assert "<b>" not in text
    assert "1 report cannot be read" in text
    (row,) = [row for row in pages.json("/hosts.json")["rows"] if row["host"] == "gpu04"]
    assert (row["name"], row["id"], row["error"]) == ("demo", "", tag.error)
    assert "nothing" in text.partition("gpu04")[2]
    found = pages.json("/hosts.json")
    assert [one["host"] for one in found["rows"]] == ["gpu01", "gpu02", "gpu04"]
    assert (found["hosts"], found["damaged"]) == (3, 1)


def test_every_page_answers_head(pages: Pages) -> None:
    for path in ("/", "/index.json", "/envs/demo/", "/find/", "/tags/", "/hosts/", "/diff/"):
        assert pages.client.head(path).status_code == 200


def test_pages_are_asked_for_again_cheaply(pages: Pages) -> None:
    first = pages.get("/envs/demo/")
    assert first.headers["cache-control"] == "no-cache"
    again = pages.client.get("/envs/demo/", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    pages.publish(Made(seed=9), "nightly")
    changed = pages.client.get("/envs/demo/", headers={"If-None-Match": first.headers["etag"]})
    assert changed.status_code == 200
    for name in ("style.css", "favicon.svg"):
        found = re.search(rf'href="(\S+/{re.escape(name)}\?\w+)"', first.text)
        assert found
        address = urljoin("/envs/demo/", found[1])
        assert "immutable" in pages.get(address).headers["cache-control"]
        # Of another release, or without its hash: what it is may change.
        for other in (address.partition("?")[0], f"{address[:-1]}x"):
            answer = pages.get(other)
            assert answer.headers["cache-control"] == "no-cache"
            assert answer.content == pages.get(address).content


def test_hostile_texts_stay_texts(pages: Pages) -> None:
    """Names, versions, builds, licences, tools and checks of a manifest that somebody wrote."""
    evil = (
        PackageFacts(name=EVIL, version=EVIL, kind="conda", build=EVIL, license=EVIL, size=7),
        PackageFacts(name="a", version="1", kind="pypi", license="javascript:alert(1)", size=6),
        PackageFacts(name="b", version="1", kind="pypi", license="https://x/'\" onclick=y", size=5),
        PackageFacts(
            name="{{ 7*7 }}", version="\x00\u202e", kind="pypi", license="{% x %}", size=1
        ),
    )
    id_ = pages.publish(Made(name="evil", seed=66, version=EVIL, packages=evil), "latest")
    path = pages.manifest_path(id_, "evil")
    manifest = msgspec.json.decode(path.read_bytes())
    manifest |= {"tools": {EVIL: EVIL}, "image": EVIL, "prefix": EVIL}
    manifest["checks"] = msgspec.to_builtins(Checks(imports=(EVIL,), commands=(EVIL,)))
    path.write_bytes(msgspec.json.encode(manifest))
    place = f"evil/{PLATFORM}/{id_}"
    for address in (
        "/",
        "/envs/evil/",
        f"/envs/{place}/",
        f"/envs/{place}/?q=script",
        f"/diff/?old=demo/{PLATFORM}/stable&new={place}",
        "/find/?q=*",
        f"/?q={EVIL}",
        f"/find/?q={EVIL}",
        f"/envs/{EVIL}/",
        f"/diff/?old={EVIL}&new={EVIL}",
    ):
        answer = pages.client.get(address)
        assert answer.status_code in (200, 400, 404)
        reader = Reader(answer.text, str(answer.url))
        for tag, attrs in reader.tags:
            assert tag not in ("script", "img", "iframe", "object", "style")
            assert not any(name.startswith("on") or name == "style" for name in attrs)
        for link in reader.links:
            assert re.match(r"(http://127\.0\.0\.1|https://x)/", link), link
        assert "49" not in "".join(re.findall(r"<th scope=\"row\">.*?</th>", answer.text))


def test_damaged_artifacts_are_shown_as_such(pages: Pages) -> None:
    pages.manifest_path(pages.old).write_bytes(b"{")
    pages.site.refresh()
    assert "1 version damaged" in pages.get("/").text
    assert "damaged:" in pages.get("/envs/demo/").text
    assert "damaged" in pages.get(f"/envs/demo/{PLATFORM}/{pages.old}/", 500).text


def test_errors_are_pages_and_json(pages: Pages) -> None:
    assert "This page does not exist" in pages.get("/nope/at/all", 404).text
    assert pages.json("/nope.json", 404)["status"] == 404
    assert "Disallow: /" in pages.get("/robots.txt").text
    assert pages.get("/favicon.svg").headers["content-type"].startswith("image/svg+xml")


def test_a_bug_is_a_page_without_details(pages: Pages) -> None:
    app = make_app(pages.site)
    pages.site.index.database.close()
    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.get("/")
    assert answer.status_code == 500
    assert "An error in envferry" in answer.text
    assert "sqlite3" not in answer.text
    assert answer.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]


def test_a_registry_that_is_gone(pages: Pages, caplog: pytest.LogCaptureFixture) -> None:
    """The pages show what was known, and say that it may be old."""
    path = Path(pages.registry.url)
    path.rename(path.with_name("away"))
    with caplog.at_level(logging.ERROR):
        pages.site.refresh()
    text = pages.get("/envs/demo/").text
    assert "The registry was not read again" in text
    assert pages.old in text


def test_names_of_the_server(pages: Pages) -> None:
    """A page elsewhere whose name is made to lead here reads nothing."""
    client = TestClient(make_app(pages.site, LOCAL_NAMES))
    for host, status in (
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("[::1]:8000", 200),
        ("evil.example", 421),
        ("", 421),
    ):
        assert client.get("/", headers={"Host": host}).status_code == status
    assert is_local("127.0.0.1")
    assert is_local("::1")
    assert not is_local("0.0.0.0")


def test_what_is_new_appears_by_itself(pages: Pages) -> None:
    publish(pages.registry, pages.home / "packed", Made(name="fresh", seed=5))
    assert "fresh" not in pages.get("/").text
    pages.site._refreshed_at -= 1000
    wait_until(lambda: "fresh" in pages.get("/").text, "the page shows what was published")


def test_templates_are_compiled_before_the_first_request(pages: Pages) -> None:
    """In threads CPython 3.11 raises SystemError: two were in `ast.parse` at once."""
    templates = Answers(pages.site).templates
    compiled = {name for _, name in templates.cache or ()}
    assert compiled == set(templates.list_templates())
    assert not templates.auto_reload


def test_many_readers_at_once(pages: Pages) -> None:
    paths = ["/", "/envs/demo/", f"/envs/demo/{PLATFORM}/{pages.new}/", "/find/?q=numpy", "/tags/"]
    problems: list[str] = []

    def read() -> None:
        for path in paths * 3:
            answer = pages.client.get(path)
            if answer.status_code != 200:
                problems.append(f"{path}: {answer.status_code}")

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    pages.site.refresh()
    for thread in threads:
        thread.join()
    assert problems == []


def test_a_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(TargetOccupied) as caught:
            listen("127.0.0.1", taken.getsockname()[1])
        assert "--port 0" in caught.value.hint


def test_a_treemap_fills_the_picture() -> None:
    blocks = [Block(label=f"p{size}", size=size, kind="pypi") for size in (60, 30, 20, 9, 1, 0)]
    tiles = lay_out(blocks, 400, 300)
    assert [tile.block.size for tile in tiles] == [60, 30, 20, 9, 1]
    for tile in tiles:
        assert tile.width * tile.height == pytest.approx(
            400 * 300 * tile.block.size / 120, rel=0.02
        )
        assert 0 <= tile.x <= tile.x + tile.width <= 400.1
        assert 0 <= tile.y <= tile.y + tile.height <= 300.1
    for one in tiles:
        for other in tiles:
            apart = (
                one.x + one.width <= other.x + 0.1
                or other.x + other.width <= one.x + 0.1
                or one.y + one.height <= other.y + 0.1
                or other.y + other.height <= one.y + 0.1
            )
            assert apart or one is other
    assert [block.label for block in gather(blocks, 3)] == ["p60", "p30", "3 more"]
    assert lay_out([], 400, 300) == []


def test_why_a_package_is_there(pages: Pages) -> None:
    place = f"/envs/other/{PLATFORM}"
    listed = (
        PackageFacts(name="torch", version="2.8.0", kind="pypi"),
        PackageFacts(name="sympy", version="1.14", kind="pypi"),
    )
    made = Made(name="other", seed=9, packages=listed)
    artifact = publish(pages.registry, pages.home / "packed", made, "whys")
    pages.site.refresh()
    refs = ("pkg:pypi/torch", "pkg:pypi/sympy")
    bill = {
        "metadata": {},
        "components": [{"bom-ref": ref, "name": ref[9:], "version": EVIL} for ref in refs],
        "dependencies": [{"ref": refs[0], "dependsOn": [refs[1]]}],
    }
    attach(pages.registry, artifact, SBOM, msgspec.json.encode(bill))
    page = pages.get(f"{place}/whys/why/?package=sympy").text
    assert "<script" not in page
    above = f"{place}/{artifact.id}/"
    assert above in Reader(page, f"{above}why/").links
    found = pages.json(f"{place}/{artifact.id}/why.json?package=Sympy")
    assert [one["name"] for one in found["needs"][0]["needed_by"]] == ["torch"]
    assert "asked for" in pages.get(f"{place}/{artifact.id}/why/?package=torch").text
    assert pages.json(f"{place}/{artifact.id}/why.json")["needs"] == []
    missing = pages.json(f"{place}/{artifact.id}/why.json?package=sympi", 404)
    assert missing["hint"] == "perhaps sympy?"
    page = pages.get(f"{place}/whys/").text
    assert f"{above}why/?package=torch" in Reader(page, above).links


ODD = (
    "/?page=-1", "/?page=99999999999999999999", "/?page=%00", "/?page=x&page=2", "/?q=%00",
    "/?q=%ff%fe", "/?q=" + "x" * 200, "/tags/?page=0", "/envs/demo/?platform=%00",
    "/envs/demo/?platform=..%2F..", "/envs/demo/?page=1e9", "/find/?q=%27%3B--", "/find/?q=*",
    "/find/?q=torch&q=numpy", "/find/?q=torch&tagged=2", "/find/?q=numpy%3E%3D%3E%3D1",
    "/diff/?old=a", "/diff/?old=a/b/c/d&new=..", "/diff/?old=%00/x/y&new=%00/x/y",
)  # fmt: skip
"""Questions that nobody means well."""


@pytest.mark.parametrize("path", ODD)
def test_odd_questions_get_an_answer(pages: Pages, path: str) -> None:
    for address in (path, _twin_of(path)):
        answer = pages.client.get(address)
        assert answer.status_code in (200, 400, 404), answer.text
        if answer.status_code != 200:
            assert "error" in answer.text.lower() or "<h1>" in answer.text


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("q=" + "x" * 201, 400), ("sort=size;drop", 200), ("sort=" + "y" * 300, 400),
        ("order=up", 200), ("q=%00", 200), ("q=a&q=b&sort=name&sort=size", 200),
    ],
)  # fmt: skip
def test_odd_questions_about_an_artifact(pages: Pages, query: str, status: int) -> None:
    place = f"/envs/demo/{PLATFORM}/{pages.new}"
    pages.get(f"{place}/?{query}", status)
    pages.json(f"{place}.json?{query}", status)


@pytest.mark.parametrize(
    "path",
    [
        "/envs/%00/", "/envs/%2E%2E/x/", "/envs/a%2Fb/", f"/envs/demo/%00/{'0' * 12}/",
        "/envs//x/y/",
        f"/envs/demo/{PLATFORM}/{'0' * 12}/", f"/envs/demo/{PLATFORM}/{'x' * 5000}/",
        "/envs/%F0%9F%90%8D/", f"/envs/demo/{PLATFORM}/stable/%00", "/" + "a/" * 500,
    ],
)  # fmt: skip
def test_odd_addresses_are_not_found(pages: Pages, path: str) -> None:
    for address in (path, _twin_of(path)):
        answer = pages.client.get(address)
        assert answer.status_code in (400, 404), (address, answer.text)
        assert "Traceback" not in answer.text


def _twin_of(path: str) -> str:
    before, mark, query = path.partition("?")
    return ("/index" if before == "/" else before.rstrip("/")) + ".json" + mark + query
