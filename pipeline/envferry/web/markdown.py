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
    from collections.abc import Sequence

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
    renderer.enable("table").disable("image")
    renderer.add_render_rule("link_open", _open_link)
    renderer.add_render_rule("heading_open", _heading)
    renderer.add_render_rule("heading_close", _heading)
    for cell in ("th_open", "td_open"):
        renderer.add_render_rule(cell, _open_cell)
    return renderer


def _open_link(
    self: Any,  # noqa: ANN401  (markdown-it-py passes its renderer)
    tokens: Sequence[Token],
    index: int,
    options: Any,  # noqa: ANN401
    env: Any,  # noqa: ANN401
) -> str:
    tokens[index].attrSet("rel", "noreferrer nofollow")
    text: str = self.renderToken(tokens, index, options, env)
    return text


def _open_cell(
    self: Any,  # noqa: ANN401
    tokens: Sequence[Token],
    index: int,
    options: Any,  # noqa: ANN401
    env: Any,  # noqa: ANN401
) -> str:
    """Align a column by a class: the pages' policy forbids styles of elements."""
    found = str(tokens[index].attrs.pop("style", ""))
    if found:
        tokens[index].attrSet("class", found.removeprefix("text-align:"))
    text: str = self.renderToken(tokens, index, options, env)
    return text


def _heading(
    self: Any,  # noqa: ANN401
    tokens: Sequence[Token],
    index: int,
    options: Any,  # noqa: ANN401
    env: Any,  # noqa: ANN401
) -> str:
    token = tokens[index]
    token.tag = f"h{min(int(token.tag[1:]) + LOWERED, DEEPEST)}"
    text: str = self.renderToken(tokens, index, options, env)
    return text
