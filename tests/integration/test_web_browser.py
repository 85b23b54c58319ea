"""The pages in a real browser: axe, a phone, the dark, the keyboard, no scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from envferry.registry import Registry
from tests.conftest import require
from tests.showcase import many_packages, publish_showcase
from tests.support.advisories import write_records
from tests.support.artifacts import PLATFORM
from tests.support.browser import chromium, find_chromium, serving
from tests.support.cli_runner import CliRunner
from tests.support.published import Made, publish

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

LONG = "n" * 100
STABLE = f"transformer/{PLATFORM}/stable"
PATHS = (
    "",
    "envs/transformer/",
    f"envs/{STABLE}/",
    f"envs/{STABLE}/?q=zzz",
    f"envs/{STABLE}/why/?package=nvidia-cublas-cu12",
    "diff/",
    f"diff/?old={STABLE}&new=transformer/{PLATFORM}/latest",
    "find/",
    "find/?q=torch",
    "find/?q=none%3E1",
    "tags/",
    "nope",
    f"envs/{STABLE}/audit/",
    "envs/transformer/changes/",
    f"envs/{LONG}/",
    f"envs/{LONG}/changes/",
    f"envs/{LONG}/{PLATFORM}/{'t' * 100}/",
    f"envs/{LONG}/{PLATFORM}/{'t' * 100}/audit/",
)
LOOKS: tuple[dict[str, Any], ...] = tuple(
    {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    for width, scheme in ((1440, "light"), (768, "dark"), (390, "light"), (390, "dark"))
)
NAMES = tuple(f"{look['viewport']['width']} {look['color_scheme']}" for look in LOOKS)
PHONE = LOOKS[3]
WIDTHS = (320, 390, 768, 1000, 1440)
"""Pixels of a small and a usual phone, a tablet, a window, a desk."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = find_chromium()
    require("browser", executable)
    with chromium(str(executable)) as found:
        yield found


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[str]:
    home = tmp_path_factory.mktemp("pages")
    registry = Registry.open(str(home / "registry"))
    publish_showcase(registry, home / "packed")
    large = Made(name=LONG, seed=9, version="v" * 60, packages=many_packages())
    publish(registry, home / "packed", large, "t" * 100)
    records = write_records(home / "osv")
    CliRunner(home=home, cache=home / "cache").run("audit", "update", records)
    with serving(home / "registry", home / "cache") as url:
        yield url


@pytest.fixture
def page(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Page]:
    """A tab that fails the test when the browser complains: of the policy above all."""
    context = browser.new_context(**getattr(request, "param", LOOKS[0]))
    complaints: list[str] = []
    tab = context.new_page()
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    yield tab
    context.close()
    assert [text for text in complaints if "404 (Not Found)" not in text] == []


@pytest.mark.parametrize("page", LOOKS, ids=NAMES, indirect=True)
def test_axe_finds_nothing(page: Page, address: str) -> None:
    axe = Axe()
    found = {}
    for path in PATHS:
        page.goto(address + path)
        if bad := axe.run(page).response["violations"]:
            found[path] = [(one["id"], one["nodes"][0]["html"][:200]) for one in bad]
    assert found == {}


def test_nothing_is_scrolled_sideways(page: Page, address: str) -> None:
    """Neither a page nor a list or a line to copy in it; only what a description has."""
    scrolled = """[...document.querySelectorAll("main *")]
        .filter(one => !one.closest(".readme, svg, .unseen"))
        .filter(one => getComputedStyle(one).overflowX !== "hidden")
        .filter(one => one.clientWidth && one.scrollWidth > one.clientWidth + 1)
        .map(one => one.outerHTML.slice(0, 100))"""
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        for path in PATHS:
            page.goto(address + path)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
            assert page.evaluate(scrolled) == [], (path, width)


@pytest.mark.parametrize("page", [PHONE], ids=("phone",), indirect=True)
def test_a_phone_has_the_picture_that_is_high(page: Page, address: str) -> None:
    page.goto(f"{address}envs/{STABLE}/")
    assert page.locator("svg.portrait").is_visible()
    assert not page.locator("svg.landscape").is_visible()


