"""The command ls: what a registry holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from envferry.base.text import human_bytes, plural
from envferry.cli.shared.command import command
from envferry.cli.shared.selection import SelectionOptions, day, open_index, require_environment
from envferry.cli.shared.terminal import table
from envferry.errors import UsageError
from envferry.redaction import fit_to_show

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from envferry.cli.shared.console import Console
    from envferry.index import RegistryIndex
    from envferry.index.queries import Entry


@command(SelectionOptions)
def ls(console: Console, options: SelectionOptions) -> None:
    """List the artifacts in the registry, or those of one environment, the newest first.

    SIGNED: whether the artifact has an attestation; `envferry verify REF` verifies it. The list
    comes from a local index, which reads only what is new in the registry. The exit code is 7 if
    the registry has no environment NAME.
    """
    from envferry.index.queries import entries

    # Names of environments have no slash: a registry is meant.
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
