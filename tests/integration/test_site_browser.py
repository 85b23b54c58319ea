"""The documentation's site in a real browser, opened from a disk: search, width, screen readers."""

from __future__ import annotations

from contextlib import suppress
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

OPENED_AT_MOST = 8

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


def search(tab: Page, word: str) -> None:
    """Search for a word until there are results, from a page that is opened anew each time.

    The theme's search begins in a frame of its own; opened from a disk, it sometimes never does.
    """
    from playwright.sync_api import TimeoutError as NoResult

    for _ in range(OPENED_AT_MOST):
        tab.fill(".md-search__input", word)
        with suppress(NoResult):
            tab.wait_for_selector(".md-search-result__item", timeout=8_000)
            return
        tab.reload()
    pytest.fail(f"the search never answers {word}")


@pytest.mark.parametrize(
    ("start", "word", "found"),
    [("index.html", "rollback", "rollback"), ("zh/index.html", "训练方法", "填进训练方法")],
)
def test_search_from_a_disk_asks_nobody(
    site: Path, browser: Browser, start: str, word: str, found: str
) -> None:
    tab = browser.new_page(viewport={"width": 1440, "height": 900})
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto((site / start).as_uri())
    search(tab, word)
    shown = tab.inner_text(".md-search-result__list").replace("\u200b", "")
    assert found in shown
    assert [url for url in asked if not url.startswith(("file:", "blob:", "data:"))] == []
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