def test_a_page_of_500_packages_is_not_endless(page: Page, address: str) -> None:
    for width, most in ((1440, 4500), (768, 6000), (390, 8000)):
        page.set_viewport_size({"width": width, "height": 800})
        page.goto(f"{address}envs/{LONG}/{PLATFORM}/{'t' * 100}/")
        assert page.locator("#packages ~ table tbody tr").count() == 50
        assert page.evaluate("document.documentElement.scrollHeight") < most


def test_paper_gets_what_is_read_and_nothing_to_click(page: Page, address: str) -> None:
    for path in ("envs/transformer/", f"envs/{STABLE}/", f"envs/{STABLE}/audit/"):
        page.emulate_media(media="print", color_scheme="dark")
        page.goto(address + path)
        for gone in (".top", ".search", ".pager", ".sorter", ".jump", "button", "input"):
            assert page.locator(f"{gone} >> visible=true").count() == 0, (path, gone)
        ground = "getComputedStyle(document.body).backgroundColor"
        assert page.evaluate(ground) == "rgb(255, 255, 255)"
        columns = """[...document.querySelectorAll("table.cards tr")]
            .map(row => [...row.cells].filter(one => one.offsetParent).length)"""
        assert len(set(page.evaluate(columns))) == 1, path


def test_lists_are_sorted_by_links_on_a_phone_too(page: Page, address: str) -> None:
    for width in (1440, 390):
        page.set_viewport_size({"width": width, "height": 800})
        page.goto(address)
        page.locator("a >> text=Archives >> visible=true").click()
        names = page.locator("table tbody th").all_inner_texts()
        assert names[0] == "transformer"
        page.locator("a >> text=Archives >> visible=true").click()
        assert page.locator("table tbody th").all_inner_texts() == names[::-1]


@pytest.mark.parametrize("page", [PHONE], ids=("phone",), indirect=True)
def test_the_dark_is_dark(page: Page, address: str) -> None:
    page.goto(address)
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(part) for part in colour.removeprefix("rgb(").rstrip(")").split(",")) < 60


def test_the_way_through_the_pages(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_role("link", name="transformer").click()
    page.get_by_role("button", name="Compare the two").click()
    assert "what changed" in page.inner_text("h1")
    page.get_by_role("link", name="transformer 2026.11").click()
    assert "envferry install transformer@" in page.inner_text("pre")
    page.locator("#packages ~ table").get_by_role("link", name="Version").click()
    assert page.locator('th[aria-sort="ascending"]').inner_text().startswith("Version")
    page.get_by_label("Name or licence").fill("nvidia")
    page.get_by_role("button", name="Filter").click()
    assert page.locator("#packages ~ table tbody tr").count() < 20
    page.get_by_role("link", name="Why is nvidia-cublas-cu12 here?").click()
    assert page.locator(".tree >> text=vllm").count() > 0
    page.go_back()
    with page.expect_download() as download:
        page.get_by_role("link", name="SBOM").click()
    assert download.value.suggested_filename.endswith("sbom.cdx.json")
    page.get_by_role("link", name="Packages", exact=True).click()
    page.get_by_label("Package").fill("openssl<3.1")
    page.get_by_role("button", name="Find").click()
    assert "20 finds" in page.inner_text("main")


def test_a_click_selects_what_is_typed(page: Page, address: str) -> None:
    for path in ("envs/transformer/", f"envs/{STABLE}/"):
        page.goto(address + path)
        page.locator("pre code").first.click()
        found = page.evaluate("String(getSelection())").strip()
        assert found.startswith("envferry install transformer@")
        assert " --registry /" in found
        assert "\n" not in found


def test_the_keyboard_shows_where_it_is(page: Page, address: str) -> None:
    page.goto(address)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0  # type: ignore[index]
    page.keyboard.press("Tab")
    style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert style == "solid"


def test_no_scripts_are_needed_or_sent(browser: Browser, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    kinds: set[str] = set()
    page.on("request", lambda request: kinds.add(request.resource_type))
    for path in PATHS:
        page.goto(address + path)
        assert page.inner_text("h1")
    assert kinds <= {"document", "stylesheet", "image", "other"}
    context.close()
