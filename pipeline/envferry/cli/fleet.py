"""The command `envferry fleet`."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from envferry.base.text import plural
from envferry.cli.shared.command import argument, command, option
from envferry.cli.shared.shared_options import RegistryOptions
from envferry.cli.shared.terminal import table
from envferry.cli.shared.time_spans import parse_age
from envferry.errors import NotFound
from envferry.registry import Registry
from envferry.suggestions import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.cli.shared.console import Console
    from envferry.registry.host_reports import Fleet, HostReport

log = logging.getLogger(__name__)


class FleetOptions(RegistryOptions):
    """Which environment, in the reports of which registry."""

    name: str | None = argument(required=False)
    everything: bool = option(
        "-a", "--all", is_flag=True, help="Also show installations that are not current."
    )
    silent: timedelta = option(
        "--silent-for",
        callback=parse_age,
        metavar="AGE",
        default="2d",
        show_default=True,
        help="Mark hosts that have not reported for AGE: 12h, 2d, 1w.",
    )


@command(FleetOptions)
def fleet(console: Console, options: FleetOptions) -> None:
    """Show which hosts have which installations, of all environments or of NAME, as they report it.

    Hosts report into `v1/hosts` of the registry that their setting `report_to` names: after each
    change, and with `envferry follow` every six hours. Reports are not signed.
    """
    from envferry.registry.host_reports import read_fleet

    found = read_fleet(Registry.open(options.registry))
    for key, why in found.damaged.items():
        log.warning("%s is not used: %s", key, why)
    if not found.reports:
        message = f"no host reports to {options.registry}"
        raise NotFound(message, hint="on hosts, set report_to (docs/rollout.md)")
    if options.name is not None:
        require_reported(found, options.name)
    now = datetime.now(timezone.utc)
    shown = [facts_of_host(one, options, now) for one in found.reports]
    result = {"hosts": shown, "damaged": found.damaged}
    console.result(result, lambda: fleet_lines(found, options, now))


def require_reported(found: Fleet, name: str) -> None:
    """Raise NotFound for an environment that no host names."""
    names = {one.name for report in found.reports for one in report.environments}
    names |= {one.ref.partition("@")[0] for report in found.reports for one in report.follows}
    if name not in names:
        message = f"no host reports an environment {name}"
        raise NotFound(message, hint=did_you_mean(name, names, "`envferry fleet` shows all"))


def facts_of_host(report: HostReport, options: FleetOptions, now: datetime) -> dict[str, object]:
    """Return what `--json` says of a host."""
    from envferry.registry.host_reports import is_recent

    return {
        "host": report.host,
        "time": report.time,
        "silent": not is_recent(report, now, options.silent),
        "envferry": report.envferry,
        "environments": [
            one
            for one in report.environments
            if options.name in (None, one.name) and (one.is_current or options.everything)
        ],
        "follows": [
            one for one in report.follows if options.name in (None, one.ref.partition("@")[0])
        ],
    }


def fleet_lines(found: Fleet, options: FleetOptions, now: datetime) -> Iterator[str]:
    """Yield the table of hosts, and how many have which artifact."""
    from envferry.registry.host_reports import followed_in_vain

    rows, counts = [], dict[str, int]()
    for report in found.reports:
        reported = report.time[:16].replace("T", " ")
        for one in report.environments:
            if options.name not in (None, one.name) or not (one.is_current or options.everything):
                continue
            artifact = f"{one.name}@{one.id}"
            counts[artifact] = counts.get(artifact, 0) + one.is_current
            state = "current" if one.is_current else ""
            note = note_about(report, one.name, options, now)
            rows.append((report.host, artifact, one.ref, state, reported, note))
        for tag in followed_in_vain(report):
            name = tag.ref.partition("@")[0]
            if options.name in (None, name):
                note = note_about(report, name, options, now)
                rows.append((report.host, "nothing", tag.ref, "", reported, note))
    yield from table(("HOST", "ARTIFACT", "AS", "", "REPORTED", "NOTE"), rows, right=())
    for artifact, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        yield f"{artifact}: current on {plural(count, 'host')}"
    if found.damaged:
        yield f"{plural(len(found.damaged), 'report')} damaged"


def note_about(report: HostReport, name: str, options: FleetOptions, now: datetime) -> str:
    """Return what is remarkable of an environment on a host."""
    from envferry.registry.host_reports import is_recent

    if not is_recent(report, now, options.silent):
        return "silent"
    tags = [one for one in report.follows if one.ref.partition("@")[0] == name]
    errors = [one.error for one in tags if one.error]
    waiting = [f"waits: {one.waiting}" for one in tags if one.waiting]
    return "; ".join([*errors, *waiting])
