"""Commands that show what a host has: list, history, du, status, checks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from envferry.base.files import human_bytes, plural
from envferry.cli.installed import home_of
from envferry.cli.shared.command import argument, command, option
from envferry.cli.shared.completing import complete_installed
from envferry.cli.shared.shared_options import EnvsDirOptions, TrustedKeyOptions
from envferry.cli.shared.sizes import parse_size
from envferry.cli.shared.terminal import table
from envferry.errors import by_exit_code
from envferry.install.actor import utc_now
from envferry.trust.host_keys import load_trust

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from envferry.cli.shared.console import Console
    from envferry.install.disk_usage import DirectoryUsage
    from envferry.install.host_overview import History, InstalledFacts
    from envferry.install.last_results import InstallationState


class ListOptions(EnvsDirOptions):
    """What to list."""

    name: str | None = argument(required=False, shell_complete=complete_installed)


class HistoryOptions(EnvsDirOptions):
    """Whose history to show."""

    name: str = argument(shell_complete=complete_installed)


class StatusCommandOptions(TrustedKeyOptions, EnvsDirOptions):
    """What to look at."""

    names: tuple[str, ...] = argument(nargs=-1, metavar="[NAME]...")
    textfile: Path | None = option(
        "--textfile",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Also write metrics for Prometheus's textfile collector; the name ends in .prom.",
    )
    min_free: int = option(
        "--min-free",
        metavar="SIZE",
        default="1G",
        callback=parse_size,
        show_default=True,
        help="The least free space that is all right, such as 20G.",
    )


class ChecksOptions(EnvsDirOptions):
    """Which installation to check."""

    name: str = argument(metavar="NAME[@ID]", shell_complete=complete_installed)


@command(ListOptions)
def list_command(console: Console, options: ListOptions) -> None:
    """List what is installed on this host, or the installations of NAME.

    OWN: bytes on the disk that removing it frees. SHARED: bytes of files that other installations
    have as well, by hard links; blocks that the file system shares (reflinks) count as OWN. What
    is mounted takes what its image takes.
    """
    from envferry.install.host_overview import list_installed

    found = list_installed(options.envs_dir, options.name)
    lines = installation_blocks if options.name else installation_table
    console.result(found, lambda: lines(found) if found else [nothing_in(options.envs_dir)])


@command(HistoryOptions)
def history(console: Console, options: HistoryOptions) -> None:
    """Show the installations of NAME and what happened to it, for `envferry rollback NAME BACK`.

    BACK: how many installations back it is; 0 is the current one.
    """
    from envferry.install.host_overview import read_history

    found = read_history(home_of(options.name, options.envs_dir)[0])
    console.result(found, lambda: history_lines(found))


@command(EnvsDirOptions)
def du(console: Console, options: EnvsDirOptions) -> None:
    """Show the disk space that all installations take; shared files are counted once.

    Hard links are recognised, reflinks are not: on file systems that have these the sum is what the
    installations would take without.
    """
    from envferry.install.disk_usage import measure_directory

    usage = measure_directory(options.envs_dir.absolute())
    console.result(usage, lambda: usage_lines(usage))


@command(StatusCommandOptions)
def status(console: Console, options: StatusCommandOptions) -> None:
    """Say whether the environments of this host are as they should be: for monitoring.

    Looks at the current installation of each NAME, or of all: whether there is one, how its checks
    ended when they ran last, whether sizes, modes and times are as installed, whether a key that is
    trusted now signed it, and at free space. The exit code is 0 only if all is well; otherwise 7 if
    nothing is current, 4 if checks failed, 8 for changed files or a signature that is not trusted,
    11 for too little space: the first of these that applies.
    """
    from envferry.base.prometheus import check_textfile, write_textfile
    from envferry.install.status import StatusOptions, describe_status, metrics_of, read_status

    check_textfile(options.textfile)
    trust = load_trust(options.trusted_keys, takes_in=False)
    keys = [key.id for key in trust.keys_for("release")]
    keys += map(str, trust.identities.accepted)
    revoked = trust.bundle.revoked_artifacts if trust.bundle else ()
    wanted = StatusOptions(
        envs_dir=options.envs_dir.absolute(),
        names=options.names,
        # A bundle without a key that may sign now is not a host without keys.
        trusted_keys=keys or (["none"] if trust.bundle else []),
        revoked={(one.name, one.platform, one.id): one.why for one in revoked},
        min_free=options.min_free,
        time=utc_now(),
    )
    found = read_status(wanted)
    if options.textfile:
        write_textfile(options.textfile, metrics_of(found))
    console.result(found, lambda: describe_status(found))
    if found.exit_code:
        name, first = next(item for item in found.all_findings if item[1].code == found.exit_code)
        about = f"{name}: " if name else ""
        hints = {
            "current": f"`envferry install {name or 'NAME@TAG'}`",
            "checks": f"`envferry checks {name}` runs them again",
            "drift": f"`envferry verify {name}` says which files, with --repair it restores them",
            "signature": "install what a trusted key signed, or trust the key that signed this",
            "disk": "`envferry du` shows what takes the space; `envferry remove NAME` frees it",
        }
        msg = f"{about}{first.text}"
        raise by_exit_code(found.exit_code)(msg, hint=hints[first.fault])


@command(ChecksOptions)
def checks(console: Console, options: ChecksOptions) -> None:
    """Run the checks of an installation again, the current one of NAME or NAME@ID.

    An install from outside of a container, for the path inside it, cannot run them: run this
    command inside, where the environment has its path.
    """
    from envferry.install.later_checks import check_installed

    home, id_ = home_of(options.name, options.envs_dir)
    record = check_installed(home, id_, time=utc_now(), progress=console.progress)
    count = len(record.checks.argvs(record.prefix))
    shown = f"{home.name}@{record.id}"
    facts = {"name": home.name, "id": record.id, "passed": count}
    line = f"{shown}: {plural(count, 'check')} passed" if count else f"{shown} has no checks"
    console.result(facts, lambda: [line])


def nothing_in(envs_dir: Path) -> str:
    """Say that nothing is installed."""
    return f"nothing is installed in {envs_dir}; `envferry install NAME@TAG` does that"


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
    """Return how an installation came to the host."""
    if one.origin is None:
        return {"installed": "by an envferry that kept no record of when and by whom"}
    return {
        "installed": f"{minute(one.origin.time)} by {one.origin.user}",
        "from": one.origin.source,
        "as": one.origin.ref if one.origin.ref != one.origin.source else "",
        "signed by": ", ".join(one.origin.signed_by),
    }


def history_lines(found: History) -> Iterator[str]:
    """Yield the installations, then what happened."""
    rows = [
        (
            "" if one.steps_back is None else one.steps_back,
            one.id,
            one.version or "",
            minute(one.origin.time) if one.origin else "",
            one.origin.user if one.origin else "",
            one.origin.ref if one.origin else "",
        )
        for one in found.installations
    ]
    yield from table(("BACK", "ID", "VERSION", "INSTALLED", "BY", "AS"), rows, right=(0,))
    if found.events:
        yield ""
        events = [
            (minute(one.time), one.id, one.kind, one.user, one.detail) for one in found.events
        ]
        yield from table(("TIME", "ID", "WHAT", "BY", ""), events, right=())


def usage_lines(usage: DirectoryUsage) -> Iterator[str]:
    """Yield the table of installations and the sums."""
    rows = [
        (one.name, one.id, human_bytes(one.own), human_bytes(one.shared))
        for one in usage.installations
    ]
    if rows:
        yield from table(("NAME", "ID", "OWN", "SHARED"), rows, right=(2, 3))
    if usage.unfinished:
        yield f"{human_bytes(usage.unfinished)} of interrupted or running commands"
    yield (
        f"{human_bytes(usage.total)} in {usage.envs_dir}, shared files counted once; "
        f"{human_bytes(usage.free)} free"
    )


def minute(time: str) -> str:
    """Return a time of a record for people: `2026-11-28 23:10` UTC."""
    return time[:16].replace("T", " ")


def verified_text(state: InstallationState) -> str:
    """Return when it was verified last, and what came of it."""
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
    from envferry.install.in_use import describe

    if one.users:
        return describe(one.users)
    return f"perhaps: {one.perhaps_used}" if one.perhaps_used else ""
