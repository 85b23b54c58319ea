"""The command apply: what an exported folder brings becomes part of a registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from envferry.base.text import plural
from envferry.cli.shared.command import argument, command
from envferry.cli.shared.copied_tags import journals, require_no_conflict, tag_lines
from envferry.cli.shared.shared_options import (
    DryRunOptions,
    IdentityOptions,
    RegistryOptions,
    SignatureOptions,
)
from envferry.errors import IntegrityError, NotFound
from envferry.registry import Registry
from envferry.registry.accepted_sources import open_trusting
from envferry.trust.host_keys import load_trust

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.cli.shared.console import Console
    from envferry.transfer.apply import Applied


class ApplyOptions(DryRunOptions, SignatureOptions, IdentityOptions, RegistryOptions):
    """What to apply, where to."""

    directory: Path = argument(metavar="DIR", type=click.Path(path_type=Path))


@command(ApplyOptions)
def apply(console: Console, options: ApplyOptions) -> None:
    """Add what the folder DIR carries to the registry: whole artifacts and deltas.

    A delta is completed from what the registry has to the whole archive, byte for byte, so its
    signature stays valid. Tags never move back. What is damaged is named, with exit code 8, after
    everything else was added. Run it again if it was interrupted.
    """
    from envferry.transfer.apply import apply_folder, preview_apply

    directory = options.directory
    if not directory.is_dir():
        fault, hint = "does not exist", "is the disk mounted?"
        if directory.exists():
            fault, hint = "is a file", "name the folder that `envferry export` wrote"
        msg = f"the folder {directory} {fault}"
        raise NotFound(msg, hint=hint)
    trust = load_trust(options.trusted_keys, require_signature=options.require_signature)
    trust = options.with_identity(trust)
    source, site = open_trusting(str(directory), trust), Registry.open(options.registry)
    if options.dry_run:
        found = preview_apply(source, site)
        console.preview(found, lambda: apply_lines(found, is_preview=True))
    else:
        found = apply_folder(source, site, journals=journals(), progress=console.progress)
        console.result(found, lambda: apply_lines(found))
    require_no_conflict(found.tags, found.target)
    require_applied(found, directory)


def require_applied(found: Applied, directory: Path) -> None:
    """Raise IntegrityError where a folder holds older tags than the site, or is not complete."""
    older = [f"{tag} (at {tag.id})" for tag in found.tags if tag.outcome == "newer"]
    if older:
        message = f"{', '.join(older)} in {found.target} is newer than in {directory}"
        hint = "everything else was applied; to go back on purpose: `envferry tag NAME@ID TAG`"
        raise IntegrityError(message, hint=hint)
    if found.unfinished or not (found.rebuilt or found.copied or found.present):
        message = f"the export in {directory} is not complete"
        if found.unfinished:
            message += f": {', '.join(found.unfinished[:5])} missing"
        hint = "complete it with `envferry export` where it was made, then apply again"
        raise IntegrityError(message, hint=hint)


def apply_lines(found: Applied, *, is_preview: bool = False) -> Iterator[str]:
    """Yield what was added to the registry, or would be."""
    rebuilt, copied, added = "rebuilt", "copied", "added"
    if is_preview:
        rebuilt, copied, added = "would rebuild", "would copy", "to add"
    yield from (f"{rebuilt}  {stem}" for stem in found.rebuilt)
    yield from (f"{copied}  {stem}" for stem in found.copied)
    if not is_preview:
        yield from tag_lines(found.tags)
    fresh = plural(len(found.rebuilt) + len(found.copied), "artifact")
    yield f"{found.target}: {fresh} {added}, {found.present} already present"
