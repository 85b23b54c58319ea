"""Commands about one artifact of a registry: show, tag."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.cli.console import table
from pipeline.cli.options import common_options, registry_option
from pipeline.cli.trust import load_signer, sign_key_option
from pipeline.files import human_bytes
from pipeline.models import Manifest, Ref, check_name, current_platform
from pipeline.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.cli.console import Console

LICENSE_COLUMN = 32

platform_option = click.option(
    "--platform", default=current_platform, help="Another platform than this one."
)


@click.command()
@click.argument("ref")
@platform_option
@registry_option
@common_options
def show(console: Console, ref: str, platform: str, registry: str) -> None:
    """Show what is inside the artifact REF, or the archive file REF: nothing is downloaded."""
    manifest = find_manifest(ref, platform, registry)
    console.result(manifest, lambda: manifest_lines(manifest))


@click.command()
@click.argument("ref")
@click.argument("tag")
@platform_option
@sign_key_option
@registry_option
@common_options
def tag(
    console: Console,
    ref: str,
    tag: str,
    platform: str,
    sign_keys: tuple[Path, ...],
    registry: str,
) -> None:
    """Point TAG at the artifact REF."""
    wanted = Ref.parse(ref)
    opened = Registry.open(registry, signer=load_signer(sign_keys))
    check_name(tag, "tag")
    id_ = opened.resolve(wanted, platform)
    record = opened.move_tag(wanted.name, platform, tag, id_)
    console.result(record, lambda: [f"{wanted.name}@{tag} is now {record.id}"])


def find_manifest(ref: str, platform: str, registry: str) -> Manifest:
    """Return the manifest of a ref in a registry, or of a file."""
    if "/" in ref or ref.endswith((".tar.zst", ".manifest.json")):
        from pathlib import Path

        from pipeline.artifacts import read_artifact

        return read_artifact(Path(ref)).manifest
    wanted = Ref.parse(ref)
    opened = Registry.open(registry)
    return opened.manifest(wanted.name, platform, opened.resolve(wanted, platform))


def manifest_lines(manifest: Manifest) -> Iterator[str]:
    """Yield what there is to say of one artifact, its packages last."""
    facts = manifest.archive
    sizes = f"{human_bytes(facts.size)}, {human_bytes(facts.tar_size)} unpacked"
    needs = manifest.requirements
    lines = {
        "environment": f"{manifest.name}@{manifest.id}",
        "version": manifest.version,
        "platform": manifest.platform,
        "prefix": manifest.prefix,
        "archive": f"{facts.file}, {sizes}",
        "xxh128": facts.xxh128,
        "blake3": facts.blake3,
        "lock": manifest.lock_digest,
        "needs": ", ".join(
            f"{what} {version}"
            for what, version in (
                ("glibc", needs.glibc),
                ("CUDA driver", needs.cuda),
                ("CPU", needs.archspec),
            )
            if version
        ),
        "checks": ", ".join(
            [*(f"import {name}" for name in manifest.checks.imports), *manifest.checks.commands]
        ),
        "built with": ", ".join(f"{name} {version}" for name, version in manifest.tools.items()),
        "image": manifest.image,
    }
    for label, text in lines.items():
        if text:
            yield f"{click.style(label.ljust(12), bold=True)} {text}"
    yield ""
    rows = [
        (
            item.name,
            item.version,
            item.kind,
            item.build or "",
            (item.license or "")[:LICENSE_COLUMN],
            human_bytes(item.size),
        )
        for item in sorted(manifest.packages, key=lambda item: (item.name.lower(), item.kind))
    ]
    yield from table(("PACKAGE", "VERSION", "KIND", "BUILD", "LICENCE", "SIZE"), rows, right=(5,))
