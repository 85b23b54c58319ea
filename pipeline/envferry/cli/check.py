"""The command check: what is broken in a registry, and how to repair it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.base.text import human_bytes, plural
from envferry.cli.shared.command import argument, command, option
from envferry.cli.shared.shared_options import IdentityOptions, RegistryOptions, TrustedKeyOptions
from envferry.cli.shared.terminal import styled
from envferry.errors import IntegrityError
from envferry.registry.accepted_sources import open_trusting
from envferry.trust.host_keys import load_trust

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.cli.shared.console import Console
    from envferry.registry.check import Report


class CheckOptions(TrustedKeyOptions, IdentityOptions, RegistryOptions):
    """What to check, and how thoroughly."""

    name: str | None = argument(required=False)
    read_bytes: bool = option(
        "--bytes", is_flag=True, help="Also read every byte of every archive."
    )


@command(CheckOptions)
def check(console: Console, options: CheckOptions) -> None:
    """Report what is broken in the registry, or in the environment NAME, and how to repair it.

    Checks manifests, archives, checksums, locks, SBOMs, attestations, tags and the deltas of a
    disk; exits with 8 if anything is broken. With trusted keys it also verifies signatures, and an
    unsigned artifact counts as broken.
    """
    from envferry.registry.check import check_registry
    from envferry.transfer.delta_check import check_deltas

    trust = options.with_identity(load_trust(options.trusted_keys, takes_in=False))
    place = open_trusting(options.registry, trust)
    read_bytes = options.read_bytes
    report = check_registry(place, options.name, read_bytes=read_bytes, progress=console.progress)
    if options.name is None:
        report = check_deltas(place, report, read_bytes=read_bytes)
    console.result(report, lambda: report_lines(report))
    if report.broken:
        message = f"{report.registry} is damaged (broken: {report.broken})"
        raise IntegrityError(message, hint="each finding above names its fix")


def report_lines(report: Report) -> Iterator[str]:
    """Yield each finding with its fix, and a summary."""
    for finding in report.findings:
        yield f"{styled(finding.severity, bold=True)}  {finding.key}"
        yield f"    {finding.what}"
        yield f"    {styled('fix:', bold=True)} {finding.mend}"
    what = f"{plural(report.artifacts, 'artifact')}, {plural(report.tags, 'tag')}"
    if report.deltas:
        what += f", {plural(report.deltas, 'delta')}"
    if report.read_bytes:
        what += f", {human_bytes(report.read_bytes)} read"
    leftovers = len(report.findings) - report.broken
    yield f"{report.registry}: {what}; broken: {report.broken}, leftovers: {leftovers}"
