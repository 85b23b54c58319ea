"""What pages say of an environment in its own words, and of what its versions changed."""

from __future__ import annotations

import os
import shlex
import shutil
from typing import TYPE_CHECKING

import pytest
import yaml
from starlette.testclient import TestClient

from envferry.audit.artifact_audit import Audit
from envferry.audit.audit_policy import load_policy
from envferry.errors import NotFound
from envferry.index import RegistryIndex
from envferry.index.queries import Entry
from envferry.models import PackageFacts
from envferry.registry import Registry
from envferry.web import site as site_module
from envferry.web.app import make_app
from envferry.web.markdown import LONGEST, render_markdown
from envferry.web.site import RegistryView
from envferry.web.snippets import snippets
from tests.support.advisories import NOW, database
from tests.support.artifacts import PLATFORM
from tests.support.published import NUMPY, TORCH, Made, publish

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

README = """\
# Training

For *everybody*: see [the wiki](https://wiki.example/t) and `train.py`.

| GPU | works |
|---|---|
| H100 | yes |

<script>alert(1)</script> [bad](javascript:alert(2)) ![x](https://evil.example/pixel.png)
invis\u202eible
"""
FIXED_NUMPY = PackageFacts(name="numpy", version="1.26.5", kind="pypi", size=60)
FAULTY_TORCH = PackageFacts(name="torch", version="2.9.0", kind="pypi", size=800)


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("# One\n\n##### Five", "<h3>One</h3>\n<h6>Five</h6>\n"),
        ("<b>x</b>", "<p>&lt;b&gt;x&lt;/b&gt;</p>\n"),
        ("[a](javascript:x)", "<p>[a](javascript:x)</p>\n"),
        ("[a](JaVaScRiPt&colon;x)", "<p>[a](JaVaScRiPt:x)</p>\n"),
        ("[a](//evil.example)", "<p>[a](//evil.example)</p>\n"),
        ("[a](../../x)", "<p>[a](../../x)</p>\n"),
        ("[a](data:text/html,x)", "<p>[a](data:text/html,x)</p>\n"),
        (
            "[a](https://x.example/?a=1&b=2)",
            '<p><a href="https://x.example/?a=1&amp;b=2" rel="noreferrer nofollow">a</a></p>\n',
        ),
        ('[a](https://x.example/ ""onclick=x")', None),
        ("<https://x.example/>", None),
        (
            "| a | b |\n|:-:|--|\n| c | d |",
            '<table>\n<thead>\n<tr>\n<th class="center">a</th>\n<th>b</th>\n</tr>\n</thead>\n'
            '<tbody>\n<tr>\n<td class="center">c</td>\n<td>d</td>\n</tr>\n</tbody>\n</table>\n',
        ),
        ("[a](http://[)", None),
    ],
)
def test_markdown_does_no_harm(text: str, html: str | None) -> None:
    found = str(render_markdown(text))
    if html is not None:
        assert found == html
    assert "javascript:" not in found.lower() or "href" not in found
    assert " onclick=" not in found
    assert "<img" not in str(render_markdown("![x](https://x.example/a.png)"))


def test_long_and_deep_markdown_ends() -> None:
    assert len(render_markdown("a" * 3 * LONGEST)) < LONGEST + 100
    for text in ("[" * 20_000, "> " * 20_000, "*a_" * 10_000, "`" * 30_001, "- " * 20_000):
        assert render_markdown(text)


class Shop:
    """A registry of one environment in three versions, and its pages."""

    def __init__(self, home: Path, client: TestClient, ids: list[str], site: RegistryView) -> None:
        self.home, self.client, self.ids, self.site = home, client, ids, site

    def get(self, path: str) -> str:
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text

    def json(self, path: str) -> dict[str, object]:
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        found: dict[str, object] = answer.json()
        return found


@pytest.fixture(params=[True, False], ids=["audited", "no advisories"])
def shop(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shop]:
    registry = Registry.open(str(tmp_path / "registry"))
    versions = (
        Made(seed=1, version="1", packages=(NUMPY,)),
        Made(seed=2, version="2", packages=(FIXED_NUMPY, TORCH)),
        Made(seed=3, version="3", packages=(FIXED_NUMPY, FAULTY_TORCH), readme=README),
    )
    ids = [publish(registry, tmp_path / "packed", made).id for made in versions]
    publish(registry, tmp_path / "packed", Made(name="plain"))
    for number, id_ in enumerate(ids):
        manifest = tmp_path / f"registry/v1/envs/demo/{PLATFORM}/{id_}/manifest.json"
        seconds = 1_790_000_000 + number * 86_400

        os.utime(manifest, (seconds, seconds))
    audit = Audit(database=database(), loaded=load_policy("any"), now=NOW)
    index = RegistryIndex.open(registry, tmp_path / "cache")
    index.refresh()
    site = RegistryView(index, None, audit if request.param else None, "https://envs.example/r")
    site.refresh()
    with TestClient(make_app(site), base_url="http://127.0.0.1") as client:
        yield Shop(tmp_path, client, ids, site)
    site.wait()
    index.close()


