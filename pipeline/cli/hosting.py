"""Commands of the training host: fetch, install."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.artifacts import ARCHIVE_SUFFIX, MANIFEST_SUFFIX, read_artifact
from pipeline.cli.options import common_options, registry_option
from pipeline.config import settings
from pipeline.files import human_bytes
from pipeline.models import Ref, current_platform
from pipeline.registry import PublishedArchive, Registry

if TYPE_CHECKING:
    from pipeline.cli.console import Console
    from pipeline.models import Installation
    from pipeline.stages.install import InstallOptions


@click.command()
@click.argument("ref")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path(), show_default=True,
    help="The directory that the artifact goes to.",
)  # fmt: skip
@click.option("--platform", default=current_platform, help="Another platform than this one.")
@registry_option
@common_options
def fetch(console: Console, ref: str, output: Path, platform: str, registry: str) -> None:
    """Bring the artifact REF (NAME, NAME@TAG or NAME@ID) to a directory, verified.

    Carry the directory to a host without network and `envferry install` the archive there.
    """
    from pipeline.stages.fetch import fetch_artifact

    output.mkdir(parents=True, exist_ok=True)
    artifact = fetch_artifact(
        Ref.parse(ref),
        registry=Registry.open(registry),
        directory=output,
        platform=platform,
        progress=console.progress,
    )
    facts = {"archive": artifact.archive_path, "id": artifact.manifest.id}
    console.result(facts, lambda: [str(artifact.archive_path)])


@click.command()
@click.argument("ref")
@click.option(
    "--envs-dir", type=click.Path(path_type=Path), default=lambda: settings().envs_dir,
    show_default="/opt/conda/envs", help="The directory that holds this host's environments.",
)  # fmt: skip
@click.option("--prefix", help="The path it shall live at, where that is not ENVS_DIR/NAME.")
@click.option("--name", help="Another name than the environment's own.")
@click.option("--replace", is_flag=True, help="Move aside what is there and is not ours.")
@click.option("--no-check", is_flag=True, help="Do not run the environment's checks.")
@registry_option
@common_options
def install(console: Console, ref: str, registry: str, no_check: bool, **choices: object) -> None:
    """Install REF, whole or not at all: NAME, NAME@TAG, NAME@ID, or an archive file.

    From outside a container into its volume, for the path inside it:
    `envferry install demo --envs-dir ./conda/envs --prefix /opt/conda/envs/demo`
    """
    from pipeline.stages.install import InstallOptions

    options = InstallOptions(check=not no_check, **choices)  # type: ignore[arg-type]
    if ref.endswith((ARCHIVE_SUFFIX, MANIFEST_SUFFIX)) or "/" in ref:
        installation = install_file(console, Path(ref), options)
    else:
        installation = install_ref(console, Ref.parse(ref), Registry.open(registry), options)
    console.result(installation, lambda: [describe_installation(installation, options)])


def install_file(console: Console, path: Path, options: InstallOptions) -> Installation:
    """Install an archive from a disk."""
    from pipeline.archive.reader import FileSource
    from pipeline.stages.install import install_artifact

    artifact = read_artifact(path)
    with FileSource(artifact.archive_path) as source:
        return install_artifact(
            source, artifact.manifest, options=options, progress=console.progress
        )


def install_ref(
    console: Console, ref: Ref, registry: Registry, options: InstallOptions
) -> Installation:
    """Install straight from a registry, without a copy of the archive."""
    from pipeline.stages.install import install_artifact

    platform = current_platform()
    manifest = registry.manifest(ref.name, platform, registry.resolve(ref, platform))
    registry.require_archive(manifest)
    source = PublishedArchive(registry, manifest)
    return install_artifact(source, manifest, options=options, progress=console.progress)


def describe_installation(installation: Installation, options: InstallOptions) -> str:
    """Return what to tell the operator."""
    place = options.envs_dir / installation.name
    text = f"{installation.name}@{installation.id} is installed: {place}"
    if installation.prefix != str(place.absolute()):
        text += f"\nfor the path {installation.prefix}"
    return f"{text}\n{installation.files} files, {human_bytes(installation.size)}"
