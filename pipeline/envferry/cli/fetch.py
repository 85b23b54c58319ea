"""The command fetch: bring an artifact to a directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from envferry.base.text import human_bytes
from envferry.cli.shared.command import argument, command, option
from envferry.cli.shared.completions import complete_refs
from envferry.cli.shared.shared_options import (
    DryRunOptions,
    IdentityOptions,
    PlatformOptions,
    RegistryOptions,
    SignatureOptions,
)
from envferry.models import Artifact
from envferry.names import Ref
from envferry.trust.host_keys import load_trust

if TYPE_CHECKING:
    from envferry.cli.shared.console import Console
    from envferry.registry import Registry


class FetchOptions(
    DryRunOptions, SignatureOptions, IdentityOptions, PlatformOptions, RegistryOptions
):
    """Which artifact to bring where."""

    ref: str = argument(shell_complete=complete_refs)
    output: Path = option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        default=Path(),
        show_default=True,
        help="The directory to write the artifact to.",
    )


@command(FetchOptions)
def fetch(console: Console, options: FetchOptions) -> None:
    """Download the artifact REF (NAME, NAME@TAG or NAME@ID) to a directory, verified.

    Carry the directory to a host without network and run `envferry install` on the archive there.
    """
    from envferry import api
    from envferry.registry.accepted_sources import open_trusting

    trust = load_trust(options.trusted_keys, require_signature=options.require_signature)
    trust = options.with_identity(trust)
    if options.dry_run:
        preview_fetch(console, options, open_trusting(options.registry, trust))
        return
    artifact = api.fetch(
        options.ref,
        options.output,
        registry=open_trusting(options.registry, trust),
        platform=options.platform,
        progress=console.progress,
    )
    facts = {"archive": artifact.archive_path, "id": artifact.manifest.id}
    console.result(facts, lambda: [str(artifact.archive_path)])


def preview_fetch(console: Console, options: FetchOptions, registry: Registry) -> None:
    """Print what a fetch would bring."""
    ref, platform = Ref.parse(options.ref), options.platform
    manifest = registry.manifest(ref.name, platform, registry.resolve(ref, platform))
    registry.require_archive(manifest)
    path, size = (
        Artifact(directory=options.output, manifest=manifest).archive_path,
        manifest.archive.size,
    )
    # A preview reads no archive, so the size has to do.
    is_there = path.is_file() and path.stat().st_size == size
    facts = {"archive": path, "id": manifest.id, "size": size, "present": is_there}
    line = f"{path}: would be fetched, {human_bytes(size)}"
    if is_there:
        line = f"{path} already present: would be verified"
    console.preview(facts, lambda: [line])
