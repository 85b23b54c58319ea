"""Commands that carry registries: apply, mirror."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from envferry.base.text import human_bytes, plural
from envferry.cli.shared.command import argument, command, option
from envferry.cli.shared.shared_options import (
    ChosenTagOptions,
    DryRunOptions,
    IdentityOptions,
    RegistryOptions,
    SignatureOptions,
)
from envferry.config import settings
from envferry.errors import IntegrityError, NotFound
from envferry.registry import Registry
from envferry.registry.accepted_sources import open_trusting
from envferry.trust.host_keys import load_trust

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from envferry.cli.shared.console import Console
    from envferry.transfer.apply import Applied
    from envferry.transfer.mirror import Mirrored, MirrorRequest
    from envferry.transfer.tag_copy import TransferredTag


def journals() -> Path:
    """Return where interrupted uploads are noted."""
    return settings().cache_dir / "uploads"


class ApplyOptions(DryRunOptions, SignatureOptions, IdentityOptions, RegistryOptions):
    """What to apply, where to."""

    directory: Path = argument(metavar="DIR", type=click.Path(path_type=Path))


class MirrorOptions(DryRunOptions, SignatureOptions, IdentityOptions, ChosenTagOptions):
    """What to mirror, where to."""

    source: str = argument(metavar="SRC")
    target: str = argument(metavar="DST")
    names: tuple[str, ...] = argument(metavar="[NAME]...", nargs=-1)
    keep: int | None = option(
        "--keep",
        type=click.IntRange(min=1),
        metavar="N",
        help="Only the N newest versions of each environment, and tagged ones.",
    )
    platform: str | None = option(
        "--platform", metavar="PLATFORM", help="Only this platform; default: all."
    )

    def request(self) -> MirrorRequest:
        """Return what is to be mirrored."""
        from envferry.transfer.mirror import MirrorRequest

        return MirrorRequest(
            names=self.names, tags=self.tags, keep=self.keep, platform=self.platform
        )


@command(ApplyOptions)
def apply(console: Console, options: ApplyOptions) -> None:
    """Add what the folder DIR carries to the registry: whole artifacts and deltas.

    A delta and what the registry has become the whole archive, byte for byte, so its signature
    stays valid. Tags never move back. What is damaged is named, with exit code 8, after everything
    else was added. Run it again if it was interrupted.
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
        console.preview(found, lambda: apply_preview_lines(found))
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


@command(MirrorOptions)
def mirror(console: Console, options: MirrorOptions) -> None:
    """Copy to the registry DST what it lacks of the registry SRC, or of its environments NAME.

    Each is a directory (an OCI image layout, too), s3://bucket/prefix, oci://host/repository or, to
    read from, https://…. Every byte is compared with its manifest on the way; an interrupted copy
    resumes where it stopped. Tags come last and never move back. Nothing is removed from DST:
    `envferry prune` does that.
    """
    from envferry.transfer.mirror import mirror_registry, plan_mirror

    trust = load_trust(options.trusted_keys, require_signature=options.require_signature)
    trust = options.with_identity(trust)
    request = options.request()
    there, here = open_trusting(options.source, trust), Registry.open(options.target)
    if options.dry_run:
        plan = plan_mirror(there, here, request)
        found = plan.report()
        console.preview(found, lambda: mirror_lines(found, dry_run=True))
        plan.require_sound()
    else:
        found = mirror_registry(
            there, here, request, journals=journals(), progress=console.progress
        )
        console.result(found, lambda: mirror_lines(found, dry_run=False))
    require_no_conflict(found.tags, found.target)
    if found.dangling:
        message = f"{', '.join(found.dangling[:5])} in {found.source}: not published there"
        hint = f"everything else was copied; run `envferry check --registry {found.source}`"
        raise IntegrityError(message, hint=hint)


def apply_lines(found: Applied) -> Iterator[str]:
    """Yield what was added to the registry."""
    for stem in found.rebuilt:
        yield f"rebuilt  {stem}"
    for stem in found.copied:
        yield f"copied  {stem}"
    yield from tag_lines(found.tags)
    fresh = len(found.rebuilt) + len(found.copied)
    yield f"{found.target}: {plural(fresh, 'artifact')} added, {found.present} already present"


def apply_preview_lines(found: Applied) -> Iterator[str]:
    """Yield what would be added to the registry."""
    for stem in found.rebuilt:
        yield f"would rebuild  {stem}"
    for stem in found.copied:
        yield f"would copy  {stem}"
    fresh = plural(len(found.rebuilt) + len(found.copied), "artifact")
    yield f"{found.target}: {fresh} to add, {found.present} already present"


def mirror_lines(found: Mirrored, *, dry_run: bool) -> Iterator[str]:
    """Yield what was copied."""
    word = "to copy" if dry_run else "copied"
    for stem in found.copied:
        yield f"{word}  {stem}"
    yield from tag_lines(found.tags)
    yield (
        f"{found.target}: {plural(len(found.copied), 'artifact')} {word}"
        f" ({human_bytes(found.copied_bytes)}), {found.present} already present"
    )


def tag_lines(tags: Iterable[TransferredTag]) -> Iterator[str]:
    """Yield what became of tags, those that were right already left out."""
    for tag in tags:
        if tag.outcome == "moved":
            yield f"{tag} is now {tag.id}"
        elif tag.outcome == "newer":
            yield f"{tag} stays at {tag.id}: the target's is newer"


def require_no_conflict(tags: Iterable[TransferredTag], url: str) -> None:
    """Raise IntegrityError when tags point elsewhere in the target after as many moves."""
    found = [f"{tag} ({tag.platform}) at {tag.id}" for tag in tags if tag.outcome == "conflict"]
    if found:
        message = f"{', '.join(found)} in {url} was moved there independently: left unchanged"
        hint = "choose with `envferry tag NAME@ID TAG` in one of the two registries"
        raise IntegrityError(message, hint=hint)
