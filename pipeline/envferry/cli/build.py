"""Commands of the build machine: build, pack, push."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from envferry.archive.compression import DEFAULT_LEVEL
from envferry.base.files import human_bytes
from envferry.cli.build_options import BuildChoice, build_options, build_spec
from envferry.cli.options import common_options, registry_option, threads_option
from envferry.cli.trust import load_signer, load_trust, sign_key_option, trusted_key_option
from envferry.config import settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from envferry.cli.console import Console
    from envferry.models import Artifact, BuiltEnv, PushedArtifact
    from envferry.registry import Registry

OUTPUT_DIR = Path("dist")

output_option = click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=OUTPUT_DIR, show_default=True,
    help="The directory that the artifact goes to.",
)  # fmt: skip
level_option = click.option(
    "--level", type=click.IntRange(1, 22), default=DEFAULT_LEVEL, show_default=True,
    help="How hard zstd tries.",
)  # fmt: skip
tag_option = click.option(
    "--tag", "tags", multiple=True, metavar="TAG", help="Also point this tag at it; repeatable."
)


@click.command()
@click.argument("spec")
@click.option("--twice", is_flag=True, help="Build again, in other circumstances, and compare.")
@build_options
@common_options
def build(console: Console, spec: str, twice: bool, **choices: object) -> None:
    """Build the locked environment of SPEC in a throwaway container without network."""
    built = build_spec(console, spec, BuildChoice.of(choices), twice=twice)
    lines = [f"{built.name}: built for {built.prefix} in {built.tree}"]
    if twice:
        lines.append("built twice: the same files, the same archive")
    console.result(built, lambda: lines)


@click.command()
@click.argument("name", metavar="NAME|PREFIX|VENV")
@output_option
@level_option
@threads_option
@click.option("--prefix", help="Of a folder: the path it was made for, where that is another.")
@click.option("--name", "new_name", metavar="NAME", help="Of a folder: what to call it.")
@common_options
def pack(
    console: Console, name: str, output: Path, level: int, threads: int, **found: str | None
) -> None:
    """Pack the built environment NAME, or a folder, into one archive.

    The folder is a conda environment, or a virtual environment (venv, virtualenv, uv), which is
    carried with its interpreter and standard library.
    """
    with environment_at(console, name, found["prefix"], found["new_name"]) as built:
        artifact = pack_built(console, built, output, level, threads)
    console.result(artifact_facts(artifact), lambda: [str(artifact.archive_path)])


@contextmanager
def environment_at(
    console: Console, name: str, prefix: str | None, new_name: str | None
) -> Iterator[BuiltEnv]:
    """Yield what `pack` is told to pack."""
    from envferry.build.records import read_build
    from envferry.pack.existing_env import describe_env, is_venv
    from envferry.specs.reading import SPEC_ENDINGS

    desk, folder = settings().cache_dir / "found", Path(name)
    is_spec = folder.suffix in SPEC_ENDINGS
    is_folder = not is_spec and ("/" in name or is_venv(folder))
    if is_folder and is_venv(folder):
        from envferry.channel.virtual_env import VirtualEnv, venv_with_interpreter

        source = VirtualEnv(folder, prefix, new_name)
        with venv_with_interpreter(source, desk=desk, progress=console.progress) as built:
            yield built
    elif is_folder:
        yield describe_env(folder, prefix=prefix, name=new_name, desk=desk)
    else:
        # An environment may be called `torch-2.8`: only a spec's ending is no part of its name.
        yield read_build(folder.stem if is_spec else name, settings().cache_dir / "builds")


@click.command()
@click.argument(
    "archives", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="ARCHIVE..."
)
@tag_option
@sign_key_option
@trusted_key_option
@registry_option
@common_options
def push(
    console: Console,
    archives: tuple[Path, ...],
    tags: tuple[str, ...],
    registry: str,
    **keys: tuple[Path, ...],
) -> None:
    """Send each ARCHIVE with its manifest to the registry; `latest` will point at it.

    With a key, the artifact and the tags are signed. To sign beside others, trust one of them.
    """
    from envferry.artifacts import read_artifact

    target = open_signing(registry, keys)
    pushed = [push_one(console, read_artifact(path), target, tags) for path in archives]
    console.result(pushed, lambda: [describe_push(item) for item in pushed])


def pack_built(
    console: Console, built: BuiltEnv, output: Path, level: int, threads: int = 0
) -> Artifact:
    """Pack a built environment."""
    from envferry.pack.stage import PackOptions, pack_env

    options = PackOptions(
        output_dir=output, mtime=settings().source_date_epoch, level=level, threads=threads
    )
    return pack_env(built, options=options, progress=console.progress)


def open_signing(url: str, keys: Mapping[str, object]) -> Registry:
    """Open a registry to push to, with the keys of `--sign-key` and `--trusted-key`."""
    from envferry.registry import Registry

    trust = load_trust(cast("tuple[Path, ...]", keys["trusted_keys"]), takes_in=False)
    signer = load_signer(cast("tuple[Path, ...]", keys["sign_keys"]))
    return Registry.open(url, signer=signer, trust=trust if trust.keys else None)


def push_one(
    console: Console, artifact: Artifact, registry: Registry, tags: tuple[str, ...]
) -> PushedArtifact:
    """Push an artifact."""
    from envferry.registry.push import push_artifact

    return push_artifact(artifact, registry=registry, tags=tags, progress=console.progress)


def artifact_facts(artifact: Artifact) -> dict[str, object]:
    """Return what `pack --json` says of an artifact."""
    return {
        "archive": artifact.archive_path,
        "manifest": artifact.manifest_path,
        "id": artifact.manifest.id,
        "size": artifact.manifest.archive.size,
        "tar_size": artifact.manifest.archive.tar_size,
    }


def describe_push(pushed: PushedArtifact) -> str:
    """Return one line about a push."""
    how = f"{human_bytes(pushed.size)} sent" if pushed.uploaded else "was there already"
    return f"{pushed.name}@{pushed.id} in {pushed.registry}: {how}, tags: {', '.join(pushed.tags)}"
