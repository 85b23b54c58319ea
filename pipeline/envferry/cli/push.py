"""The command push: archives go to a registry and get tags."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec.structs import replace

from envferry.base.text import human_bytes
from envferry.cli.shared.command import argument, command, option
from envferry.cli.shared.shared_options import (
    DryRunOptions,
    KeylessOptions,
    NewTagOptions,
    RegistryOptions,
    SignKeyOptions,
    TagExpiryOptions,
    TrustedKeyOptions,
)
from envferry.cli.shared.timed_stages import measured
from envferry.trust.host_keys import load_signer, load_trust

if TYPE_CHECKING:
    from envferry.cli.shared.console import Console
    from envferry.models import Artifact
    from envferry.registry import Registry
    from envferry.registry.push import PushedArtifact


class SigningOptions(
    SignKeyOptions, KeylessOptions, TagExpiryOptions, TrustedKeyOptions, RegistryOptions
):
    """For commands that publish, signed where there is a key."""

    layers: int = option(
        "--layers",
        type=click.IntRange(1, 100),
        default=1,
        show_default=True,
        metavar="N",
        help="For oci://: split the archive into N layers, which versions share.",
    )

    def open_registry(self) -> Registry:
        """Open the registry to push to, with the keys."""
        from envferry.registry import Registry

        trust = load_trust(self.trusted_keys, takes_in=False)
        signer = load_signer(self.sign_keys, self.tag_days)
        found = Registry.open(self.registry, signer=signer, trust=trust.if_any)
        return replace(found, layers=self.layers, keyless=self.keyless())


class PushOptions(DryRunOptions, NewTagOptions, SigningOptions):
    """What to push, where to."""

    archives: tuple[Path, ...] = argument(
        nargs=-1, required=True, type=click.Path(path_type=Path), metavar="ARCHIVE..."
    )
    base: str | None = option(
        "--base",
        metavar="IMAGE",
        help="For oci://: also make NAME:run.TAG, the environment on HOST/REPOSITORY:TAG.",
    )


@command(PushOptions)
def push(console: Console, options: PushOptions) -> None:
    """Send each ARCHIVE with its manifest to the registry; `latest` will point at it.

    With a key, the artifact and the tags are signed. To add a signature to an artifact that others
    signed, trust one of their keys.
    """
    from envferry.artifacts import read_artifact
    from envferry.registry.push import preview_push

    target = options.open_registry()
    artifacts = (read_artifact(path) for path in options.archives)
    if options.dry_run:
        found = [preview_push(one, registry=target, tags=options.tags) for one in artifacts]
        console.preview(found, lambda: [describe_push(one, is_done=False) for one in found])
        return
    push_each = push_on_base if options.base else push_one
    pushed = [push_each(console, artifact, target, options) for artifact in artifacts]
    console.result(pushed, lambda: [describe_push(item) for item in pushed])


def push_one(
    console: Console, artifact: Artifact, registry: Registry, options: NewTagOptions
) -> PushedArtifact:
    """Push an artifact."""
    from envferry import api

    with measured(console.progress, artifact.manifest.name) as progress:
        return api.push(artifact, registry=registry, tags=options.tags, progress=progress)


def push_on_base(
    console: Console, artifact: Artifact, registry: Registry, options: PushOptions
) -> PushedArtifact:
    """Push an artifact, and an image of it on top of a base that was found before."""
    from envferry.registry.runnable_image import find_base_image, publish_runnable

    base = find_base_image(registry, artifact.manifest, options.base or "")
    pushed = push_one(console, artifact, registry, options)
    images = publish_runnable(artifact, base, pushed.tags, console.progress)
    console.note(f"runs as it is: {', '.join(images)}")
    return pushed


def describe_push(pushed: PushedArtifact, *, is_done: bool = True) -> str:
    """Return one line about a push that is done, or would be."""
    verb = "sent" if is_done else "would be sent"
    how = f"{human_bytes(pushed.size)} {verb}" if pushed.uploaded else "already present"
    return f"{pushed.name}@{pushed.id} in {pushed.registry}: {how}, tags: {', '.join(pushed.tags)}"
