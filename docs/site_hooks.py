"""What the site does with links out of it and between its languages: called by MkDocs as a hook.

On a forge, pages link to sources and to each other's languages by relative paths. The site has
neither the sources nor, in one language, the other one's pages: the former become text, the latter
links to the site beside.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

DOCS = Path(__file__).parent
LINK = re.compile(
    r"(?<!!)\[(?P<text>[^\]\n]+)\]\((?P<path>(?![a-z]+:|#)[^)\s#]+)(?P<anchor>#[^)]*)?\)"
)
SHIM = "https://unpkg.com/iframe-worker/shim"
"""What the theme's plugin `offline` loads; it is kept in docs/site."""
DIALOG = 'data-md-component="search" role="dialog"'
LANGUAGE = re.compile(r'href="[^"]*"(?P<rest>\s+hreflang="(?P<language>[a-z]+)")')
"""What the theme's menu leads to: for each page the start, and from a folder not even that."""
PICTURE = re.compile(r"!\[(?P<text>[^\]\n]*)\]\((?P<path>(?![a-z]+:)[^)\s]+)\)")


def on_page_markdown(
    markdown: str, /, *, page: Page, config: MkDocsConfig, files: Files
) -> str | None:
    """Return the page's text with links that the site can follow."""
    top = Path(config.docs_dir)
    folder = top / posixpath.dirname(page.file.src_uri)

    def resolve(found: re.Match[str]) -> str:
        target = Path(posixpath.normpath((folder / found["path"]).as_posix()))
        anchor = found.groupdict().get("anchor") or ""
        if target.is_relative_to(top) and not is_other_language(target, top):
            return found[0]
        if not target.is_relative_to(DOCS) or target.suffix not in (".md", ".svg", ".png"):
            return found["text"]
        return found[0].replace(
            f"({found['path']}{anchor})", f"({beside(target, page.file.dest_uri, top)}{anchor})"
        )

    return PICTURE.sub(resolve, LINK.sub(resolve, markdown))


def on_post_page(output: str, /, *, page: Page, config: MkDocsConfig) -> str:
    """Return a page that asks nobody else for the script with which search works from a disk.

    Its menu of languages leads to the same page in each of them, else to the start.
    """
    top = Path(config.docs_dir)

    def same_page(found: re.Match[str]) -> str:
        other = DOCS if found["language"] == "en" else DOCS / found["language"]
        target = other / page.file.src_uri
        target = target if target.is_file() else other / "index.md"
        return f'href="{beside(target, page.file.dest_uri, top)}"{found["rest"]}'

    return LANGUAGE.sub(same_page, mended(output, page.file.dest_uri, top))


def on_post_template(output: str, /, *, template_name: str, config: MkDocsConfig) -> str:
    """Return the page of errors in the same way."""
    return mended(output, template_name, Path(config.docs_dir))


def mended(output: str, destination: str, top: Path) -> str:
    """Let a page load our copy of a script, and name its dialog for screen readers."""
    output = output.replace(SHIM, beside(DOCS / "site/iframe-worker.js", destination, top))
    label = "Search" if top == DOCS else "搜索"  # a name that the theme's dialog lacks
    return output.replace(DIALOG, f'{DIALOG} aria-label="{label}"')


def is_other_language(target: Path, top: Path) -> bool:
    """Whether a file under `top` is a page of the other site."""
    return top == DOCS and target.is_relative_to(DOCS / "zh")


def beside(target: Path, destination: str, top: Path) -> str:
    """Return the way from a page's place in the site to a file's place in the site of its language.

    English is at the top of the whole site, Chinese in `zh/`.
    """
    place = target.relative_to(DOCS).as_posix()
    if place.endswith(".md"):
        place = posixpath.join(posixpath.dirname(place), page_name(target))
    start = posixpath.dirname(posixpath.join(top.relative_to(DOCS).as_posix(), destination))
    return posixpath.relpath(place, start or ".")


def page_name(target: Path) -> str:
    """Return the file that a page becomes: a README is the index of its folder."""
    return "index.html" if target.stem in ("README", "index") else f"{target.stem}.html"
