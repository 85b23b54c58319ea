"""The web application: routes, templates, headers. Only GET and HEAD exist."""

from __future__ import annotations

import dataclasses
import gzip
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import msgspec
import xxhash
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from envferry import __version__
from envferry.artifacts import SBOM
from envferry.base.json import to_json
from envferry.base.text import human_bytes, plural
from envferry.errors import NotFound, PipelineError, StoreError, UsageError
from envferry.names import ID_PATTERN, check_name
from envferry.redaction import fit_to_show
from envferry.web import pages
from envferry.web.feeds import badge_of, list_news
from envferry.web.guard import Guard
from envferry.web.markdown import render_markdown
from envferry.web.page_request import PageRequest
from envferry.web.page_values import ArtifactPage
from envferry.web.registry_files import answer_file
from envferry.web.treemap import Block, gather, lay_out

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from starlette.requests import Request

    from envferry.web.page_request import Order
    from envferry.web.site import RegistryView

TEMPLATES = PackageLoader("envferry.web")
REVALIDATE = "no-cache"
FOR_EVER = "public, max-age=31536000, immutable"
FILES = {
    SBOM: "application/vnd.cyclonedx+json",
    "conda-lock.yml": "application/yaml",
    "manifest.json": "application/json",
}
TILES = 48
LEAST_COMPRESSED, GZIP_LEVEL = 1000, 6
PICTURES = {"landscape": (1000, 440), "portrait": (420, 560)}
"""Width and height of the treemap's two forms; a style sheet shows the one that fits."""

PAGES: dict[str, tuple[str, str, Callable[[RegistryView, PageRequest], Any]]] = {
    "/": ("/index.json", "home.html", pages.home),
    "/envs/{name}/": ("/envs/{name}.json", "environment.html", pages.environment),
    "/envs/{name}/changes/": ("/envs/{name}/changes.json", "changes.html", pages.changes),
    "/envs/{name}/{platform}/{id}/": (
        "/envs/{name}/{platform}/{id}.json",
        "artifact.html",
        pages.artifact,
    ),
    "/envs/{name}/{platform}/{id}/audit/": (
        "/envs/{name}/{platform}/{id}/audit.json",
        "audit.html",
        pages.audited,
    ),
    "/envs/{name}/{platform}/{id}/why/": (
        "/envs/{name}/{platform}/{id}/why.json",
        "why.html",
        pages.why,
    ),
    "/diff/": ("/diff.json", "diff.html", pages.diff),
    "/find/": ("/find.json", "find.html", pages.find),
    "/tags/": ("/tags.json", "tags.html", pages.tags),
    "/hosts/": ("/hosts.json", "hosts.html", pages.hosts),
}
"""Path of a page, that of its JSON twin, its template, and what it says."""


