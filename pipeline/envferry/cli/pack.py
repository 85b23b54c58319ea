"""The command pack: a built environment becomes one archive."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click
import msgspec

from envferry.base.text import human_bytes
from envferry.cli.shared.building import PackedOptions
from envferry.cli.shared.command import argument, command, option
from envferry.cli.shared.shared_options import DryRunOptions, ThreadOptions
from envferry.cli.shared.timed_stages import measured
from envferry.config import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envferry.archive.frame_reuse import FrameReuse
    from envferry.archive.reader import Source
    from envferry.cli.shared.console import Console
    from envferry.models import Artifact, BuiltEnv


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
    reread: bool = option(
        "--reread",
        is_flag=True,
        help="Read every file, even if nothing was written to it since the pack before.",
    )


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
        ways = PackSettings(threads=options.threads, reuse=options.reuse, rereads=options.reread)
        artifact, taken = pack_built(console, built, options, ways)
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
    # Without a slash it is the name of a build, unless a virtual environment lies here.
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


class PackSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How an archive is packed, and not what is in it."""

    threads: int = 0
    """0: as many as there are cores."""
    reuse: Path | None = None
    """The archive to take frames from; None: the newest one that is found."""
    rereads: bool = False
    """Whether every file is read."""
    registry: str = msgspec.field(default_factory=lambda: settings().registry)
    """Where it is to go: earlier ones may be found there, if this is a directory."""
    published: Callable[[], Source | None] = lambda: None
    """Opens what the registry has of the environment, if that is to be asked."""


def pack_built(
    console: Console, built: BuiltEnv, packed: PackedOptions, ways: PackSettings
) -> tuple[Artifact, FrameReuse]:
    """Pack a built environment, and say what did not have to be compressed again."""
    from envferry import api
    from envferry.pack.stage import pack_env
    from envferry.stores.opening import holds_images

    said: list[FrameReuse] = []
    options = api.PackOptions(
        output_dir=packed.output,
        level=packed.level,
        threads=ways.threads,
        image_digest=holds_images(ways.registry),
        notes_dir=settings().cache_dir / "packs",
        reuse=ways.reuse,
        rereads=ways.rereads,
        reuse_from=published_folders(ways.registry, built),
        published=ways.published,
    )
    with measured(console.progress, built.name) as progress:
        artifact = pack_env(built, options=options, progress=progress, announce=said.append)
    # `pack_env` announces once, also when nothing is reused.
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


def artifact_facts(artifact: Artifact) -> dict[str, object]:
    """Return what `pack --json` says of an artifact."""
    return {
        "archive": artifact.archive_path,
        "manifest": artifact.manifest_path,
        "id": artifact.manifest.id,
        "size": artifact.manifest.archive.size,
        "tar_size": artifact.manifest.archive.tar_size,
    }
