"""Commands that look into a whole registry by its local index: ls, find."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from envferry.base.files import human_bytes, plural
from envferry.cli.command import argument, command, option
from envferry.cli.shared_options import RegistryOptions
from envferry.cli.terminal import table
from envferry.config import settings
from envferry.errors import NotFound, UsageError
from envferry.names import check_name
from envferry.redaction import fit_to_show
from envferry.registry import Registry
from envferry.suggestions import closest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from envferry.cli.console import Console
    from envferry.index import MatchSpec, RegistryIndex
    from envferry.index.queries import Entry, Filter, Match


LISTED_VERSIONS = 12


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
        help="Find where the content of this file is; without PACKAGE.",
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
        if empty := [name for name in named if not given[name]]:
            message = f"{empty[0]} is empty"
            raise UsageError(message, hint="is a variable of a script not set?")
        if len(named) > 1:
            message = f"{named[0]} and {named[1]} do not go together"
            raise UsageError(message, hint="ask one after the other")
        if named and self.name:
            message = f"{named[0]} and the package {self.package} do not go together"
            found = shlex.join([named[0], str(given[named[0]]), self.name])
            raise UsageError(message, hint=f"run `envferry find {found}`")
        if not named and not self.package:
            message = f"nothing to find: none of PACKAGE, {', '.join(given)} is given"
            raise UsageError(message, hint="name a package, such as 'openssl<3.0.18'")
        return named[0] if named else ""

    def without_package(self) -> FindOptions:
        """Return these options with the one argument as NAME."""
        return FindOptions(**{**vars(self), "name": self.package, "package": None})


@command(SelectionOptions)
def ls(console: Console, options: SelectionOptions) -> None:
    """List the artifacts in the registry, or those of one environment, the newest first.

    SIGNED: whether the artifact has an attestation; `envferry verify REF` verifies it. The list
    comes from a local index, which reads only what is new in the registry. The exit code is 7 if
    the registry has no environment NAME.
    """
    from envferry.index.queries import entries

    if options.name and Path(options.name).is_dir() and "/" in options.name:
        message = f"{options.name} is a folder, expected the name of an environment"
        raise UsageError(message, hint=f"run `envferry ls --registry {options.name}`")
    index = open_index(console, options.registry, fully=options.fully)
    found = index.ask(entries(options.filter()))
    if not found and options.name:
        require_environment(options.name, index)
    console.result(found, lambda: entry_lines(found, index))
    if damaged := sum(1 for entry in found if entry.problem):
        console.note(f"{plural(damaged, 'artifact')} damaged: run `envferry check` for details")


@command(FindOptions)
def find(console: Console, options: FindOptions) -> int:
    """Find the artifacts that hold a PACKAGE, in all environments or in NAME.

    PACKAGE is a name, optionally with versions: 'torch>=2.8', 'numpy>=1.26,<2', 'openssl=3.0',
    'torch==2.8.*', 'nvidia-*'. conda and pip packages are searched. The exit code is 7 if
    nothing is found. With --cve, it finds the artifacts that hold an affected package, by the
    database of `envferry audit`. --file and --import read the index of each archive, once; --hash
    reads the locks as well.
    """
    from envferry.index import MatchSpec
    from envferry.index.queries import entries
    from envferry.index.queries import find as find_package

    if asked := options.asked():
        return _find_otherwise(console, asked, options.without_package())
    assert options.package
    wanted, selected = MatchSpec.parse(options.package), options.filter()
    index = open_index(console, options.registry, fully=options.fully)
    found = index.ask(find_package(wanted, selected))
    searched = index.ask(entries(selected))
    if damaged := sum(1 for entry in searched if entry.problem):
        text = f"{plural(damaged, 'artifact')} damaged and not searched"
        console.note(f"{text}: run `envferry check` for details")
    if not found and not console.as_json:
        if options.name:
            require_environment(options.name, index)
        raise nothing_found(options.package, wanted, index)
    console.result(found, lambda: match_lines(found))
    return 0 if found else NotFound.exit_code


def _find_otherwise(console: Console, asked: str, options: FindOptions) -> int:
    """Find by something else than a package's name."""
    from envferry.cli.find_cve import find_affected
    from envferry.cli.find_files import find_held_files, find_licensed
    from envferry.cli.find_hash import find_hash

    if asked == "--cve":
        return find_affected(console, options.cve or "", options)
    if asked == "--license":
        return find_licensed(console, options.license or "", options)
    if asked in ("--hash", "--hash-of"):
        return find_hash(console, options)
    return find_held_files(console, options)


def open_index(console: Console, registry: str, *, fully: bool = False) -> RegistryIndex:
    """Open the index of a registry until the command ends, and bring it up to date."""
    from envferry.index import RegistryIndex

    index = RegistryIndex.open(Registry.open(registry), settings().cache_dir)
    click.get_current_context().call_on_close(index.close)
    index.refresh(fully=fully, progress=console.progress)
    return index


def entry_lines(found: Sequence[Entry], index: RegistryIndex) -> Iterable[str]:
    """Return the table of artifacts, or what to try when there are none."""
    if not found:
        return [nothing_listed(index)]
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


def nothing_listed(index: RegistryIndex) -> str:
    """Say why a list is empty."""
    from envferry.index.queries import environments

    url = fit_to_show(index.registry.url)
    if not index.ask(environments()):
        return f"{url} holds no environments yet: add one with `envferry push ARCHIVE`"
    return f"no artifact in {url} matches: list all with `envferry ls`"


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


def nothing_found(package: str, wanted: MatchSpec, index: RegistryIndex) -> NotFound:
    """Say that no artifact holds a package, and which versions there are."""
    from envferry.index.queries import versions_of

    message = f"no artifact in {index.registry.url} holds {package}"
    versions = index.ask(versions_of(wanted))
    if not versions:
        return NotFound(
            message, hint=f"search for a part of the name: `envferry find '*{wanted.name}*'`"
        )
    shown = ", ".join(versions[-LISTED_VERSIONS:])
    more = "… " if len(versions) > LISTED_VERSIONS else ""
    return NotFound(
        f"{message}; available versions: {more}{shown}", hint=f"run `envferry find '{wanted.name}'`"
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
