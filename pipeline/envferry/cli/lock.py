"""The command lock: specs become locks."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from envferry.cli.lint import lint_one, old_lock, refuse_findings
from envferry.cli.shared.command import argument, command, option
from envferry.cli.shared.completions import complete_specs
from envferry.cli.shared.shared_options import DryRunOptions, OfflineOptions
from envferry.config import settings
from envferry.errors import NotFound, UsageError
from envferry.names import SPECS_DIR

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envferry.cli.shared.console import Console
    from envferry.lock.lock_options import LockOptions
    from envferry.models import Lock
    from envferry.specs.drafts import RelaxLevel
    from envferry.specs.lint.linting import LintFinding
    from envferry.specs.lock_changes import Change


log = logging.getLogger(__name__)


class LockCommandOptions(DryRunOptions, OfflineOptions):
    """What to lock, and how."""

    specs: tuple[str, ...] = argument(nargs=-1, metavar="[SPEC]...", shell_complete=complete_specs)
    files: tuple[str, ...] = option(
        "-f", "--file", multiple=True, metavar="FILE", help="Also lock this spec file; repeatable."
    )
    platforms: tuple[str, ...] = option(
        "--platform", multiple=True, metavar="PLATFORM", help="Lock for this platform; repeatable."
    )
    channels: tuple[str, ...] = option(
        "-c",
        "--channel",
        multiple=True,
        metavar="CHANNEL",
        help="Use this channel instead of the spec's; repeatable.",
    )
    check: bool = option(
        "--check",
        is_flag=True,
        help="Only check whether the locks are up to date; without a SPEC all those in specs/.",
    )
    updated: tuple[str, ...] = option(
        "--update",
        multiple=True,
        metavar="PKG",
        help="Update this package and nothing else; repeatable.",
    )
    upgrade: bool = option("--upgrade", is_flag=True, help="Update everything.")
    exclude_newer: str | None = option(
        "--exclude-newer", metavar="DATE", help="Ignore what was published after DATE."
    )
    relax: RelaxLevel | None = option(
        "--relax",
        type=click.Choice(["build", "patch", "all"]),
        help="Loosen pins that no channel satisfies: drop their build, patch version, or all.",
    )
    strict: bool = option("--strict", is_flag=True, help="Fail if lint finds anything.")
    solver: Path | None = option(
        "--solver",
        callback=lambda _, __, text: find_solver(text),
        metavar="EXE",
        help="Solve with this conda, mamba or micromamba.",
    )

    def as_lock_options(self) -> LockOptions:
        """Return what to lock with."""
        from envferry.lock.lock_options import LockOptions

        return LockOptions(
            platforms=self.platforms,
            channels=self.channels,
            solver=self.solver,
            relax=self.relax,
            updated=self.updated,
            upgrade=self.upgrade,
            exclude_newer=self.exclude_newer,
            offline=self.offline,
            dry_run=self.dry_run,
        )


@command(LockCommandOptions)
def lock(console: Console, options: LockCommandOptions) -> None:
    """Resolve each SPEC (a name in specs/, or a file) into its lock.

    Packages that are locked already keep their versions as far as the spec allows, unless
    `--update` or `--upgrade` is given.
    """
    specs = (*options.specs, *options.files)
    if options.check and not specs:
        specs = locked_specs(console)
    if not specs:
        message = "lock needs a SPEC: a name in specs/, or a file"
        raise UsageError(message, hint="run `envferry lock NAME` or `envferry lock -f FILE`")
    results = [lock_one(console, word, options) for word in specs]
    facts = [{**lock_facts(made), "changes": changes} for made, changes in results]
    if options.dry_run:
        console.preview(facts, lambda: [f"would lock {describe_lock(made)}" for made, _ in results])
    else:
        console.result(facts, lambda: [describe_lock(made) for made, _ in results])


def locked_specs(console: Console) -> tuple[str, ...]:
    """Return the specs in specs/ that have a lock; say which have none.

    Raises NotFound when none has: nothing would be checked, and a pipeline would go on.
    """
    from envferry.specs.spec_names import LOCK_ENDING, spec_names

    found = spec_names(SPECS_DIR)
    locked = [name for name in found if (SPECS_DIR / f"{name}{LOCK_ENDING}").is_file()]
    unlocked = [name for name in found if name not in locked]
    if unlocked and not locked:
        message = f"{SPECS_DIR}/ has no locks, only specs: {', '.join(unlocked)}"
        raise NotFound(message, hint=f"run `envferry lock {shlex.join(unlocked)}`")
    for name in unlocked:
        console.note(f"{name} has no lock: run `envferry lock {name}`")
    return tuple(locked)


def lock_one(
    console: Console, word: str, options: LockCommandOptions
) -> tuple[Lock, tuple[Change, ...]]:
    """Lock one spec, or with `--check` only read its lock; return it and what has changed."""
    from envferry.lock.existing_lock import check_lock
    from envferry.lock.stage import lock_spec
    from envferry.specs.lock_changes import compare_locks
    from envferry.specs.publishers import lock_warnings
    from envferry.specs.reading import find_spec, read_spec

    spec = read_spec(find_spec(word, SPECS_DIR))
    if options.check:
        lock = check_lock(spec)
        for warning in lock_warnings(lock):
            log.warning("%s", warning)
        return lock, ()
    refuse_findings(_warned(lint_one(spec.path, None)), strict=options.strict)
    # Read before it is written over.
    before = old_lock(spec.lock_path)
    made = lock_spec(spec, options=options.as_lock_options(), progress=console.progress)
    # Only the new lock knows the licences of what it names.
    if policy := settings().license_policy:
        licenses = (one for one in lint_one(spec.path, policy) if one.rule.code == "S115")
        refuse_findings(_warned(licenses), strict=options.strict)
    changes = compare_locks(before, made) if before else ()
    for change in changes:
        console.note(str(change))
    return made, changes


def _warned(findings: Iterable[LintFinding]) -> list[LintFinding]:
    """Log what lint found, and return it."""
    found = list(findings)
    for finding in found:
        log.warning("%s", finding)
    return found


def find_solver(text: str | None) -> Path | None:
    """Return the program that `--solver` means: a path, or a name on PATH."""
    from envferry.errors import NotFound
    from envferry.process import find_program

    found = find_program(text) if text else None
    if text and found is None:
        message = f"the program {text} was not found"
        raise NotFound(message, hint="leave out `--solver` to use envferry's own")
    return Path(found).absolute() if found else None


def lock_facts(lock: Lock) -> dict[str, object]:
    """Return what `lock --json` says of a lock."""
    return {
        "name": lock.name,
        "path": lock.path,
        "digest": lock.digest,
        "platforms": {
            platform: len(lock.for_platform(platform)) for platform in lock.content_hashes
        },
    }


def describe_lock(lock: Lock) -> str:
    """Return one line about a lock."""
    counts = []
    for platform in sorted(lock.content_hashes):
        packages = lock.for_platform(platform)
        conda = sum(package.manager == "conda" for package in packages)
        counts.append(f"{platform}: {conda} conda + {len(packages) - conda} pip packages")
    return f"{lock.path}  {'; '.join(counts)}"
