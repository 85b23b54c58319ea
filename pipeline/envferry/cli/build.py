"""Commands of the build machine: build, pack, push."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click
import msgspec
from msgspec.structs import replace

from envferry.base.text import human_bytes
from envferry.cli.shared.building import (
    BuildingOptions,
    PackedOptions,
    build_spec,
    preview_line,
    preview_spec,
)
from envferry.cli.shared.command import argument, command, option
from envferry.cli.shared.completions import complete_specs
from envferry.cli.shared.shared_options import (
    DryRunOptions,
    KeylessOptions,
    NewTagOptions,
    RegistryOptions,
    SignKeyOptions,
    TagExpiryOptions,
    ThreadOptions,
    TrustedKeyOptions,
)
from envferry.cli.shared.timed_stages import measured
from envferry.config import settings
from envferry.trust.host_keys import load_signer, load_trust

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.archive.frame_reuse import FrameReuse
    from envferry.cli.shared.console import Console
    from envferry.models import Artifact, BuiltEnv
    from envferry.registry import Registry
    from envferry.registry.push import PushedArtifact


class BuildCommandOptions(DryRunOptions, BuildingOptions):
    """What to build, and how."""

    spec: str = argument(shell_complete=complete_specs)
    twice: bool = option(
        "--twice", is_flag=True, help="Build again under other conditions, and compare."
    )


class PackCommandOptions(DryRunOptions, ThreadOptions, PackedOptions):
    """What to pack, and how."""

    source: str = argument(metavar="NAME|PREFIX")
    prefix: str | None = option(
        "-p",
        "--prefix",
        metavar="PATH",
        help="With a PREFIX: the path it was made for, if different.",
    )
    name: str | None = option(
        "-n", "--name", metavar="NAME", help="With a PREFIX: the name of the environment."
    )
    reuse: Path | None = option(
        "--reuse",
        type=click.Path(path_type=Path),
        metavar="ARCHIVE",
        help="Take the frames of unchanged packages from this archive; default: the newest one of"
        " the environment that is found.",
    )


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


@command(PackCommandOptions)
def pack(console: Console, options: PackCommandOptions) -> None:
    """Pack the built environment NAME, or a folder, into one archive.

    The folder is a conda environment, or a virtual environment (venv, virtualenv, uv), which is
    carried with its interpreter and standard library.
    """
    with environment_at(console, options) as built:
        if options.dry_run:
            target = options.output / f"{built.name}-{built.platform}-ID.tar.zst"
            facts = {"name": built.name, "platform": built.platform, "tree": built.tree}
            line = f"{built.tree} would be packed into {target}"
            console.preview({**facts, "archive": target}, lambda: [line])
            return
        artifact, taken = pack_built(
            console, built, options, PackSettings(threads=options.threads, reuse=options.reuse)
        )
    packed: dict[str, object] = {**artifact_facts(artifact), "reused": taken}
    console.result(packed, lambda: [str(artifact.archive_path)])


@contextmanager
def environment_at(console: Console, options: PackCommandOptions) -> Iterator[BuiltEnv]:
    """Yield what `pack` is told to pack; a preview leaves nothing in the cache."""
    from envferry.build.finished_builds import read_build
    from envferry.pack.existing_env import describe_env, is_venv
    from envferry.specs.spec_names import SPEC_ENDINGS

    folder = Path(options.source)
    is_spec = folder.suffix in SPEC_ENDINGS
    is_folder = not is_spec and ("/" in options.source or is_venv(folder))
    with TemporaryDirectory() as scratch:
        work_dir = Path(scratch) if options.dry_run else settings().cache_dir / "found"
        if is_folder and is_venv(folder):
            from envferry.channel.virtual_env import VirtualEnv, venv_with_interpreter

            source = VirtualEnv(folder, options.prefix, options.name)
            with venv_with_interpreter(
                source, work_dir=work_dir, progress=console.progress
            ) as built:
                yield built
        elif is_folder:
            yield describe_env(folder, prefix=options.prefix, name=options.name, lock_dir=work_dir)
        else:
            # An environment may be called `torch-2.8`: only the suffix of a spec is cut off.
            name = folder.stem if is_spec else options.source
            yield read_build(name, settings().cache_dir / "builds")


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


class PackSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How an archive is packed, and not what is in it."""

    threads: int = 0
    """0: as many as there are cores."""
    reuse: Path | None = None
    """The archive to take frames from; None: the newest one that is found."""
    registry: str = msgspec.field(default_factory=lambda: settings().registry)
    """Where one may be found, if this is a directory."""


def pack_built(
    console: Console, built: BuiltEnv, packed: PackedOptions, ways: PackSettings
) -> tuple[Artifact, FrameReuse]:
    """Pack a built environment, and say what did not have to be compressed again."""
    from envferry import api
    from envferry.pack.stage import pack_env

    said: list[FrameReuse] = []
    options = api.PackOptions(
        output_dir=packed.output,
        level=packed.level,
        threads=ways.threads,
        notes_dir=settings().cache_dir / "packs",
        reuse=ways.reuse,
        reuse_from=published_folders(ways.registry, built),
    )
    with measured(console.progress, built.name) as progress:
        artifact = pack_env(built, options=options, progress=progress, announce=said.append)
    (taken,) = said
    if taken.frames:
        size, whole = human_bytes(taken.size), human_bytes(artifact.manifest.archive.size)
        console.note(f"{size} of {whole} are taken from {taken.archive}, unchanged")
    return artifact, taken


def published_folders(url: str, built: BuiltEnv) -> tuple[Path, ...]:
    """Return the folders of an environment in a registry that is a directory, the newest first."""
    from envferry.registry.layout import ENVS

    if "://" in url:
        return ()
    found = Path(url, ENVS, built.name, built.platform).glob("*")
    return tuple(sorted(found, key=lambda folder: folder.stat().st_mtime_ns, reverse=True))


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


def artifact_facts(artifact: Artifact) -> dict[str, object]:
    """Return what `pack --json` says of an artifact."""
    return {
        "archive": artifact.archive_path,
        "manifest": artifact.manifest_path,
        "id": artifact.manifest.id,
        "size": artifact.manifest.archive.size,
        "tar_size": artifact.manifest.archive.tar_size,
    }


def describe_push(pushed: PushedArtifact, *, is_done: bool = True) -> str:
    """Return one line about a push that is done, or would be."""
    verb = "sent" if is_done else "would be sent"
    how = f"{human_bytes(pushed.size)} {verb}" if pushed.uploaded else "already present"
    return f"{pushed.name}@{pushed.id} in {pushed.registry}: {how}, tags: {', '.join(pushed.tags)}"
