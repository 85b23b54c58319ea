"""The command find: which artifacts hold a package, or whatever else its options name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.base.text import plural
from envferry.cli.shared.command import command
from envferry.cli.shared.selection import FindOptions, match_lines, open_index, require_environment
from envferry.errors import NotFound

if TYPE_CHECKING:
    from envferry.cli.shared.console import Console
    from envferry.index import MatchSpec, RegistryIndex


LISTED_VERSIONS = 12


@command(FindOptions)
def find(console: Console, options: FindOptions) -> int:
    """Find the artifacts that hold a PACKAGE, in all environments or in NAME.

    PACKAGE is a name, optionally with versions: 'torch>=2.8', 'numpy>=1.26,<2', 'openssl=3.0',
    'torch==2.8.*', 'nvidia-*'. conda and pip packages are searched. The exit code is 7 if
    nothing is found. With --cve, it finds the artifacts that hold an affected package, according
    to the database of `envferry audit`. --file and --import read the index of each archive, once;
    --hash reads the locks as well.
    """
    from envferry.index import MatchSpec
    from envferry.index.queries import entries
    from envferry.index.queries import find as find_package

    if asked := options.asked():
        return _find_otherwise(console, asked, options.without_package())
    # `asked` has raised where nothing says what to find.
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
