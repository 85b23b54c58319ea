"""The documentation's site in a real browser, opened from a disk: search, width, screen readers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import require
from tests.support.browser import chromium, find_chromium
from tests.support.site import build_site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

THEMES_OWN = {"landmark-unique", "scrollable-region-focusable"}
"""What axe finds in the theme's menus and wide tables."""

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = find_chromium()
    require("browser", executable)
    with chromium(str(executable)) as found:
        yield found


def opened(browser: Browser, page: Path) -> tuple[Page, list[str]]:
    """Open a page from a disk; return it with what it asks for from then on."""
    tab = browser.new_page(viewport={"width": 1440, "height": 900})
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.as_uri())
    return tab, asked


def results(tab: Page) -> str:
    """Return the list of what was found, once there is any."""
    tab.wait_for_selector(".md-search-result__item")
    return tab.inner_text(".md-search-result__list").replace("\u200b", "")


WORDS = pytest.mark.parametrize(
    ("start", "word", "found"),
    [("index.html", "rollback", "rollback"), ("zh/index.html", "训练方法", "填进训练方法")],
)


@WORDS
def test_search_from_a_disk_asks_nobody(
    site: Path, browser: Browser, start: str, word: str, found: str
) -> None:
    tab, asked = opened(browser, site / start)
    tab.fill(".md-search__input", word)
    assert found in results(tab)
    assert [url for url in asked if not url.startswith(("file:", "blob:", "data:"))] == []
    tab.close()


@WORDS
def test_a_word_without_keys_is_searched_after_the_search_has_begun(
    site: Path, browser: Browser, start: str, word: str, found: str
) -> None:
    """Pasted with the mouse, or by an input method: no key goes up."""
    tab, _ = opened(browser, site / start)
    tab.evaluate("""addEventListener("message", ({data}) => {
        window.hasAnswered = data.type === 3;  // to the empty field
    })""")
    tab.focus(".md-search__input")
    tab.wait_for_function("window.hasAnswered")
    tab.fill(".md-search__input", word)
    assert found in results(tab)
    tab.close()


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_and_can_be_read_aloud(
    site: Path, browser: Browser, width: int, scheme: Any
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    for name in ("index.html", "zh/how-to/operator.html"):
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.goto((site / name).as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        faults = {one["id"] for one in Axe().run(tab).response["violations"]}
        assert faults <= THEMES_OWN
        tab.close()
