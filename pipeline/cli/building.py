"""Commands of the build machine: lock, build, pack, push, release."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from pipeline.archive.writer import DEFAULT_LEVEL
from pipeline.cli.builds import SPECS_DIR, BuildChoice, build_options, build_spec
from pipeline.cli.options import common_options, registry_option
from pipeline.cli.trust import load_signer, load_trust, sign_key_option, trusted_key_option
from pipeline.config import settings
from pipeline.files import human_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.cli.console import Console
    from pipeline.models import Artifact, BuiltEnv, Lock, PushedArtifact
    from pipeline.registry import Registry

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
@click.argument("specs", nargs=-1, required=True, metavar="SPEC...")
@click.option("--platform", "platforms", multiple=True, help="Lock for this one; repeatable.")
@click.option("--channel", "channels", multiple=True, help="Use instead of the spec's; repeatable.")
@click.option("--check", is_flag=True, help="Only say whether the lock is up to date.")
@click.option("--solver", help="A conda, mamba or micromamba to solve with.", metavar="EXE")
@click.option(
    "--relax", type=click.Choice(["build", "patch", "all"]),
    help="Loosen pins that no channel can satisfy: their build, patch version, or all.",
)  # fmt: skip
@common_options
def lock(console: Console, specs: tuple[str, ...], check: bool, **choices: object) -> None:
    """Resolve each SPEC (a name in specs/, or a file) into its lock."""
    from pipeline.specs.reading import find_spec, read_spec
    from pipeline.stages.lock import LockOptions, check_lock, lock_spec

    options = LockOptions(**choices)  # type: ignore[arg-type]
    locks = []
    for argument in specs:
        spec = read_spec(find_spec(argument, SPECS_DIR))
        if check:
            locks.append(check_lock(spec))
        else:
            locks.append(lock_spec(spec, options=options, progress=console.progress))
    console.result(
        [lock_facts(lock) for lock in locks],
        lambda: [describe_lock(lock) for lock in locks],
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
@click.argument("name")
@output_option
@level_option
@common_options
def pack(console: Console, name: str, output: Path, level: int) -> None:
    """Pack the built environment NAME into one archive."""
    from pipeline.stages.build import read_build

    built = read_build(Path(name).stem, settings().cache_dir / "builds")
    artifact = pack_built(console, built, output, level)
    console.result(artifact_facts(artifact), lambda: [str(artifact.archive_path)])


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
    from pipeline.artifacts import read_artifact

    target = open_signing(registry, keys)
    pushed = [push_one(console, read_artifact(path), target, tags) for path in archives]
    console.result(pushed, lambda: [describe_push(item) for item in pushed])


@click.command()
@click.argument("specs", nargs=-1, required=True, metavar="SPEC...")
@tag_option
@sign_key_option
@trusted_key_option
@registry_option
@output_option
@level_option
@build_options
@common_options
def release(
    console: Console,
    specs: tuple[str, ...],
    tags: tuple[str, ...],
    registry: str,
    output: Path,
    level: int,
    **choices: object,
) -> None:
    """Release each SPEC: check its lock, build, pack and push it."""
    choice = BuildChoice.of(choices)
    target = open_signing(registry, choices)
    pushed = []
    for spec in specs:
        artifact = pack_built(console, build_spec(console, spec, choice), output, level)
        pushed.append(push_one(console, artifact, target, tags))
    console.result(pushed, lambda: [describe_push(item) for item in pushed])


def pack_built(console: Console, built: BuiltEnv, output: Path, level: int) -> Artifact:
    """Pack a built environment."""
    from pipeline.stages.pack import PackOptions, pack_env

    options = PackOptions(output_dir=output, mtime=settings().source_date_epoch, level=level)
    return pack_env(built, options=options, progress=console.progress)


def open_signing(url: str, keys: Mapping[str, object]) -> Registry:
    """Open a registry to push to, with the keys of `--sign-key` and `--trusted-key`."""
    from pipeline.registry import Registry

    trust = load_trust(cast("tuple[Path, ...]", keys["trusted_keys"]))
    signer = load_signer(cast("tuple[Path, ...]", keys["sign_keys"]))
    return Registry.open(url, signer=signer, trust=trust if trust.keys else None)


def push_one(
    console: Console, artifact: Artifact, registry: Registry, tags: tuple[str, ...]
) -> PushedArtifact:
    """Push an artifact."""
    from pipeline.stages.push import push_artifact

    return push_artifact(artifact, registry=registry, tags=tags, progress=console.progress)


def lock_facts(lock: Lock) -> dict[str, object]:
    """Return what `lock --json` says of a lock."""
    return {
        "name": lock.name,
        "path": lock.path,
        "digest": lock.digest,
        "platforms": {
            platform: len(lock.for_platform(platform)) for platform in lock.content_hashes
        },
    }


def describe_lock(lock: Lock) -> str:
    """Return one line about a lock."""
    counts = []
    for platform in sorted(lock.content_hashes):
        packages = lock.for_platform(platform)
        conda = sum(package.manager == "conda" for package in packages)
        counts.append(f"{platform}: {conda} conda + {len(packages) - conda} pip packages")
    return f"{lock.path}  {'; '.join(counts)}"


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
