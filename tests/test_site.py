"""The documentation's site: every page is in it, links lead somewhere, nobody else is asked."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest
import yaml

from tests.support.site import ROOT, build_site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DOCS = ROOT / "docs"
LOADING = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class PageParser(HTMLParser):
    """What a page loads, where it links to, and which anchors it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.language = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: text or "" for name, text in attrs}
        self.anchors.add(found.get("id", ""))
        if tag == "html":
            self.language = found.get("lang", "")
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif (name := LOADING.get(tag)) in found and found.get("rel") not in ("next", "prev"):
            self.loaded.append(found[str(name)])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, PageParser]:
    return {path: PageParser(path.read_text()) for path in site.rglob("*.html")}


def nav_pages(config: str) -> set[str]:
    """Return the pages in a site's menu."""

    def pages_in(entry: object) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        for child in entry.values() if isinstance(entry, dict) else []:
            yield from pages_in(child)
        for child in entry if isinstance(entry, list) else []:
            yield from pages_in(child)

    text = (ROOT / config).read_text()
    text = re.sub(r"!!python/name:\S+ ", "", text)  # the function that makes anchors
    return set(pages_in(yaml.safe_load(text)["nav"]))


def test_every_page_is_in_the_menu() -> None:
    english = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    wanted = {name for name in english if not re.match(r"zh/|adr/\d", name)}
    assert nav_pages("mkdocs.yml") == wanted
    chinese = {str(path.relative_to(DOCS / "zh")) for path in (DOCS / "zh").rglob("*.md")}
    assert nav_pages("mkdocs.zh.yml") == chinese


def test_every_decision_is_in_the_index() -> None:
    listed = set(re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", (DOCS / "adr/README.md").read_text()))
    assert listed == {path.name for path in DOCS.glob("adr/0*.md")}


def test_pages_ask_nobody_else(site: Path, pages: dict[Path, PageParser]) -> None:
    assert len(pages) > 60
    for path, page in pages.items():
        outside = [one for one in page.loaded if re.match(r"(https?:)?//", one)]
        assert not outside, f"{path}: {outside}"
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", path.read_text()), path


def test_what_pages_load_and_link_to_is_there(site: Path, pages: dict[Path, PageParser]) -> None:
    for path, page in pages.items():
        if path.name == "404.html":  # its links are absolute: it is shown anywhere
            continue
        for link in (*page.loaded, *page.links):
            if re.match(r"[a-z]+:|//", link):
                continue
            name, _, anchor = link.partition("#")
            target = (path.parent / unquote(name)).resolve() if name else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_relative_to(site.resolve()), f"{path}: {link}"
            assert target.is_file(), f"{path.relative_to(site)}: {link}"
            if anchor and target in pages:
                assert unquote(anchor) in pages[target].anchors, f"{path}: {link}"


def test_the_menu_shows_every_page(site: Path, pages: dict[Path, PageParser]) -> None:
    """A theme may hide the index of a folder behind the name of its section."""
    text = (site / "index.html").read_text()
    for title in ("Actions and templates", "Decisions"):
        assert re.search(rf"<span class=\"md-ellipsis\">\s*{title}\b", text)
    assert len(pages) > len(nav_pages("mkdocs.yml"))


def test_each_language_says_so_and_leads_to_the_other(
    site: Path, pages: dict[Path, PageParser]
) -> None:
    english, chinese = pages[site / "index.html"], pages[site / "zh/index.html"]
    assert (english.language, chinese.language) == ("en", "zh")
    assert any(link.endswith("zh/index.html") for link in english.links)
    assert any(link.endswith("../index.html") for link in chinese.links)


def test_the_menu_of_languages_leads_to_the_same_page(
    site: Path, pages: dict[Path, PageParser]
) -> None:
    for name, other in (
        ("how-to/operator.html", "../zh/how-to/operator.html"),
        ("zh/how-to/operator.html", "../../how-to/operator.html"),
        ("settings.html", "zh/index.html"),
    ):
        assert other in pages[site / name].links


def test_search_knows_where_chinese_words_end(site: Path) -> None:
    documents = json.loads((site / "zh/search/search_index.json").read_text())["docs"]
    titles = [one["title"] for one in documents]
    assert any("训练方法" in title.split("\u200b") for title in titles)
