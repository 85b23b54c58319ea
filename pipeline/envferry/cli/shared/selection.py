"""Which artifacts of a registry a command is about, its index, and the tables of what is found."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from envferry.base.text import plural
from envferry.cli.shared.command import argument, option
from envferry.cli.shared.shared_options import RegistryOptions
from envferry.cli.shared.terminal import table
from envferry.config import settings
from envferry.errors import NotFound, UsageError
from envferry.names import check_name
from envferry.registry import Registry
from envferry.suggestions import closest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from envferry.cli.shared.console import Console
    from envferry.index import RegistryIndex
    from envferry.index.holder import Holder
    from envferry.index.queries import Filter, Match

SHOWN_REASONS = 3


class SelectionOptions(RegistryOptions):
    """Which artifacts of a registry are meant, and how thoroughly to look for them."""

    name: str | None = argument(required=False)
    platform: str | None = option(
        "--platform", metavar="PLATFORM", help="Only artifacts for this platform."
    )
    tag: str | None = option("--tag", metavar="TAG", help="Only artifacts with this tag.")
    is_tagged: bool = option("--tagged", is_flag=True, help="Only artifacts with a tag.")
    fully: bool = option(
        "--refresh",
        is_flag=True,
        help="List every key again, to see half-removed artifacts and late signatures at once.",
    )

    def filter(self) -> Filter:
        """Return the question to the index."""
        from envferry.index.queries import Filter

        return Filter(
            name=check_name(self.name, "environment name") if self.name else None,
            platform=self.platform,
            tag=self.tag,
            is_tagged=self.is_tagged,
        )


class FindOptions(SelectionOptions):
    """What to find, and where."""

    package: str | None = argument(required=False)
    name: str | None = argument(required=False)
    cve: str | None = option(
        "--cve",
        metavar="ID",
        help="Find what this vulnerability affects: CVE-…, GHSA-…, PYSEC-…; without PACKAGE.",
    )

    file: str | None = option(
        "-f",
        "--file",
        metavar="PATTERN",
        help="Find a file: 'libcudnn.so.9', 'libcudnn*', 'lib/libz.so*' (the end of its path),"
        " '/bin/gcc' (from the top); without PACKAGE.",
    )
    module: str | None = option(
        "--import",
        metavar="MODULE",
        help="Find where `import MODULE` works: yaml, google.protobuf; without PACKAGE.",
    )
    license: str | None = option(
        "--license",
        metavar="PATTERN",
        help="Find packages under a licence, as an SPDX expression names it: 'GPL-3.0*', unknown;"
        " without PACKAGE.",
    )

    hash: str | None = option(
        "--hash",
        metavar="DIGEST",
        help="Find what has this digest: an archive, a lock, a download that a lock names (SHA-256,"
        " MD5, commit), a file inside (XXH3-128); without PACKAGE.",
    )
    hash_of: str | None = option(
        "--hash-of",
        type=click.Path(path_type=str),
        metavar="FILE",
        help="Find what contains this file's content; without PACKAGE.",
    )

    def asked(self) -> str:
        """Return the option that says what to find; nothing where PACKAGE does.

        Raises UsageError for none and for several.
        """
        given = {
            "--cve": self.cve,
            "--file": self.file,
            "--import": self.module,
            "--license": self.license,
            "--hash": self.hash,
            "--hash-of": self.hash_of,
        }
        named = [name for name, value in given.items() if value is not None]
        # An empty value is not the absence of the option: a script's variable was not set.
        if empty := [name for name in named if not given[name]]:
            message = f"{empty[0]} is empty"
            raise UsageError(message, hint="is a variable of a script not set?")
        if len(named) > 1:
            message = f"{named[0]} and {named[1]} cannot be combined"
            raise UsageError(message, hint="run one search after the other")
        if named and self.name:
            message = f"{named[0]} and the package {self.package} cannot be combined"
            found = shlex.join([named[0], str(given[named[0]]), self.name])
            raise UsageError(message, hint=f"run `envferry find {found}`")
        if not named and not self.package:
            message = f"nothing to find: none of PACKAGE, {', '.join(given)} is given"
            raise UsageError(message, hint="name a package, such as 'openssl<3.0.18'")
        return named[0] if named else ""

    def without_package(self) -> FindOptions:
        """Return these options with the one argument as NAME."""
        return FindOptions(**{**vars(self), "name": self.package, "package": None})


def open_index(console: Console, registry: str, *, fully: bool = False) -> RegistryIndex:
    """Open the index of a registry until the command ends, and bring it up to date."""
    from envferry.index import RegistryIndex

    index = RegistryIndex.open(Registry.open(registry), settings().cache_dir)
    click.get_current_context().call_on_close(index.close)
    index.refresh(fully=fully, progress=console.progress)
    return index


def require_environment(name: str, index: RegistryIndex) -> None:
    """Raise NotFound, with names that are near, for an environment that the registry lacks."""
    from envferry.index.queries import environments

    names = [one.name for one in index.ask(environments())]
    if name in names:
        return
    near = closest(name, names, 3)
    hint = "list all environments with `envferry ls`"
    if near:
        hint = f"did you mean {' or '.join(near)}? {hint}"
    elif not names:
        hint = "it holds none yet: add one with `envferry push ARCHIVE`"
    msg = f"{index.registry.url} holds no environment {name}"
    raise NotFound(msg, hint=hint)


def match_lines(found: Sequence[Match]) -> Iterable[str]:
    """Return the table of packages that were found."""
    rows = [((one.package, one.version, one.kind), one) for one in found]
    return holder_lines(("PACKAGE", "VERSION", "KIND"), rows)


def holder_lines(
    headers: Sequence[str], rows: Iterable[tuple[tuple[object, ...], Holder]]
) -> Iterable[str]:
    """Return the table of what was found, each with the artifact that holds it."""
    cells = [
        (
            *about,
            f"{one.name}@{one.id}",
            one.platform,
            one.env_version or "",
            ", ".join(one.tags),
            day(one.published),
        )
        for about, one in rows
    ]
    return table(
        (*headers, "ARTIFACT", "PLATFORM", "VERSION", "TAGS", "PUBLISHED"), cells, right=()
    )


def day(time: datetime | None) -> str:
    """Return a time as a day."""
    return f"{time:%Y-%m-%d}" if time else ""


def say_unsearched(console: Console, what: str, reasons: Mapping[str, int]) -> None:
    """Note how many artifacts were not searched, and why, the most frequent reasons first."""
    ordered = sorted(reasons.items(), key=lambda one: -one[1])
    for reason, number in ordered[:SHOWN_REASONS]:
        console.note(f"{plural(number, 'artifact')} not searched ({what}): {reason}")
    if left := sum(number for _, number in ordered[SHOWN_REASONS:]):
        console.note(f"{left} more not searched ({what}): run `envferry check` for details")