class Pages:
    """Answers requests."""

    def __init__(self, site: RegistryView) -> None:
        self.site = site
        self.templates = Environment(
            loader=TEMPLATES,
            autoescape=True,
            # A misspelt name in a template is an error, not an empty text.
            undefined=StrictUndefined,
            finalize=visible,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self.templates.filters.update(bytes=human_bytes, day=day, moment=moment, plural=plural)
        self.templates.filters.update(markdown=markdown, query=query)
        self.style = _static("style.css")
        self.icon = _static("favicon.svg")
        self.templates.globals.update(
            sorting=sorting,
            site=site,
            release=__version__,
            style=xxhash.xxh3_64_hexdigest(self.style),
            icon=xxhash.xxh3_64_hexdigest(self.icon),
        )
        # All of them now, before there are threads: compiling parses numbers by `ast.parse`, which
        # raises SystemError in CPython 3.11 when two threads are in it at once.
        for name in self.templates.list_templates():
            self.templates.get_template(name)

    def routes(self) -> list[Route]:
        """Return all routes, those of fixed names first."""
        found = [
            Route("/robots.txt", self.robots),
            Route("/favicon.svg", self.favicon),
            Route("/style.css", self.stylesheet),
            Route("/feed.atom", self.feed),
            Route("/envs/", self.home_page),
            Route("/envs/{name}/feed.atom", self.feed),
            Route("/envs/{name}/badge.svg", self.badge),
            Route("/v1/{key:path}", self.registry_file),
        ]
        for path, (twin, template, build) in PAGES.items():
            found.append(Route(twin, self.json_page(build)))
            found.append(Route(path, self.html_page(template, build)))
        # Their patterns also fit pages above, such as `changes/` and `audit.json`, and Starlette
        # takes the first route that fits.
        last = (
            Route("/envs/{name}/{platform}/", self.platform_page),
            Route("/envs/{name}/{platform}/{id}/{file}", self.download),
        )
        return [*found, *last]

    def html_page(
        self, template: str, build: Callable[[RegistryView, PageRequest], Any]
    ) -> Callable[[Request], Response]:
        """Return what answers with a page."""

        def answer(request: Request) -> Response:
            if moved := self._of_tag(request):
                return moved
            page = build(self.site, _page_request(request))
            context = {"page": page, "twin": _twin(request), "pictures": _pictures(page)}
            context["root"] = _root(request)
            text = self.templates.get_template(template).render(context)
            return _revalidated(request, text.encode(), "text/html; charset=utf-8")

        return answer

    def json_page(
        self, build: Callable[[RegistryView, PageRequest], Any]
    ) -> Callable[[Request], Response]:
        """Return what answers with a page's JSON twin."""

        def answer(request: Request) -> Response:
            if moved := self._of_tag(request):
                return moved
            page = build(self.site, _page_request(request))
            return _revalidated(request, to_json(_public(page)), "application/json")

        return answer

    def download(self, request: Request) -> Response:
        """Answer with a file that lies beside an artifact."""
        file = request.path_params["file"]
        if file not in FILES:
            raise HTTPException(404)
        parts = request.path_params
        entry = self.site.entry(parts["name"], parts["platform"], parts["id"])
        stem = f"{entry.name}-{entry.platform}-{entry.id}"
        answer = _revalidated(request, self.site.file(entry, file), FILES[file])
        # The parts were checked as names, so nothing in them ends the quotes.
        answer.headers["Content-Disposition"] = f'attachment; filename="{stem}.{file}"'
        return answer

    def registry_file(self, request: Request) -> Response:
        """Answer with a file of the registry itself: hosts take this server as `--registry`."""
        key = f"v1/{request.path_params['key']}"
        return answer_file(self.site.index.registry.store, key, request)

    def home_page(self, request: Request) -> Response:
        """Lead to the list of environments, where the addresses of environments begin."""
        return RedirectResponse(_root(request), headers={"Cache-Control": REVALIDATE})

    def platform_page(self, request: Request) -> Response:
        """Lead to an environment's artifacts of one platform."""
        parts = request.path_params
        # No slash passes, so the address below stays within these pages.
        name = check_name(parts["name"], "environment name")
        query = urlencode({"platform": check_name(parts["platform"], "platform")})
        where = f"{_root(request)}envs/{name}/?{query}"
        return RedirectResponse(where, headers={"Cache-Control": REVALIDATE})

    def feed(self, request: Request) -> Response:
        """Answer with what was published last, as Atom (RFC 4287)."""
        news = list_news(self.site, request.path_params.get("name"))
        text = self.templates.get_template("feed.atom").render(news=news, root=_root(request))
        return _revalidated(request, text.encode(), "application/atom+xml")

    def badge(self, request: Request) -> Response:
        """Answer with a badge: where a tag of an environment points to."""
        found = badge_of(self.site, _page_request(request))
        text = self.templates.get_template("badge.svg").render(badge=found)
        return _revalidated(request, text.encode(), "image/svg+xml")

    def robots(self, request: Request) -> Response:
        """Ask search engines to stay away: the pages are one site's own."""
        return PlainTextResponse("User-agent: *\nDisallow: /\n")

    def favicon(self, request: Request) -> Response:
        """Answer with the icon."""
        return _kept(request, self.icon, "image/svg+xml")

    def stylesheet(self, request: Request) -> Response:
        """Answer with the style sheet."""
        return _kept(request, self.style, "text/css")

    def refuse(self, request: Request, error: Exception) -> Response:
        """Answer with an error, as the page or the JSON that was asked for."""
        status, title, message, hint = _explained(error)
        if request.url.path.endswith(".json"):
            body = to_json({"error": message, "hint": hint, "status": status})
            return Response(body, status, media_type="application/json")
        context = {"status": status, "title": title, "message": message, "hint": hint, "twin": ""}
        context["root"] = _root(request)
        text = self.templates.get_template("error.html").render(context)
        return Response(text, status, media_type="text/html")

    def _of_tag(self, request: Request) -> Response | None:
        """Lead from a tag's address to the artifact that it points to; the query stays."""
        parts = request.path_params
        if "id" not in parts or ID_PATTERN.fullmatch(parts["id"]):
            return None
        entry = self.site.entry(parts["name"], parts["platform"], parts["id"])
        folder = f"envs/{entry.name}/{entry.platform}/"
        rest = request.url.path.partition(f"{folder}{parts['id']}")[2]
        query = f"?{request.url.query}" if request.url.query else ""
        where = f"{_root(request)}{folder}{entry.id}{rest}{query}"
        return RedirectResponse(where, headers={"Cache-Control": REVALIDATE})


def make_app(site: RegistryView, hosts: frozenset[str] | None = None) -> Guard:
    """Make the application; it answers to the names in `hosts` only, None for all."""
    answers = Pages(site)
    handlers = dict.fromkeys((PipelineError, HTTPException, Exception), answers.refuse)
    return Guard(Starlette(routes=answers.routes(), exception_handlers=handlers), hosts)


UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)
"""Control characters, and those that turn the direction of a text or hide in it: what manifests say
must not look like something else. XML has no form for the first ones."""


