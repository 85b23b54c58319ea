"""The command build: a locked environment, made in a container."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.cli.shared.building import (
    BuildingOptions,
    build_spec,
    preview_line,
    preview_spec,
)
from envferry.cli.shared.command import argument, command, option
from envferry.cli.shared.completions import complete_specs
from envferry.cli.shared.shared_options import DryRunOptions

if TYPE_CHECKING:
    from envferry.cli.shared.console import Console


class BuildCommandOptions(DryRunOptions, BuildingOptions):
    """What to build, and how."""

    spec: str = argument(shell_complete=complete_specs)
    twice: bool = option(
        "--twice", is_flag=True, help="Build again under other conditions, and compare."
    )


@command(BuildCommandOptions)
def build(console: Console, options: BuildCommandOptions) -> None:
    """Build the locked environment of SPEC in a throwaway container without network."""
    if options.dry_run:
        found = preview_spec(options.spec, options)
        console.preview(found, lambda: [preview_line(found)])
        return
    built = build_spec(console, options.spec, options, twice=options.twice)
    lines = [f"{built.name}: built for {built.prefix} in {built.tree}"]
    if options.twice:
        lines.append("built twice: the same files, the same archive")
    console.result(built, lambda: lines)
