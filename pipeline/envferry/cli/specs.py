"""Commands of specs and locks: import, lint, lock; and the comparison of two locks."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from envferry.cli.options import common_options

if TYPE_CHECKING:
    from envferry.cli.console import Console
    from envferry.models import Lock
    from envferry.specs.importing import Imported, ImportOptions
    from envferry.specs.linting import Finding
    from envferry.specs.lock_changes import Change

log = logging.getLogger(__name__)

SPECS_DIR = Path("specs")


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--name", help="The environment's name; else the file's own.", metavar="NAME")
@click.option("--channel", "channels", multiple=True, help="Where the file names none; repeatable.")
@click.option("--python", help="The python version, where the file names none.", metavar="VERSION")
@click.option(
    "--relax", type=click.Choice(["build", "patch", "all"]),
    help="Loosen every conda pin: drop its build, its patch version, or all of it.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a spec that is there already.")
@common_options
def import_command(console: Console, source: Path, force: bool, **choices: object) -> None:
    """Make specs/NAME.yml out of SOURCE, whatever it is.

    SOURCE is an environment.yml (exported ones too), a pip requirements file, a list that conda or
    pip printed, a pixi.toml, a pyproject.toml, or the folder of an environment. Of a lock
    (conda-lock.yml, pixi.lock, uv.lock, pylock.toml, an @EXPLICIT list) and of a virtual
    environment it also makes specs/NAME.conda-lock.yml.
    """
    from envferry.base.files import write_bytes
    from envferry.errors import TargetOccupied
    from envferry.specs.importing import ImportOptions, import_spec

    given = {key: value for key, value in choices.items() if value}
    options = ImportOptions(**given)  # type: ignore[arg-type]
    imported = import_spec(source, SPECS_DIR, options)
    path, lock_path = imported.spec.path, imported.spec.lock_path
    if path.exists() and path.read_bytes() != imported.text.encode() and not force:
        message = f"{path} is there already and differs"
        raise TargetOccupied(message, hint="give `--force` to replace it, or another `--name`")
    if not path.exists() and lock_path.exists() and imported.locks and not force:
        message = f"{lock_path} is there already, and its spec is not"
        raise TargetOccupied(message, hint="give `--force` to replace it, or another `--name`")
    made: Lock | None = None
    reason = ""
    write_bytes(path, imported.text.encode())
    if imported.locks:
        imported, made, reason = lock_imported(console, imported, source, options)
    for note in imported.notes:
        console.note(note)
    facts = {
        "path": path,
        "name": imported.spec.name,
        "kind": imported.kind.name.lower(),
        "conda": len(imported.spec.conda),
        "pip": len(imported.spec.pip),
        "notes": imported.notes,
        "lock": lock_facts(made) if made else None,
        "not_locked": reason,
    }
    lines = [
        f"{path}  from {imported.kind.value}: {facts['conda']} conda + {facts['pip']} pip lines",
        *([describe_lock(made)] if made else []),
    ]
    console.result(facts, lambda: lines)


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


@click.command()
@click.argument("specs", nargs=-1, required=True, metavar="SPEC...")
@click.option("--online", is_flag=True, help="Also ask the channels whether every pin is there.")
@click.option("--strict", is_flag=True, help="Fail when anything is found.")
@common_options
def lint(console: Console, specs: tuple[str, ...], online: bool, strict: bool) -> None:
    """Say what is dangerous in each SPEC, and how to mend it."""
    from envferry.specs.reading import find_spec

    found: list[Finding] = []
    for argument in specs:
        path = find_spec(argument, SPECS_DIR)
        found += lint_one(path, online=online)
    console.result([finding_facts(item) for item in found], lambda: [str(item) for item in found])
    refuse_findings(found, strict=strict)


@click.command()
@click.argument("specs", nargs=-1, required=True, metavar="SPEC...")
@click.option("--platform", "platforms", multiple=True, help="Lock for this one; repeatable.")
@click.option("--channel", "channels", multiple=True, help="Use instead of the spec's; repeatable.")
@click.option("--check", is_flag=True, help="Only say whether the lock is up to date.")
@click.option(
    "--update", "updated", multiple=True, metavar="PKG",
    help="Move this package and nothing else; repeatable.",
)  # fmt: skip
@click.option("--upgrade", is_flag=True, help="Move everything to the newest there is.")
@click.option(
    "--exclude-newer", metavar="DATE", help="As if nothing had been published since then."
)
@click.option("--strict", is_flag=True, help="Fail when lint finds anything.")
@click.option(
    "--solver", callback=lambda _, __, text: find_solver(text), metavar="EXE",
    help="A conda, mamba or micromamba to solve with.",
)  # fmt: skip
@click.option(
    "--relax", type=click.Choice(["build", "patch", "all"]),
    help="Loosen pins that no channel can satisfy: their build, patch version, or all.",
)  # fmt: skip
@common_options
def lock(
    console: Console, specs: tuple[str, ...], check: bool, strict: bool, **choices: object
) -> None:
    """Resolve each SPEC (a name in specs/, or a file) into its lock.

    What a lock has already stays where the spec allows it, unless `--update` or `--upgrade` says
    otherwise.
    """
    from envferry.lock.existing_lock import check_lock
    from envferry.lock.options import LockOptions
    from envferry.lock.stage import lock_spec
    from envferry.specs.lock_changes import compare_locks
    from envferry.specs.reading import find_spec, read_spec

    options = LockOptions(**choices)  # type: ignore[arg-type]
    results: list[tuple[Lock, tuple[Change, ...]]] = []
    for argument in specs:
        spec = read_spec(find_spec(argument, SPECS_DIR))
        if check:
            results.append((check_lock(spec), ()))
            continue
        findings = lint_one(spec.path)
        for finding in findings:
            log.warning("%s", finding)
        refuse_findings(findings, strict=strict)
        before = old_lock(spec.lock_path)
        made = lock_spec(spec, options=options, progress=console.progress)
        changes = compare_locks(before, made) if before else ()
        for change in changes:
            console.note(str(change))
        results.append((made, changes))
    console.result(
        [{**lock_facts(made), "changes": changes} for made, changes in results],
        lambda: [describe_lock(made) for made, _ in results],
    )


def find_solver(text: str | None) -> Path | None:
    """Return the program that `--solver` means: a path, or a name on PATH."""
    from envferry.errors import NotFound
    from envferry.process import find_program

    found = find_program(text) if text else None
    if text and found is None:
        message = f"there is no program {text}"
        raise NotFound(message, hint="leave out `--solver`: envferry has one of its own")
    return Path(found).absolute() if found else None


def lint_one(path: Path, *, online: bool = False) -> list[Finding]:
    """Lint one spec, with what its lock knows; refuse what `lock` cannot read, in its words."""
    from envferry.lock.conda_half import pypi_name
    from envferry.lock.match_specs import check_match_specs
    from envferry.specs.linting import lint_spec
    from envferry.specs.reading import read_spec

    spec = read_spec(path)
    check_match_specs(spec)
    lock = old_lock(path.with_name(f"{path.stem}.conda-lock.yml"))
    gone: dict[str, str] = {}
    if online:
        from envferry.lock.channels import missing_pins

        gone = missing_pins(spec)
    return lint_spec(path, pypi_name, lock.packages if lock else (), gone)


def refuse_findings(found: list[Finding], *, strict: bool) -> None:
    """Fail for findings where that was asked for."""
    from envferry.errors import SpecError

    if strict and found:
        message = f"lint found {len(found)} problem{'s' if len(found) > 1 else ''}"
        raise SpecError(message, hint="mend them, or leave out `--strict`")


def old_lock(path: Path) -> Lock | None:
    """Return the lock that is there, if one is and can be read."""
    from envferry.errors import NotFound, SpecError
    from envferry.specs.locks import read_lock

    try:
        return read_lock(path)
    except (NotFound, SpecError):
        return None


def finding_facts(finding: Finding) -> dict[str, object]:
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


def lock_at(argument: str) -> Lock:
    """Return the lock that `SPEC`, `SPEC@REVISION`, or a lock's own path means."""
    from envferry.config import child_environ
    from envferry.errors import NotFound
    from envferry.process import run
    from envferry.specs.locks import parse_lock, read_lock
    from envferry.specs.reading import find_spec

    name, at, revision = argument.rpartition("@")
    target = name if at else argument
    is_lock = target.endswith(".conda-lock.yml")
    spec = Path(target) if is_lock or at else find_spec(target, SPECS_DIR)
    if at and spec.suffix not in (".yml", ".yaml"):
        spec = SPECS_DIR / f"{target}.yml"
    path = spec if is_lock else spec.with_name(f"{spec.stem}.conda-lock.yml")
    if not at:
        return read_lock(path)
    place = f"./{path}" if not path.is_absolute() else path.name
    folder = path.parent if path.is_absolute() else Path()
    words: list[str | Path] = ["git", "-C", folder, "show", f"{revision}:{place}"]
    finished = run(words, env=child_environ(), check=False)
    if finished.returncode != 0:
        reason = (finished.stderr.strip().splitlines() or ["git said nothing"])[-1]
        message = f"there is no {path} at {revision}: {reason.removeprefix('fatal: ')}"
        raise NotFound(message, hint="name a commit, branch or tag that has it")
    return parse_lock(finished.stdout, path)


def compare(console: Console, before: str, after: str) -> None:
    """Print what the lock of `after` has otherwise than that of `before`."""
    from envferry.specs.lock_changes import compare_locks

    changes = compare_locks(lock_at(before), lock_at(after))
    console.result(changes, lambda: [str(change) for change in changes])