def visible(value: object) -> object:
    """Show the invisible characters of a string; leave what is not a plain string."""
    # Markup, a subclass, is HTML already.
    if type(value) is not str:
        return value
    return UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", value)


def markdown(text: str) -> object:
    """Return Markdown as HTML, with its invisible characters shown."""
    return render_markdown(str(visible(text)))


def query(asked: Mapping[str, object]) -> str:
    """Return a query with what is not empty; `?` alone for nothing."""
    return "?" + urlencode({name: value for name, value in asked.items() if value != ""})


def sorting(order: Order, prefix: str = "") -> dict[str, str]:
    """Return what a query says of the order of a list."""
    return {f"{prefix}sort": order.sort, f"{prefix}order": "desc" if order.descending else "asc"}


def day(time: datetime | None) -> str:
    """Return a time as a day."""
    return f"{time:%Y-%m-%d}" if time else "unknown"


def moment(time: datetime | None) -> str:
    """Return a time to the minute."""
    return f"{time:%Y-%m-%d %H:%M} UTC" if time else "unknown"


def _page_request(request: Request) -> PageRequest:
    return PageRequest(request.path_params, request.query_params)


def _root(request: Request) -> str:
    """Return the way from a page to the first one: relative, for a proxy may put them anywhere."""
    # As it was sent: `%2F` in a name is not a slash of the address.
    path: bytes = request.scope.get("raw_path") or request.url.path.encode()
    return "../" * (path.partition(b"?")[0].count(b"/") - 1) or "./"


def _twin(request: Request) -> str:
    """Return the address of a page's JSON twin."""
    twin = f"{_root(request)}{request.url.path.strip('/') or 'index'}.json"
    return f"{twin}?{request.url.query}" if request.url.query else twin


def _public(page: Any) -> Any:  # noqa: ANN401  (any of the dataclasses of `pages`)
    hidden = {one.name for one in dataclasses.fields(page) if one.metadata.get("json") is False}
    built: dict[str, Any] = msgspec.to_builtins(page)
    return {name: value for name, value in built.items() if name not in hidden}


