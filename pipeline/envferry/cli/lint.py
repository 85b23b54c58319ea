"""The command lint: what is dangerous in specs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from envferry.cli.shared.command import CommandOptions, argument, command, option
from envferry.cli.shared.completions import complete_specs
from envferry.config import settings
from envferry.names import SPECS_DIR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from envferry.cli.shared.console import Console
    from envferry.models import Lock, LockedPackage
    from envferry.progress import Progress
    from envferry.specs.lint.linting import LintFinding


class LintOptions(CommandOptions):
    """What to lint, and how strictly."""

    specs: tuple[str, ...] = argument(
        nargs=-1, required=True, metavar="SPEC...", shell_complete=complete_specs
    )
    online: bool = option(
        "--online", is_flag=True, help="Also check that the channels have every pin."
    )
    license_policy: Path | None = option(
        "--license-policy",
        type=click.Path(path_type=Path),
        metavar="FILE",
        default=lambda: settings().license_policy,
        show_default="the setting license_policy, if any",
        help="Also find licences that the [licenses] of this policy does not allow, in the lock and"
        " in the wheels that are in the cache.",
    )
    strict: bool = option("--strict", is_flag=True, help="Fail if anything is found.")


@command(LintOptions)
def lint(console: Console, options: LintOptions) -> None:
    """List what is dangerous in each SPEC, and how to fix it."""
    from envferry.specs.reading import find_spec

    found: list[LintFinding] = []
    for word in options.specs:
        path = find_spec(word, SPECS_DIR)
        asking = console.progress if options.online else None
        found += lint_one(path, options.license_policy, asking)
    console.result([finding_facts(item) for item in found], lambda: [str(item) for item in found])
    refuse_findings(found, strict=options.strict)


def lint_one(
    path: Path, license_policy: Path | None, asking: Progress | None = None
) -> list[LintFinding]:
    """Lint one spec, with what its lock knows; refuse what `lock` cannot read, in its words.

    With `asking`, which shows how far it is, its channels are asked for its pins, too.
    """
    from envferry.lock.conda.match_specs import check_match_specs
    from envferry.lock.pypi_names import pypi_names
    from envferry.specs.lint.linting import lint_spec
    from envferry.specs.reading import read_spec

    spec = read_spec(path)
    check_match_specs(spec)
    lock = old_lock(path.with_name(f"{path.stem}.conda-lock.yml"))
    gone: dict[str, str] = {}
    if asking:
        from envferry.lock.conda.channels import missing_pins

        gone = missing_pins(spec, asking)
    locked = lock.packages if lock else ()
    return lint_spec(path, pypi_names, locked, gone, refused_licenses(locked, license_policy))


def refused_licenses(
    locked: Iterable[LockedPackage], policy: Path | None
) -> Callable[[LockedPackage], str]:
    """Return what says why the licence of a package is not allowed: nothing where it is."""
    if policy is None:
        return lambda _: ""
    from envferry.audit.audit_policy import load_license_policy
    from envferry.audit.license_policy import license_fault
    from envferry.build.downloads import DownloadCache
    from envferry.build.locked_licenses import known_licenses

    found = load_license_policy(policy)
    cache = DownloadCache(settings().cache_dir / "downloads")
    faults = {
        (one.manager, one.name, one.version): license_fault(text, found)
        for one, text in known_licenses(locked, cache)
    }
    return lambda one: faults.get((one.manager, one.name, one.version), "")


def refuse_findings(found: list[LintFinding], *, strict: bool) -> None:
    """Fail for findings where that was asked for."""
    from envferry.errors import SpecError

    if strict and found:
        message = f"lint found {len(found)} problem{'s' if len(found) > 1 else ''}"
        raise SpecError(message, hint="fix them, or leave out `--strict`")


def old_lock(path: Path) -> Lock | None:
    """Return the lock that is there, if one is and can be read."""
    from envferry.errors import NotFound, SpecError
    from envferry.specs.locks import read_lock

    try:
        return read_lock(path)
    except (NotFound, SpecError):
        return None


def finding_facts(finding: LintFinding) -> dict[str, object]:
    """Return what `lint --json` says of a finding."""
    rule = finding.rule
    return {
        "code": rule.code,
        "path": finding.path,
        "line": finding.line,
        "what": finding.what,
        "why": rule.why,
        "fix": rule.fix,
    }
