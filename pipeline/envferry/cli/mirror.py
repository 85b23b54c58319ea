"""The command mirror: copy what one registry lacks from another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from envferry.base.text import human_bytes, plural
from envferry.cli.shared.command import argument, command, option
from envferry.cli.shared.copied_tags import journals, require_no_conflict, tag_lines
from envferry.cli.shared.shared_options import (
    ChosenTagOptions,
    DryRunOptions,
    IdentityOptions,
    SignatureOptions,
)
from envferry.errors import IntegrityError
from envferry.registry import Registry
from envferry.registry.accepted_sources import open_trusting
from envferry.trust.host_keys import load_trust

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.cli.shared.console import Console
    from envferry.transfer.mirror import Mirrored, MirrorRequest


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
        # After the preview, as a mirror copies all else before it fails.
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
