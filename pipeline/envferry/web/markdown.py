"""Markdown of manifests as HTML that cannot do harm: no HTML of its own, no pictures, no scripts.

CommonMark by markdown-it-py; links lead to http, https and mailto, and to places of the page.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from markdown_it.token import Token

SCHEMES = ("http", "https", "mailto")
LOWERED, DEEPEST = 2, 6
"""A page has its own `h1`, and the section an `h2`: headings of texts are below them."""
REMEMBERED = 64
"""Texts whose HTML is kept: the tables of a malicious one take seconds, each time."""
LONGEST = 64 << 10
"""What manifests of others say beyond that is cut off."""


class HarmlessMarkdown(MarkdownIt):
    """The renderer, with fewer places for links to lead to."""

    def validateLink(self, url: str) -> bool:  # noqa: N802  (the library calls it so)
        """Whether a link may be one; else what was written stays as text."""
        try:
            scheme = urlsplit(url).scheme
        except ValueError:
            return False
        return scheme in SCHEMES or (url.startswith("#") and not scheme)


@lru_cache(REMEMBERED)
def render_markdown(text: str) -> Markup:
    """Return a text as HTML. What it writes in HTML is shown as text."""
    # The renderer escapes all that is not Markdown.
    return Markup(_renderer().render(text[:LONGEST]))


@cache
def _renderer() -> HarmlessMarkdown:
    renderer = HarmlessMarkdown("commonmark", {"html": False})
    # The policy of the pages forbids pictures from elsewhere (guard.py).
    renderer.enable("table").disable("image")
    changes = {
        "link_open": _mark_link,
        "heading_open": _lower_heading,
        "heading_close": _lower_heading,
        "th_open": _align_cell,
        "td_open": _align_cell,
    }
    for kind, change in changes.items():
        renderer.add_render_rule(kind, _rendered_after(change))
    return renderer


def _rendered_after(change: Callable[[Token], None]) -> Any:  # noqa: ANN401  (the library's type)
    """Return a render rule that changes a token, and leaves the rest to the renderer."""

    def render(
        self: Any,  # noqa: ANN401
        tokens: Sequence[Token],
        index: int,
        options: Any,  # noqa: ANN401
        env: object,
    ) -> str:
        change(tokens[index])
        text: str = self.renderToken(tokens, index, options, env)
        return text

    return render


def _mark_link(token: Token) -> None:
    token.attrSet("rel", "noreferrer nofollow")


def _align_cell(token: Token) -> None:
    """Align a column by a class: the pages' policy forbids styles of elements."""
    if found := str(token.attrs.pop("style", "")):
        token.attrSet("class", found.removeprefix("text-align:"))


def _lower_heading(token: Token) -> None:
    token.tag = f"h{min(int(token.tag[1:]) + LOWERED, DEEPEST)}"
