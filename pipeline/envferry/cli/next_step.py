"""What `envferry` alone says: the stages, and which one comes next here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.cli.shared.completions import installed_names
from envferry.cli.shared.terminal import own_name
from envferry.config import started_file
from envferry.specs.spec_names import LOCK_ENDING, spec_names

if TYPE_CHECKING:
    from pathlib import Path

STAGES = """\
envferry carries conda+pip training environments across an air gap.

  connected machine   lock, build, pack, push     (release does all four)
  training host       fetch, install              (no network needed)
"""


def welcome(folder: Path) -> str:
    """Return the stages, and the command that goes on from what is in a folder and on this host."""
    lines = [
        *STAGES.splitlines(),
        "",
        *next_steps(folder),
        "",
        f"All commands: {own_name()} --help",
    ]
    return "\n".join(lines)


def next_steps(folder: Path) -> list[str]:
    """Return the commands that make sense here."""
    directory = folder / "specs"
    # The one-file tool has no commands for build machines.
    specs = [] if started_file() else spec_names(directory)
    unlocked = [name for name in specs if not (directory / f"{name}{LOCK_ENDING}").is_file()]
    steps, name = [], own_name()
    if unlocked:
        steps.append(f"Next: {name} lock {unlocked[0]}")
    elif specs:
        steps.append(f"Next: {name} build {specs[0]}, or {name} release {specs[0]} --tag stable")
    installed = installed_names()
    if installed:
        steps.append(f"Installed on this host: {', '.join(installed)}; see {name} list")
    if steps:
        return steps
    installing = f"Next, on a training host: {name} install NAME@TAG --registry PLACE"
    if started_file():
        return [installing]
    return [
        f"Next, on a connected machine: {name} import FILE",
        "  FILE is an environment.yml, requirements, a lock, a pyproject.toml, a prefix or a venv",
        f"  or start from scratch: {name} init",
        installing,
    ]