def test_a_description_is_shown_and_does_no_harm(shop: Shop) -> None:
    for path in ("/envs/demo/", f"/envs/demo/{PLATFORM}/{shop.ids[2]}/"):
        text = shop.get(path)
        assert "<h3>Training</h3>" in text
        assert 'href="https://wiki.example/t"' in text
        assert "<td>H100</td>" in text
        assert "&lt;script&gt;" in text
        assert "<script" not in text
        # A picture is a link: nothing is fetched before somebody follows it.
        assert 'src="https' not in text
        assert "<img" not in text
        assert "invis⟨U+202E⟩ible" in text
    assert shop.json(f"/envs/demo/{PLATFORM}/{shop.ids[2]}.json")["readme"] == README
    assert "What it is for" not in shop.get("/envs/plain/")


def test_changes_of_all_versions(shop: Shop, request: pytest.FixtureRequest) -> None:
    text = shop.get("/envs/demo/changes/")
    assert text.index(">3</a>") < text.index(">2</a>") < text.index("The first version here")
    steps = shop.json("/envs/demo/changes.json")["steps"]
    assert isinstance(steps, list)
    assert [len(step["changes"]) for step in steps] == [1, 2, 0]
    audited = "no advisories" not in request.node.name
    said = [
        [[one["id"] for one in part] for part in (v["gained"], v["lost"])]
        for step in steps
        if (v := step["vulnerabilities"])
    ]
    assert said == ([[["GHSA-tttt-tttt-tttt"], []], [[], ["CVE-2026-0001"]]] if audited else [])
    assert ("1 known vulnerability new" in text) is audited
    old, new = (f"demo/{PLATFORM}/{id_}" for id_ in shop.ids[:2])
    assert ("1 known vulnerability gone" in shop.get(f"/diff/?old={old}&new={new}")) is audited
    assert shop.client.get("/envs/none/changes/").status_code == 404


@pytest.mark.parametrize("shop", [True], indirect=True)
def test_what_is_looked_at_most_is_remembered(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_module, "REMEMBERED", 2)
    first, second, third = (shop.site.entry("demo", PLATFORM, id_) for id_ in shop.ids)
    for entry in (first, second, first, third):
        assert shop.site.vulnerabilities(entry) is not None
        shop.site.contents(entry)
    shutil.rmtree(shop.home / f"registry/v1/envs/demo/{PLATFORM}")
    for entry in (first, third):
        assert shop.site.vulnerabilities(entry) is not None
        shop.site.contents(entry)
    for ask in (shop.site.vulnerabilities, shop.site.contents):
        with pytest.raises(NotFound):
            ask(second)


def test_versions_that_were_removed_since_are_no_versions(shop: Shop) -> None:
    shutil.rmtree(shop.home / f"registry/v1/envs/demo/{PLATFORM}/{shop.ids[1]}")
    text = shop.get("/envs/demo/changes/")
    assert shop.ids[1] not in text
    assert text.index(">3</a>") < text.index("The first version here")
    assert "changed since" in text


def test_what_is_copied_means_what_it_shows() -> None:
    entry = Entry(
        name="on",
        platform=PLATFORM,
        id="0" * 12,
        version=None,
        published=None,
        size=1,
        unpacked=1,
        packages=1,
        attested=False,
        tags=(),
        problem=None,
    )
    texts = {one.title: one.text for one in snippets(entry, "/data/a: b #c", "/opt/my envs/on")}
    words = shlex.split(texts["Container"])
    assert "/opt/my envs:/opt/my envs:ro" in words
    assert words[-1] == "/opt/my envs/on/bin/python"
    assert 'ENV PATH="/opt/my envs/on/bin:$PATH"' in texts["Dockerfile"]
    (task,) = yaml.safe_load(texts["Ansible"])
    assert task["envferry.hosts.envferry_env"] == {
        "name": "on",
        "ref": "on@000000000000",
        "registry": "/data/a: b #c",
    }
    for prefix in ("/opt/$(reboot)", "/opt/a\nRUN reboot", "", "x"):
        named = [one.title for one in snippets(entry, "/data", prefix)]
        assert named == ["Host", "Ansible", "Slurm"]


def test_every_way_to_install_names_the_public_address(shop: Shop) -> None:
    place = f"/envs/demo/{PLATFORM}/{shop.ids[2]}"
    found = shop.json(f"{place}.json")
    ways = found["snippets"]
    assert isinstance(ways, list)
    texts = {one["title"]: one["text"] for one in ways}
    ref = f"demo@{shop.ids[2]}"
    assert list(texts) == ["Host", "Container", "Dockerfile", "Ansible", "Slurm"]
    assert texts["Host"] == found["install"]
    assert texts["Host"] == f"envferry install {ref} --registry https://envs.example/r"
    assert texts["Slurm"] == f"sbatch --comment envferry:{ref} job.sh"
    for title in ("Dockerfile", "Ansible"):
        assert ref in texts[title]
        assert "https://envs.example/r" in texts[title]
    page = shop.get(f"{place}/")
    assert page.count('<details name="snippet"') == 5
    assert page.count('<details name="snippet" open') == 1
