"""The command `init`: what a repository of specs begins with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from envferry.cli.shared.command import command, option
from envferry.cli.shared.shared_options import DryRunOptions
from envferry.specs.new_repository import (
    SERVICES,
    USUAL_PACKAGES,
    USUAL_SERVICE,
    NewRepository,
    Service,
    missing_files,
    not_ignored,
    starting_files,
    usual_name,
    write_start,
)

if TYPE_CHECKING:
    from envferry.cli.shared.console import Console


class InitOptions(DryRunOptions):
    """What the repository is to be for."""

    name: str | None = option(
        "-n", "--name", metavar="NAME", help="The environment's name; default: the folder's."
    )
    packages: tuple[str, ...] = option(
        "--package",
        multiple=True,
        metavar="PACKAGE",
        help="A package: numpy, python=3.12, or pip:torch==2.8.0 for a pip package; repeatable."
        f" Default: {' '.join(USUAL_PACKAGES)}.",
    )
    service: Service | None = option(
        "--ci", type=click.Choice(SERVICES), help="The CI service to write a file for."
    )
    yes: bool = option(
        "-y", "--yes", is_flag=True, help="Do not ask; without a terminal it never asks."
    )


@command(InitOptions)
def init(console: Console, options: InitOptions) -> None:
    """Start a repository of specs here: write specs/NAME.yml, a CI workflow and a .gitignore.

    Asks for the name, the packages and the CI service, unless options give them. Existing files
    are never overwritten: if one differs, nothing is written and the exit code is 10.
    """
    folder = Path()
    start = wanted_start(console, options, folder)
    files = starting_files(start)
    missing = missing_files(folder, files)
    for line in not_ignored(folder) if (folder / ".gitignore").exists() else ():
        console.note(f".gitignore exists and does not have `{line}`: add it")
    if options.dry_run:
        facts = {"name": start.name, "files": {str(path): files[path] for path in missing}}
        console.preview(facts, lambda: [f"would write {path}" for path in missing])
        return
    written = write_start(folder, files)
    for path in files:
        if path not in written:
            console.note(f"{path} already exists: left as it is")
    facts = {"name": start.name, "files": [str(path) for path in written]}
    lines = [*map(str, written), f"Next: envferry lock {start.name}"]
    console.result(facts, lambda: lines)


def wanted_start(console: Console, options: InitOptions, folder: Path) -> NewRepository:
    """Return what options say; ask for the rest where that is possible."""
    asks = console.can_ask() and not options.yes
    name, packages, service = options.name, options.packages, options.service
    if name is None:
        name = usual_name(folder)
        if asks:
            name = console.ask("What is the environment called?", name)
    if not packages:
        packages = USUAL_PACKAGES
        if asks:
            question = "Which packages? Separate them by spaces; pip:NAME is a pip package"
            packages = tuple(console.ask(question, " ".join(packages)).split())
    if service is None and asks:
        answer = console.ask("Which CI service releases it?", USUAL_SERVICE, SERVICES)
        service = next(one for one in SERVICES if one == answer)
    return NewRepository(name=name, packages=packages, service=service or USUAL_SERVICE)
