"""The command `envferry changed`: which specs changed since a git revision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from envferry.cli.shared.command import CommandOptions, command, option
from envferry.cli.shared.terminal import table
from envferry.names import SPECS_DIR

if TYPE_CHECKING:
    from envferry.cli.shared.console import Console
    from envferry.specs.changed import ChangedSpec


class SinceOptions(CommandOptions):
    """Since when, and in which folder."""

    since: str = option(
        "--since", metavar="REV", required=True, help="The git revision to compare with."
    )
    specs_dir: Path = option(
        "--specs",
        type=click.Path(path_type=Path),
        metavar="DIR",
        default=SPECS_DIR,
        show_default=True,
        help="The folder of the specs.",
    )


class ChangedOptions(SinceOptions):
    """Since when, and for whom."""

    markdown: bool = option(
        "--markdown",
        is_flag=True,
        help="Print Markdown with the changes of each lock: for the summary of a CI job.",
    )


@command(ChangedOptions)
def changed(console: Console, options: ChangedOptions) -> None:
    """List the specs that changed since a git revision.

    A spec is added, changed, renamed or deleted. It also counts as changed when only its lock or a
    requirements file that it names changed. Uncommitted changes count, too.
    """
    from envferry.specs.changed import changed_specs

    found = changed_specs(options.specs_dir, options.since)
    if options.markdown:
        click.echo("\n".join(markdown_lines(found, options)))
        return
    console.result([changed_facts(item) for item in found], lambda: changed_lines(found, options))


def changed_facts(item: ChangedSpec) -> dict[str, object]:
    """Return what `--json` says of a changed spec."""
    facts: dict[str, object] = msgspec.to_builtins(item)
    return {**facts, "release": item.is_releasable}


def changed_lines(found: tuple[ChangedSpec, ...], options: SinceOptions) -> list[str]:
    """Return a table for people."""
    if not found:
        return [f"no spec in {options.specs_dir}/ changed since {options.since}"]
    rows = []
    for item in found:
        platforms = ", ".join(item.platforms) or "no lock"
        names = ", ".join(Path(file).name for file in item.files)
        rows.append((item.spec, item.state, item.was or "", names, platforms))
    return list(table(("SPEC", "STATE", "WAS", "CHANGED FILES", "PLATFORMS"), rows, right=()))


def markdown_lines(found: tuple[ChangedSpec, ...], options: SinceOptions) -> list[str]:
    """Return a section for each changed spec: what its lock has otherwise than before."""
    from envferry.cli.diff_locks import lock_at
    from envferry.errors import NotFound
    from envferry.specs.lock_changes import compare_locks, markdown_table

    if not found:
        return [f"No spec in `{options.specs_dir}/` changed since `{options.since}`."]
    lines = []
    for item in found:
        renamed = f", was `{item.was}`" if item.was else ""
        lines += [f"### `{item.spec}` ({item.state}{renamed})", ""]
        if item.state == "deleted":
            continue
        if not item.platforms:
            lines += ["It has no lock that can be read.", ""]
            continue
        try:
            # Under its earlier name: at that revision a renamed spec has its lock there.
            before = lock_at(f"{item.was or item.spec}@{options.since}")
        # It had no lock then: all packages are new.
        except NotFound:
            before = None
        changes = compare_locks(before, lock_at(lock_path(item.spec)))
        table = markdown_table(changes) if changes else ["No package changes."]
        lines += [*table, ""]
    return lines


def lock_path(spec: str) -> str:
    """Return the path of a spec's lock."""
    path = Path(spec)
    return str(path.with_name(f"{path.stem}.conda-lock.yml"))


def releasable(console: Console, specs_dir: Path, since: str) -> tuple[str, ...]:
    """Return the changed specs that a release is about: those that have, or had, a lock.

    Say which are left out, and whether there are none: who forgot a lock has to see it.
    """
    from envferry.specs.changed import changed_specs

    found = changed_specs(specs_dir, since)
    for item in found:
        if not item.is_releasable and item.state != "deleted":
            name = Path(item.spec).stem
            console.note(
                f"{item.spec} never had a lock: left out; `envferry lock {name}` makes one"
            )
    names = tuple(item.spec for item in found if item.is_releasable)
    if not names:
        console.note(f"no locked spec in {specs_dir}/ changed since {since}: nothing to release")
    return names
