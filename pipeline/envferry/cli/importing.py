"""The command import: a spec, and perhaps a lock, of files that other tools wrote."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec.structs import replace

from envferry.cli.lock import describe_lock, lock_facts
from envferry.cli.shared.command import argument, command, option
from envferry.cli.shared.shared_options import DryRunOptions
from envferry.names import SPECS_DIR

if TYPE_CHECKING:
    from envferry.cli.shared.console import Console
    from envferry.models import Lock
    from envferry.specs.drafts import RelaxLevel
    from envferry.specs.importing.conversion import Imported, ImportOptions

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
        from envferry.specs.importing.conversion import ImportOptions

        options = ImportOptions(
            name=self.name or None, python=self.python or None, relax=self.relax
        )
        return replace(options, channels=self.channels) if self.channels else options


@command(ImportCommandOptions)
def import_command(console: Console, options: ImportCommandOptions) -> None:
    """Create specs/NAME.yml from SOURCE.

    SOURCE is an environment.yml (exported ones too), a pip requirements file, a list that conda or
    pip printed, a pixi.toml, a pyproject.toml, or the folder of an environment. Of a lock
    (conda-lock.yml, pixi.lock, uv.lock, pylock.toml, an @EXPLICIT list) and of a virtual
    environment it also creates specs/NAME.conda-lock.yml.
    """
    from envferry.base.files import write_bytes
    from envferry.specs.importing.conversion import import_spec

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
        # After the spec is written: it stays where it cannot be locked.
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
    """Lock what was imported: as its source locked it, or solved for a virtual environment.

    Where a channel or an index is in the way, the spec stays and the reason is said. Where only
    the channel's python needs a newer glibc than usual, and this machine has it, the spec says so.
    """
    from envferry.base.files import write_bytes
    from envferry.errors import PipelineError
    from envferry.lock.lock_import import lock_source, needed_glibc
    from envferry.specs.importing.conversion import import_spec

    try:
        made, notes = lock_source(imported, source.name, console.progress)
    except PipelineError as error:
        # Once only: what fails with a glibc that is set is reported.
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
