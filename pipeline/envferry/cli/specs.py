"""Commands of specs and locks: import, lint, lock."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec.structs import replace

from envferry.cli.command import CommandOptions, argument, command, option
from envferry.cli.completing import complete_specs
from envferry.cli.shared_options import DryRunOptions, OfflineOptions
from envferry.errors import UsageError
from envferry.names import SPECS_DIR

if TYPE_CHECKING:
    from envferry.cli.console import Console
    from envferry.lock.lock_options import LockOptions
    from envferry.models import Lock
    from envferry.specs.drafts import RelaxLevel
    from envferry.specs.importing import Imported, ImportOptions
    from envferry.specs.linting import LintFinding
    from envferry.specs.lock_changes import Change

log = logging.getLogger(__name__)


class ImportCommandOptions(DryRunOptions):
    """What to make a spec of, and how."""

    source: Path = argument(type=click.Path(path_type=Path))
    name: str | None = option(
        "-n",
        "--name",
        metavar="NAME",
        help="The environment's name, and which one of a pixi.toml or pixi.lock; default: its own.",
    )
    channels: tuple[str, ...] = option(
        "-c",
        "--channel",
        multiple=True,
        metavar="CHANNEL",
        help="A channel, if SOURCE names none; repeatable.",
    )
    python: str | None = option(
        "--python", metavar="VERSION", help="The python version, if SOURCE names none."
    )
    relax: RelaxLevel | None = option(
        "--relax",
        type=click.Choice(["build", "patch", "all"]),
        help="Loosen every conda pin: drop its build, its patch version, or all of it.",
    )
    force: bool = option(
        "--force", "-y", "--yes", is_flag=True, help="Replace an existing spec that differs."
    )

    def as_import_options(self) -> ImportOptions:
        """Return what to import with."""
        from envferry.specs.importing import ImportOptions

        options = ImportOptions(
            name=self.name or None, python=self.python or None, relax=self.relax
        )
        return replace(options, channels=self.channels) if self.channels else options


class LintOptions(CommandOptions):
    """What to lint, and how strictly."""

    specs: tuple[str, ...] = argument(
        nargs=-1, required=True, metavar="SPEC...", shell_complete=complete_specs
    )
    online: bool = option(
        "--online", is_flag=True, help="Also check that the channels have every pin."
    )
    strict: bool = option("--strict", is_flag=True, help="Fail if anything is found.")


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


@command(ImportCommandOptions)
def import_command(console: Console, options: ImportCommandOptions) -> None:
    """Create specs/NAME.yml from SOURCE.

    SOURCE is an environment.yml (exported ones too), a pip requirements file, a list that conda or
    pip printed, a pixi.toml, a pyproject.toml, or the folder of an environment. Of a lock
    (conda-lock.yml, pixi.lock, uv.lock, pylock.toml, an @EXPLICIT list) and of a virtual
    environment it also creates specs/NAME.conda-lock.yml.
    """
    from envferry.base.files import write_bytes
    from envferry.specs.importing import import_spec

    wanted = options.as_import_options()
    imported = import_spec(options.source, SPECS_DIR, wanted)
    if not options.force:
        require_free(imported)
    if options.dry_run:
        preview_import(console, imported)
        return
    made: Lock | None = None
    reason = ""
    write_bytes(imported.spec.path, imported.text.encode())
    if imported.locks:
        imported, made, reason = lock_imported(console, imported, options.source, wanted)
    for note in imported.notes:
        console.note(note)
    facts = {
        **import_facts(imported),
        "lock": lock_facts(made) if made else None,
        "not_locked": reason,
    }
    lines = [import_line(imported), *([describe_lock(made)] if made else [])]
    console.result(facts, lambda: lines)


def require_free(imported: Imported) -> None:
    """Raise TargetOccupied where an import would replace a spec or a lock that differs."""
    from envferry.errors import TargetOccupied

    path, lock_path = imported.spec.path, imported.spec.lock_path
    hint = "replace it with `--force`, or choose another `--name`"
    if path.exists() and path.read_bytes() != imported.text.encode():
        msg = f"{path} already exists and differs"
        raise TargetOccupied(msg, hint=hint)
    if not path.exists() and lock_path.exists() and imported.locks:
        msg = f"{lock_path} already exists, without its spec"
        raise TargetOccupied(msg, hint=hint)


def preview_import(console: Console, imported: Imported) -> None:
    """Print which spec an import would write."""
    for note in imported.notes:
        console.note(note)
    lock_path = imported.spec.lock_path if imported.locks else None
    facts = {**import_facts(imported), "text": imported.text, "lock_path": lock_path}
    lines = [f"would write {import_line(imported)}"]
    if lock_path:
        lines.append(f"would write {lock_path}")
    console.preview(facts, lambda: lines)


def import_facts(imported: Imported) -> dict[str, object]:
    """Return what `import --json` says of a spec."""
    return {
        "path": imported.spec.path,
        "name": imported.spec.name,
        "kind": imported.kind.name.lower(),
        "conda": len(imported.spec.conda),
        "pip": len(imported.spec.pip),
        "notes": imported.notes,
    }


def import_line(imported: Imported) -> str:
    """Return one line about a spec that was imported."""
    spec = imported.spec
    counts = f"{len(spec.conda)} conda + {len(spec.pip)} pip lines"
    return f"{spec.path}  from {imported.kind.value}: {counts}"


def lock_imported(
    console: Console, imported: Imported, source: Path, options: ImportOptions
) -> tuple[Imported, Lock | None, str]:
    """Lock what was imported: as its source locked it, or anew for a virtual environment.

    Where a channel or an index is in the way, the spec stays and the reason is said. Where only
    the channel's python needs a newer glibc than usual, and this machine has it, the spec says so.
    """
    from envferry.base.files import write_bytes
    from envferry.errors import PipelineError
    from envferry.lock.adopting import lock_source, needed_glibc
    from envferry.specs.importing import import_spec

    try:
        made, notes = lock_source(imported, source.name, console.progress)
    except PipelineError as error:
        glibc = needed_glibc(error) if options.glibc is None else None
        if glibc:
            options = replace(options, glibc=glibc)
            imported = import_spec(source, SPECS_DIR, options)
            write_bytes(imported.spec.path, imported.text.encode())
            return lock_imported(console, imported, source, options)
        log.warning(
            "%s is not locked: %s (%s)", imported.spec.path, error.message, error.hint or "no hint"
        )
        return imported, None, error.message
    return replace(imported, notes=(*imported.notes, *notes)), made, ""


@command(LintOptions)
def lint(console: Console, options: LintOptions) -> None:
    """List what is dangerous in each SPEC, and how to fix it."""
    from envferry.specs.reading import find_spec

    found: list[LintFinding] = []
    for word in options.specs:
        path = find_spec(word, SPECS_DIR)
        found += lint_one(path, online=options.online)
    console.result([finding_facts(item) for item in found], lambda: [str(item) for item in found])
    refuse_findings(found, strict=options.strict)


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
    """Return the specs in specs/ that have a lock; say which have none."""
    from envferry.specs.spec_names import LOCK_ENDING, spec_names

    found = spec_names(SPECS_DIR)
    locked = [name for name in found if (SPECS_DIR / f"{name}{LOCK_ENDING}").is_file()]
    for name in found:
        if name not in locked:
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
    findings = lint_one(spec.path)
    for finding in findings:
        log.warning("%s", finding)
    refuse_findings(findings, strict=options.strict)
    before = old_lock(spec.lock_path)
    made = lock_spec(spec, options=options.as_lock_options(), progress=console.progress)
    changes = compare_locks(before, made) if before else ()
    for change in changes:
        console.note(str(change))
    return made, changes


def find_solver(text: str | None) -> Path | None:
    """Return the program that `--solver` means: a path, or a name on PATH."""
    from envferry.errors import NotFound
    from envferry.process import find_program

    found = find_program(text) if text else None
    if text and found is None:
        message = f"the program {text} was not found"
        raise NotFound(message, hint="leave out `--solver` to use envferry's own")
    return Path(found).absolute() if found else None


def lint_one(path: Path, *, online: bool = False) -> list[LintFinding]:
    """Lint one spec, with what its lock knows; refuse what `lock` cannot read, in its words."""
    from envferry.lock.match_specs import check_match_specs
    from envferry.lock.pypi_names import pypi_names
    from envferry.specs.linting import lint_spec
    from envferry.specs.reading import read_spec

    spec = read_spec(path)
    check_match_specs(spec)
    lock = old_lock(path.with_name(f"{path.stem}.conda-lock.yml"))
    gone: dict[str, str] = {}
    if online:
        from envferry.lock.channels import missing_pins

        gone = missing_pins(spec)
    return lint_spec(path, pypi_names, lock.packages if lock else (), gone)


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
