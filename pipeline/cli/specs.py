"""Commands of specs and locks: import, lint, lock, diff."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.options import common_options

if TYPE_CHECKING:
    from pipeline.cli.console import Console

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

    SOURCE is an environment.yml (exported ones too), a pip requirements file, an @EXPLICIT list,
    `conda list --export`, a pixi.toml, a pyproject.toml, or an environment's folder.
    """
    from pipeline.errors import TargetOccupied
    from pipeline.files import write_bytes
    from pipeline.specs.importing import ImportOptions, import_spec

    given = {key: value for key, value in choices.items() if value}
    imported = import_spec(source, SPECS_DIR, ImportOptions(**given))  # type: ignore[arg-type]
    path, data = imported.spec.path, imported.text.encode()
    if path.exists() and path.read_bytes() != data and not force:
        message = f"{path} is there already and differs"
        raise TargetOccupied(message, hint="give `--force` to replace it, or another `--name`")
    write_bytes(path, data)
    for note in imported.notes:
        console.note(note)
    facts = {
        "path": path,
        "name": imported.spec.name,
        "kind": imported.kind.name.lower(),
        "conda": len(imported.spec.conda),
        "pip": len(imported.spec.pip),
        "notes": imported.notes,
    }
    line = f"{path}  from {imported.kind.value}: {facts['conda']} conda + {facts['pip']} pip lines"
    console.result(facts, lambda: [line])
