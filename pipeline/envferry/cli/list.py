"""The command list: what is installed on this host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.base.text import human_bytes, plural
from envferry.cli.shared.command import argument, command
from envferry.cli.shared.completions import complete_installed
from envferry.cli.shared.installations import minute, nothing_in
from envferry.cli.shared.shared_options import EnvsDirOptions
from envferry.cli.shared.terminal import table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from envferry.cli.shared.console import Console
    from envferry.install.host.host_overview import InstalledFacts
    from envferry.install.records.last_results import InstallationState


class ListOptions(EnvsDirOptions):
    """What to list."""

    name: str | None = argument(required=False, shell_complete=complete_installed)


@command(ListOptions)
def list_command(console: Console, options: ListOptions) -> None:
    """List what is installed on this host, or the installations of NAME.

    OWN: bytes on the disk that removing it frees. SHARED: bytes of files that other installations
    have as well, by hard links; blocks that the file system shares (reflinks) count as OWN. What
    is mounted takes what its image takes.
    """
    from envferry.install.host.host_overview import list_installed

    found = list_installed(options.envs_dir, options.name)
    lines = installation_blocks if options.name else installation_table
    console.result(found, lambda: lines(found) if found else [nothing_in(options.envs_dir)])


def installation_table(found: Iterable[InstalledFacts]) -> Iterable[str]:
    """Return the table of installations."""
    rows = [
        (
            "*" if one.is_current else "",
            one.name,
            one.id,
            "damaged" if one.problem else one.version or "",
            (one.origin.tag if one.origin else None) or "",
            human_bytes(one.own_bytes),
            human_bytes(one.shared_bytes),
            minute(one.origin.time) if one.origin else "",
            one.origin.user if one.origin else "",
            verified_text(one.state),
            # Without the reason after `perhaps`, which is long.
            used_text(one).partition(":")[0],
        )
        for one in found
    ]
    headers = ("", "NAME", "ID", "VERSION", "TAG", "OWN", "SHARED", "INSTALLED", "BY")
    return table((*headers, "VERIFIED", "IN USE"), rows, right=(5, 6))


def installation_blocks(found: Iterable[InstalledFacts]) -> Iterator[str]:
    """Yield all that is known of each installation."""
    for number, one in enumerate(found):
        if number:
            yield ""
        yield f"{one.name}@{one.id}" + (" (current)" if one.is_current else "")
        if one.problem:
            yield f"  damaged    {one.problem}"
            continue
        facts = {
            "version": one.version or "",
            "for path": one.prefix,
            "on disk": f"{human_bytes(one.own_bytes)} of its own, "
            f"{human_bytes(one.shared_bytes)} shared; {plural(one.files, 'file')}",
            **origin_facts(one),
            "checks": checks_text(one.state),
            "verified": verified_text(one.state),
            "in use": used_text(one),
        }
        yield from (f"  {label:<10} {text}" for label, text in facts.items() if text)


def origin_facts(one: InstalledFacts) -> dict[str, str]:
    """Return how an installation got to the host."""
    if one.origin is None:
        return {"installed": "by an envferry that kept no record of when and by whom"}
    return {
        "installed": f"{minute(one.origin.time)} by {one.origin.user}",
        "from": one.origin.source,
        "as": one.origin.ref if one.origin.ref != one.origin.source else "",
        "signed by": ", ".join(one.origin.signed_by),
    }


def verified_text(state: InstallationState) -> str:
    """Return when it was verified last, and the result."""
    last = state.verified
    if last is None:
        return ""
    result = plural(last.differences, "difference") if last.differences else "ok"
    return f"{minute(last.time)} {result}" + (" (quick)" if last.quick else "")


def checks_text(state: InstallationState) -> str:
    """Return how the checks ended when they ran last."""
    last = state.checked
    if last is None:
        return "not run"
    return f"{minute(last.time)} " + ("passed" if last.passed else f"failed: {last.failed}")


def used_text(one: InstalledFacts) -> str:
    """Return who uses an installation."""
    from envferry.install.programs.in_use import describe

    if one.users:
        return describe(one.users)
    return f"perhaps: {one.perhaps_used}" if one.perhaps_used else ""