def _pictures(page: object) -> dict[str, Any]:
    """Return the treemap of an artifact's packages in both forms."""
    if not isinstance(page, ArtifactPage):
        return {}
    blocks = [Block(label=one.name, size=one.size, kind=one.kind) for one in page.all_packages]
    return {
        name: {
            "width": width,
            "height": height,
            "tiles": lay_out(gather(blocks, TILES), width, height),
        }
        for name, (width, height) in PICTURES.items()
    }


def _kept(request: Request, body: bytes, media_type: str) -> Response:
    """Answer with a body that stays for ever under an address that holds its hash."""
    if request.url.query != xxhash.xxh3_64_hexdigest(body):
        return _revalidated(request, body, media_type)
    headers = {"Cache-Control": FOR_EVER}
    return _compressed(request, Response(body, headers=headers, media_type=media_type))


def _revalidated(request: Request, body: bytes, media_type: str) -> Response:
    """Answer with a body, or with 304 when the browser has it already."""
    tag = f'"{xxhash.xxh3_128_hexdigest(body)}"'
    headers = {"ETag": tag, "Cache-Control": REVALIDATE}
    asked = request.headers.get("if-none-match", "")
    # The weak comparison, in which `W/` does not count (RFC 9110, 13.1.2).
    if tag in (one.strip().removeprefix("W/") for one in asked.split(",")):
        return Response(status_code=304, headers=headers)
    return _compressed(request, Response(body, headers=headers, media_type=media_type))


def _compressed(request: Request, answer: Response) -> Response:
    """Compress an answer where the reader takes that; its ETag names the text, not the bytes."""
    # On plain answers as well: a cache must not give either form to all readers.
    answer.headers["Vary"] = "Accept-Encoding"
    body = bytes(answer.body)
    if len(body) < LEAST_COMPRESSED or not takes_gzip(request.headers.get("accept-encoding", "")):
        return answer
    # gzip notes a time otherwise (RFC 1952): equal texts give equal bytes.
    answer.body = gzip.compress(body, GZIP_LEVEL, mtime=0)
    answer.headers["Content-Encoding"] = "gzip"
    answer.headers["Content-Length"] = str(len(answer.body))
    if "ETag" in answer.headers:
        # A strong one promises equal bytes (RFC 9110, 8.8.1).
        answer.headers["ETag"] = f"W/{answer.headers['ETag']}"
    return answer


def takes_gzip(header: str) -> bool:
    """Whether an `Accept-Encoding` allows gzip (RFC 9110, 12.5.3)."""
    wanted = {
        name.strip().lower(): weight.replace(" ", "")
        for name, _, weight in (part.partition(";") for part in header.split(","))
    }
    weight = wanted.get("gzip", wanted.get("*"))
    return weight is not None and not re.fullmatch(r"q=0(\.0*)?", weight)


def _explained(error: Exception) -> tuple[int, str, str, str]:
    """Return status, title, message and hint of an error."""
    if isinstance(error, PipelineError):
        kinds: tuple[tuple[type[PipelineError], int, str], ...] = (
            (NotFound, 404, "Not found"),
            (UsageError, 400, "The query is not valid"),
            (StoreError, 502, "The registry does not answer"),
        )
        found = [(status, title) for kind, status, title in kinds if isinstance(error, kind)]
        status, title = found[0] if found else (500, "This artifact is damaged")
        return status, title, fit_to_show(error.message), fit_to_show(error.hint)
    if isinstance(error, HTTPException):
        title = "Not found" if error.status_code == 404 else str(error.detail)
        return error.status_code, title, "This page does not exist.", "Start from all environments."
    message = "envferry failed; see its log for the cause."
    return 500, "An error in envferry", message, "Try again, and report the error if it persists."


def _static(name: str) -> bytes:
    from importlib.resources import files

    return files("envferry.web").joinpath("static").joinpath(name).read_bytes()
