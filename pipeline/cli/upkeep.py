"""Commands that keep a registry in order: check, prune."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.cli.options import common_options, registry_option
from pipeline.cli.trust import load_trust, open_trusting, trusted_key_option
from pipeline.errors import IntegrityError
from pipeline.files import human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.cli.console import Console
    from pipeline.registry.checking import Report


@click.command()
@click.argument("name", required=False)
@click.option("--bytes", "read_bytes", is_flag=True, help="Also read every byte of every archive.")
@trusted_key_option
@registry_option
@common_options
def check(
    console: Console,
    name: str | None,
    read_bytes: bool,
    trusted_keys: tuple[Path, ...],
    registry: str,
) -> None:
    """Say what is broken in the registry, or in the environment NAME, and how to mend it.

    Manifests, archives, checksums, locks, SBOMs, attestations and tags; ends with 8 when anything
    is broken. Signatures are checked with the trusted keys, where there are any: then what nobody
    signed is broken, too.
    """
    from pipeline.registry.checking import check_registry

    place = open_trusting(registry, load_trust(trusted_keys))
    report = check_registry(place, name, read_bytes=read_bytes, progress=console.progress)
    console.result(report, lambda: report_lines(report))
    if report.broken:
        message = f"{report.registry} is not in order (broken: {report.broken})"
        raise IntegrityError(message, hint="each line above says how to mend it")


def report_lines(report: Report) -> Iterator[str]:
    """Yield each finding with what mends it, and a summary."""
    for finding in report.findings:
        yield f"{click.style(finding.severity, bold=True)}  {finding.key}"
        yield f"    {finding.what}"
        yield f"    {click.style('mend:', bold=True)} {finding.mend}"
    what = f"{report.artifacts} artifacts, {report.tags} tags"
    if report.read_bytes:
        what += f", {human_bytes(report.read_bytes)} read"
    leftovers = len(report.findings) - report.broken
    yield f"{report.registry}: {what}; broken: {report.broken}, leftovers: {leftovers}"
