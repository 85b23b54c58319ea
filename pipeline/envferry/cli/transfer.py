"""Commands that carry registries: export, apply, mirror."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from envferry.base.files import human_bytes, plural
from envferry.base.sha256 import sha256_hex
from envferry.cli.options import common_options, registry_option
from envferry.cli.trust import (
    load_signer,
    load_trust,
    open_trusting,
    require_signature_option,
    sign_key_option,
    trusted_key_option,
)
from envferry.config import settings
from envferry.errors import IntegrityError, NotFound, UsageError
from envferry.models import Ref, current_platform
from envferry.registry import Registry
from envferry.stores.split import LEAST_PART

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from envferry.cli.console import Console
    from envferry.transfer.apply import Applied
    from envferry.transfer.export import Exported
    from envferry.transfer.mirror import Mirrored
    from envferry.transfer.tags import CarriedTag
    from envferry.trust.signing import PublicKey, Signer

PYTHON_VERSION = re.compile(r"3\.[1-9]\d")
SIZE = re.compile(r"(?P<number>\d+(\.\d+)?) ?(?P<unit>|[KMGT](i?B)?)", re.IGNORECASE)

tags_option = click.option(
    "--tag", "tags", multiple=True, metavar="T",
    help="Only these tags, and what they point to; repeatable.",
)  # fmt: skip


def journals() -> Path:
    """Return where interrupted uploads are noted."""
    return settings().cache_dir / "uploads"


def parse_size(context: click.Context, option: click.Parameter, text: str | None) -> int | None:
    """Parse bytes as people write them: 650M, 4G (powers of 1000), 4GiB (of 1024)."""
    if text is None:
        return None
    found = SIZE.fullmatch(text.strip())
    size = 0
    if found:
        unit = found["unit"].upper()
        base = 1024 if unit.endswith("IB") else 1000
        size = int(float(found["number"]) * base ** (" KMGT".index(unit[:1] or " ")))
    if size < LEAST_PART:
        message = f"{text!r} is no size of 1M or more: write 650M or 4G"
        raise click.BadParameter(message, context, option)
    return size


@click.command()
@click.argument("refs", metavar="REF...", nargs=-1)
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--since", multiple=True, metavar="REF",
    help="Carry only what a site lacks that has REF; repeatable.",
)  # fmt: skip
@click.option(
    "--split", "part_bytes", callback=parse_size, metavar="SIZE",
    help="Cut files that are larger, such as 4G for FAT or 650M.",
)  # fmt: skip
@click.option("--tool", is_flag=True, help="Also wheels of envferry itself, and an install.sh.")
@click.option(
    "--python", "pythons", multiple=True, metavar="VERSION",
    help="With --tool: the host's python, such as 3.11; repeatable. 3.10 to 3.13 unless given.",
)  # fmt: skip
@sign_key_option
@tags_option
@click.option("--platform", default=current_platform, help="Another platform than this one.")
@trusted_key_option
@registry_option
@common_options
def export(
    console: Console, refs: tuple[str, ...], directory: Path, registry: str, **choices: object
) -> None:
    """Write the artifacts REF, with their tags, into the folder DIR: a registry for a disk.

    The keys named with --trusted-key go into DIR/keys. At the other side, `envferry install
    --registry DIR` works as it is, and `envferry apply DIR` brings it into a site's registry.
    With --since it must be applied. Again, it completes what is missing.
    """
    from envferry.transfer.export import ExportOrder, export_artifacts

    if not refs:
        message = f"export needs both REF and DIR, and there is only {directory}"
        raise UsageError(message, hint=f"envferry export {directory} /media/usb")
    files = cast("tuple[Path, ...]", choices.pop("trusted_keys"))
    with_tool, pythons = choices.pop("tool"), cast("tuple[str, ...]", choices.pop("pythons"))
    sign_keys = cast("tuple[Path, ...]", choices.pop("sign_keys"))
    if (pythons or sign_keys) and not with_tool:
        option = "--python" if pythons else "--sign-key"
        raise UsageError(f"{option} is about the tool", hint="add --tool, or leave it out")
    signer = load_signer(sign_keys) if with_tool else None
    for python in pythons:
        if not PYTHON_VERSION.fullmatch(python):
            message = f"{python!r} is no python version of a host that envferry runs on"
            raise UsageError(message, hint="write it as 3.11")
    order = ExportOrder(
        refs=tuple(Ref.parse(ref) for ref in refs),
        since=tuple(Ref.parse(ref) for ref in cast("tuple[str, ...]", choices.pop("since"))),
        keys=read_public_keys(files),
        **choices,  # type: ignore[arg-type]
    )
    source = open_trusting(registry, load_trust(files))
    found = export_artifacts(
        source, directory, order, journals=journals(), progress=console.progress
    )
    if with_tool:
        export_tool(console, directory, (order.platform, pythons), signer)
    console.result(found, lambda: export_lines(found))
    require_no_conflict(found.tags, found.directory)


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@trusted_key_option
@require_signature_option
@registry_option
@common_options
def apply(console: Console, directory: Path, registry: str, trusted_keys: tuple[Path, ...]) -> None:
    """Bring what the folder DIR carries into the registry: whole artifacts and deltas.

    A delta and what is here already become the whole archive, byte for byte, so its signature
    stays valid. Tags never move back. What is damaged is named, with exit code 8, when all else has
    come. When it breaks off, run it again.
    """
    from envferry.transfer.apply import apply_folder

    if not directory.is_dir():
        fault, hint = "is not there", "is the disk mounted?"
        if directory.exists():
            fault, hint = "is a file", "name the folder that `envferry export` wrote"
        raise NotFound(f"the folder {directory} {fault}", hint=hint)
    source = open_trusting(str(directory), load_trust(trusted_keys))
    site = Registry.open(registry)
    found = apply_folder(source, site, journals=journals(), progress=console.progress)
    console.result(found, lambda: apply_lines(found))
    require_no_conflict(found.tags, found.target)
    older = [f"{tag} (at {tag.id})" for tag in found.tags if tag.outcome == "newer"]
    if older:
        message = f"{', '.join(older)} in {found.target} has moved further: {directory} is older"
        hint = "all else is done; to go back on purpose: `envferry tag NAME@ID TAG`"
        raise IntegrityError(message, hint=hint)
    if found.unfinished or not (found.rebuilt or found.copied or found.present):
        message = f"the export in {directory} is not complete"
        if found.unfinished:
            message += f": {', '.join(found.unfinished[:5])} missing"
        hint = "all else is done; run `envferry export` again where it was made, then apply again"
        raise IntegrityError(message, hint=hint)


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@tags_option
@click.option(
    "--keep", type=click.IntRange(min=1), metavar="N",
    help="Of each environment, only the N newest versions, and those that tags point to.",
)  # fmt: skip
@click.option("--platform", help="Only this platform; every one unless given.")
@click.option("--dry-run", is_flag=True, help="Say what would be copied, and change nothing.")
@trusted_key_option
@require_signature_option
@common_options
def mirror(
    console: Console, source: str, target: str, names: tuple[str, ...], **choices: object
) -> None:
    """Copy what the registry DST lacks of the registry SRC: all of it, or the environments NAME.

    Each is a directory, s3://bucket/prefix or, to read from, https://…. Every byte is compared
    with its manifest on the way; a copy that breaks off goes on where it was. Tags come last and
    never move back. Nothing is removed from DST: `envferry prune` does that.
    """
    from envferry.transfer.mirror import MirrorOrder, mirror_registry, plan_mirror

    trust = load_trust(choices.pop("trusted_keys"))  # type: ignore[arg-type]
    dry_run = choices.pop("dry_run")
    order = MirrorOrder(names=names, **choices)  # type: ignore[arg-type]
    there, here = open_trusting(source, trust), Registry.open(target)
    if dry_run:
        plan = plan_mirror(there, here, order)
        found = plan.report()
        console.result(found, lambda: mirror_lines(found, dry_run=True))
        plan.require_sound()
    else:
        found = mirror_registry(there, here, order, journals=journals(), progress=console.progress)
        console.result(found, lambda: mirror_lines(found, dry_run=False))
    require_no_conflict(found.tags, found.target)
    if found.dangling:
        message = f"{', '.join(found.dangling[:5])} in {found.source}: not published there"
        hint = f"all else is done; run `envferry check --registry {found.source}`"
        raise IntegrityError(message, hint=hint)


def export_tool(
    console: Console, directory: Path, host: tuple[str, tuple[str, ...]], signer: Signer | None
) -> None:
    """Write what a host (platform, pythons) needs to install envferry without network."""
    try:
        from envferry.build.downloads import DownloadCache
        from envferry.transfer.host_tool import PYTHONS, ToolOrder, write_tool
        from envferry.trust.tool_signature import SUMS
    except ModuleNotFoundError as error:
        message = f"--tool needs {error.name}, which is not installed"
        raise UsageError(message, hint='run `pip install "envferry[build]"`') from error
    platform, pythons = host
    order = ToolOrder(pythons=pythons or PYTHONS, platform=platform)
    cache = DownloadCache(settings().cache_dir / "downloads")
    tool = directory / "tool"
    names = write_tool(tool, order, cache=cache, progress=console.progress, signer=signer)
    console.note(f"{len(names)} wheels; there: sh {tool}/install.sh")
    if signer is None:
        console.note("the tool is not signed: --sign-key signs it")
    console.note(f"SHA-256 of {tool}/{SUMS}: {sha256_hex((tool / SUMS).read_bytes())}")


def read_public_keys(files: Iterable[Path]) -> tuple[tuple[PublicKey, bytes], ...]:
    """Read key files, which must be public keys: a private one is never copied."""
    from envferry.trust.signing import read_trusted_keys

    return tuple(
        (key, path.read_bytes())
        for path in files
        for key in read_trusted_keys(Path("/nonexistent"), [path])
    )


def export_lines(found: Exported) -> Iterator[str]:
    """Yield what is in the folder, and what to type at the other side."""
    yield from found.artifacts
    yield from tag_lines(found.tags)
    if found.since:
        yield (
            f"{found.directory}: {human_bytes(found.carried_bytes)}"
            f" instead of {human_bytes(found.archive_bytes)},"
            f" for a site that has {', '.join(found.since)}"
        )
        yield f"there: envferry apply {found.directory} --registry SITE"
        return
    yield f"{found.directory}: {human_bytes(found.carried_bytes)}"
    yield f"there: envferry install REF --registry {found.directory}"


def apply_lines(found: Applied) -> Iterator[str]:
    """Yield what came into the registry."""
    for stem in found.rebuilt:
        yield f"rebuilt  {stem}"
    for stem in found.copied:
        yield f"copied  {stem}"
    yield from tag_lines(found.tags)
    fresh = len(found.rebuilt) + len(found.copied)
    yield f"{found.target}: {plural(fresh, 'artifact')} came; there already: {found.present}"


def mirror_lines(found: Mirrored, *, dry_run: bool) -> Iterator[str]:
    """Yield what was copied."""
    word = "to copy" if dry_run else "copied"
    for stem in found.copied:
        yield f"{word}  {stem}"
    yield from tag_lines(found.tags)
    yield (
        f"{found.target}: {plural(len(found.copied), 'artifact')} {word}"
        f" ({human_bytes(found.copied_bytes)}); there already: {found.present}"
    )


def tag_lines(tags: Iterable[CarriedTag]) -> Iterator[str]:
    """Yield what became of tags, those that were right already left out."""
    for tag in tags:
        if tag.outcome == "moved":
            yield f"{tag} is now {tag.id}"
        elif tag.outcome == "newer":
            yield f"{tag} stays at {tag.id}: it has moved further there"


def require_no_conflict(tags: Iterable[CarriedTag], url: str) -> None:
    """Raise IntegrityError when tags stand elsewhere in the target after as many moves."""
    found = [f"{tag} ({tag.platform}) at {tag.id}" for tag in tags if tag.outcome == "conflict"]
    if found:
        message = f"{', '.join(found)} in {url}: moved there, too, independently; left as it is"
        hint = "decide with `envferry tag NAME@ID TAG` in one of the two registries"
        raise IntegrityError(message, hint=hint)
