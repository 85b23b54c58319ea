"""Commands that look into a whole registry by its local index: ls, find."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from envferry.base.files import human_bytes
from envferry.cli.options import common_options, registry_option
from envferry.cli.terminal import table
from envferry.config import settings
from envferry.errors import NotFound
from envferry.models import check_name, fit_to_show
from envferry.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime
    from typing import TypeVar

    from envferry.cli.console import Console
    from envferry.index import Catalog, WantedPackage
    from envferry.index.queries import Entry, Filter, Match

    Function = TypeVar("Function", bound=Callable[..., object])

LISTED_VERSIONS = 12

SELECTIONS = (
    click.option("--platform", metavar="P", help="Only artifacts of this platform."),
    click.option("--tag", metavar="TAG", help="Only artifacts that this tag points to."),
    click.option("--tagged", "is_tagged", is_flag=True, help="Only artifacts with a tag."),
    click.option(
        "--refresh", "fully", is_flag=True,
        help="List every key anew: sees half-removed artifacts and late signatures at once.",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which artifacts are meant, and how thoroughly to look for them."""

    platform: str | None
    tag: str | None
    is_tagged: bool
    fully: bool

    def filter(self, name: str | None) -> Filter:
        """Return the question to the index."""
        from envferry.index.queries import Filter

        return Filter(
            name=check_name(name, "environment name") if name else None,
            platform=self.platform,
            tag=self.tag,
            is_tagged=self.is_tagged,
        )


def selection_options(function: Function) -> Function:
    """Add the options that say which artifacts are meant: the command gets a Selection."""

    @wraps(function)
    def wrapper(
        *arguments: object,
        platform: str | None,
        tag: str | None,
        is_tagged: bool,
        fully: bool,
        **others: object,
    ) -> object:
        selection = Selection(platform=platform, tag=tag, is_tagged=is_tagged, fully=fully)
        return function(*arguments, selection=selection, **others)

    decorated: Any = wrapper
    for option in reversed(SELECTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


@click.command()
@click.argument("name", required=False)
@selection_options
@registry_option
@common_options
def ls(
    console: Console,
    name: str | None,
    registry: str,
    selection: Selection,
) -> None:
    """List the artifacts in the registry, or those of one environment, the newest first.

    SIGNED says whether an attestation lies beside an artifact; `envferry verify REF` says by
    whom. The list comes from a local index, which reads only what is new in the registry. The exit
    code is 7 when the registry has no environment NAME.
    """
    from envferry.index.queries import entries

    wanted = selection.filter(name)
    catalog = open_catalog(console, registry, fully=selection.fully)
    found = catalog.ask(entries(wanted))
    if not found and name:
        require_environment(name, catalog)
    console.result(found, lambda: entry_lines(found, catalog))
    if damaged := sum(1 for entry in found if entry.problem):
        console.note(f"{damaged} damaged: `envferry check` says what is wrong and how to mend it")


@click.command()
@click.argument("package")
@click.argument("name", required=False)
@selection_options
@registry_option
@common_options
def find(
    console: Console,
    package: str,
    name: str | None,
    registry: str,
    selection: Selection,
) -> int:
    """Find the artifacts that hold a PACKAGE, in all environments or in NAME.

    PACKAGE is a name, with versions if you like: 'torch>=2.8', 'numpy>=1.26,<2', 'openssl=3.0',
    'torch==2.8.*', 'nvidia-*'. conda and pip packages are searched. The exit code is 7 when
    nothing is found.
    """
    from envferry.index import WantedPackage
    from envferry.index.queries import entries
    from envferry.index.queries import find as find_package

    wanted = WantedPackage.parse(package)
    catalog = open_catalog(console, registry, fully=selection.fully)
    found = catalog.ask(find_package(wanted, selection.filter(name)))
    searched = catalog.ask(entries(selection.filter(name)))
    if damaged := sum(1 for entry in searched if entry.problem):
        console.note(f"{damaged} damaged and not searched: `envferry check` says how to mend it")
    if not found and not console.as_json:
        if name:
            require_environment(name, catalog)
        raise nothing_found(package, wanted, catalog)
    console.result(found, lambda: match_lines(found))
    return 0 if found else NotFound.exit_code


def open_catalog(console: Console, registry: str, *, fully: bool = False) -> Catalog:
    """Open the index of a registry until the command ends, and bring it up to date."""
    from envferry.index import Catalog

    catalog = Catalog.open(Registry.open(registry), settings().cache_dir)
    click.get_current_context().call_on_close(catalog.close)
    catalog.refresh(fully=fully, progress=console.progress)
    return catalog


def entry_lines(found: Sequence[Entry], catalog: Catalog) -> Iterable[str]:
    """Return the table of artifacts, or what to try when there are none."""
    if not found:
        return [nothing_listed(catalog)]
    rows = [
        (
            entry.name,
            entry.id,
            entry.platform,
            "damaged" if entry.problem else entry.version or "",
            ", ".join(entry.tags),
            "" if entry.problem else entry.packages,
            "" if entry.problem else human_bytes(entry.size),
            day(entry.published),
            "yes" if entry.attested else "no",
        )
        for entry in found
    ]
    headers = (
        *("NAME", "ID", "PLATFORM", "VERSION", "TAGS"),
        *("PACKAGES", "SIZE", "PUBLISHED", "SIGNED"),
    )
    return table(headers, rows, right=(5, 6))


def nothing_listed(catalog: Catalog) -> str:
    """Say why a list is empty."""
    from envferry.index.queries import environments

    url = fit_to_show(catalog.registry.url)
    if not catalog.ask(environments()):
        return f"{url} holds no environments yet: `envferry push ARCHIVE` brings one"
    return f"{url} holds nothing like that: see `envferry ls` without options"


def require_environment(name: str, catalog: Catalog) -> None:
    """Raise NotFound, with names that are near, for an environment that the registry lacks."""
    from envferry.index.queries import environments

    names = [one.name for one in catalog.ask(environments())]
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=3)
    hint = "`envferry ls` lists what it holds"
    if near:
        hint = f"perhaps {', '.join(near)}? {hint}"
    elif not names:
        hint = "it holds none yet: `envferry push ARCHIVE` brings one"
    raise NotFound(f"{catalog.registry.url} holds no environment {name}", hint=hint)


def nothing_found(package: str, wanted: WantedPackage, catalog: Catalog) -> NotFound:
    """Say that no artifact holds a package, and which versions there are."""
    from envferry.index.queries import versions_of

    message = f"no artifact in {catalog.registry.url} holds {package}"
    versions = catalog.ask(versions_of(wanted))
    if not versions:
        return NotFound(message, hint=f"try a part of its name: envferry find '*{wanted.name}*'")
    shown = ", ".join(versions[-LISTED_VERSIONS:])
    more = "… " if len(versions) > LISTED_VERSIONS else ""
    return NotFound(
        f"{message}: versions there are {more}{shown}", hint=f"run `envferry find '{wanted.name}'`"
    )


def match_lines(found: Sequence[Match]) -> Iterable[str]:
    """Return the table of matches."""
    rows = [
        (
            match.package,
            match.version,
            match.kind,
            f"{match.name}@{match.id}",
            match.platform,
            match.env_version or "",
            ", ".join(match.tags),
            day(match.published),
        )
        for match in found
    ]
    headers = (
        *("PACKAGE", "VERSION", "KIND", "ARTIFACT", "PLATFORM"),
        *("VERSION", "TAGS", "PUBLISHED"),
    )
    return table(headers, rows, right=())


def day(time: datetime | None) -> str:
    """Return a time as a day."""
    return f"{time:%Y-%m-%d}" if time else ""
