"""Commands that carry registries: export, apply, mirror."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from envferry.base.files import human_bytes, plural
from envferry.base.sha256 import sha256_hex
from envferry.cli.command import argument, command, option
from envferry.cli.shared_options import (
    ChosenTagOptions,
    DryRunOptions,
    InterpreterOptions,
    PlatformOptions,
    RegistryOptions,
    SignatureOptions,
    SignKeyOptions,
    TrustedKeyOptions,
)
from envferry.cli.sizes import size_of
from envferry.config import settings
from envferry.errors import IntegrityError, NotFound, UsageError
from envferry.names import Ref, current_platform
from envferry.registry import Registry
from envferry.registry.accepted_sources import open_trusting
from envferry.stores.split import LEAST_PART
from envferry.trust.host_keys import bundle_path, load_signer, load_trust, read_kept_bundle

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from envferry.cli.console import Console
    from envferry.transfer.apply import Applied
    from envferry.transfer.export import Exported, ExportRequest
    from envferry.transfer.mirror import Mirrored, MirrorRequest
    from envferry.transfer.tag_copy import TransferredTag
    from envferry.trust.signing import PublicKey, Signer

PYTHON_VERSION = re.compile(r"3\.[1-9]\d")


def journals() -> Path:
    """Return where interrupted uploads are noted."""
    return settings().cache_dir / "uploads"


def parse_part_size(
    context: click.Context, option: click.Parameter, text: str | None
) -> int | None:
    """Parse the size of parts; small ones would be too many."""
    if text is None:
        return None
    size = size_of(text)
    if size is None or size < LEAST_PART:
        message = f"{text!r} is not a valid size: write 650M or 4G, 1M at least"
        raise click.BadParameter(message, context, option)
    return size


class ExportOptions(
    DryRunOptions,
    TrustedKeyOptions,
    PlatformOptions,
    ChosenTagOptions,
    SignKeyOptions,
    InterpreterOptions,
    RegistryOptions,
):
    """What to export, where to and how."""

    refs: tuple[str, ...] = argument(metavar="REF...", nargs=-1)
    directory: Path = argument(metavar="DIR", type=click.Path(path_type=Path))
    since: tuple[str, ...] = option(
        "--since",
        multiple=True,
        metavar="REF",
        help="Export only what a site that has REF lacks; repeatable.",
    )
    part_bytes: int | None = option(
        "--split",
        callback=parse_part_size,
        metavar="SIZE",
        help="Split larger files, at 4G for FAT or 650M for example.",
    )
    oci: bool = option(
        "--oci",
        is_flag=True,
        help="Write an OCI image layout, for skopeo, podman and ctr as well.",
    )
    tool: bool = option(
        "--tool",
        is_flag=True,
        help="Also export envferry itself: envferry.run, wheels, install.sh.",
    )
    advisories: bool = option(
        "--advisories",
        is_flag=True,
        help="Also export the database that `envferry audit` reads, to DIR/audit.",
    )
    pythons: tuple[str, ...] = option(
        "--python",
        multiple=True,
        metavar="VERSION",
        help="With --tool: the host's python, such as 3.11; repeatable; default: 3.10 to 3.13.",
    )

    def request(self) -> ExportRequest:
        """Return what is to be exported; raise UsageError for what does not go together."""
        from envferry.transfer.export import ExportRequest

        if not self.refs:
            message = f"export needs REF and DIR: only {self.directory} is given"
            raise UsageError(message, hint=f"run `envferry export {self.directory} /media/usb`")
        given = {
            "--python": self.pythons,
            "--sign-key": self.sign_keys,
            "--interpreter": self.interpreter,
        }
        if not self.tool and any(given.values()):
            name = next(name for name, value in given.items() if value)
            msg = f"{name} needs --tool"
            raise UsageError(msg, hint=f"add --tool, or leave out {name}")
        if self.oci and self.advisories:
            message = "--oci and --advisories do not go together"
            raise UsageError(message, hint="export to two folders")
        if self.oci and (self.since or self.part_bytes or self.tool):
            name = "--since" if self.since else "--split" if self.part_bytes else "--tool"
            message = f"--oci and {name} do not go together"
            raise UsageError(message, hint="export to two folders")
        for python in self.pythons:
            if not PYTHON_VERSION.fullmatch(python):
                message = f"{python!r} is not a python version that envferry runs on"
                raise UsageError(message, hint="write it as 3.11")
        return ExportRequest(
            refs=tuple(Ref.parse(ref) for ref in self.refs),
            since=tuple(Ref.parse(ref) for ref in self.since),
            platform=self.platform,
            tags=self.tags,
            part_bytes=self.part_bytes,
            as_images=self.oci,
            keys=read_public_keys(self.trusted_keys),
        )


class ApplyOptions(DryRunOptions, SignatureOptions, RegistryOptions):
    """What to apply, where to."""

    directory: Path = argument(metavar="DIR", type=click.Path(path_type=Path))


class MirrorOptions(DryRunOptions, SignatureOptions, ChosenTagOptions):
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


@command(ExportOptions)
def export(console: Console, options: ExportOptions) -> None:
    """Write the artifacts REF, with their tags, into the folder DIR: a registry for a disk.

    The keys named with --trusted-key go into DIR/keys. On the other side, `envferry install
    --registry DIR` installs from it, and `envferry apply DIR` adds it to a site's registry. An
    export with --since has to be applied. With --oci, DIR is an OCI image layout as well:
    `skopeo copy oci:DIR:NAME:TAG …` takes images from it, `envferry mirror DIR …` everything.
    Run it again to complete what is missing.
    """
    from envferry.transfer.export import export_artifacts, preview_export

    request, directory = options.request(), options.directory
    signer = load_signer(options.sign_keys) if options.tool else None
    source = open_trusting(options.registry, load_trust(options.trusted_keys))
    if options.dry_run:
        found = preview_export(source, directory, request)
        console.preview(found, lambda: export_preview_lines(found, with_tool=options.tool))
        return
    found = export_artifacts(
        source, directory, request, journals=journals(), progress=console.progress
    )
    if options.tool:
        export_tool(console, options, signer)
    if options.advisories:
        export_advisories(console, directory)
    export_bundle(console, directory)
    console.result(found, lambda: export_lines(found, options))
    require_no_conflict(found.tags, found.directory)


@command(ApplyOptions)
def apply(console: Console, options: ApplyOptions) -> None:
    """Add what the folder DIR carries to the registry: whole artifacts and deltas.

    A delta and what the registry has become the whole archive, byte for byte, so its signature
    stays valid. Tags never move back. What is damaged is named, with exit code 8, after everything
    else was added. Run it again if it was interrupted.
    """
    from envferry.transfer.apply import apply_folder, preview_apply

    directory = options.directory
    if not directory.is_dir():
        fault, hint = "does not exist", "is the disk mounted?"
        if directory.exists():
            fault, hint = "is a file", "name the folder that `envferry export` wrote"
        msg = f"the folder {directory} {fault}"
        raise NotFound(msg, hint=hint)
    trust = load_trust(options.trusted_keys, require_signature=options.require_signature)
    source, site = open_trusting(str(directory), trust), Registry.open(options.registry)
    if options.dry_run:
        found = preview_apply(source, site)
        console.preview(found, lambda: apply_preview_lines(found))
    else:
        found = apply_folder(source, site, journals=journals(), progress=console.progress)
        console.result(found, lambda: apply_lines(found))
    require_no_conflict(found.tags, found.target)
    require_applied(found, directory)


def require_applied(found: Applied, directory: Path) -> None:
    """Raise IntegrityError where a folder holds older tags than the site, or is not complete."""
    older = [f"{tag} (at {tag.id})" for tag in found.tags if tag.outcome == "newer"]
    if older:
        message = f"{', '.join(older)} in {found.target} is newer than in {directory}"
        hint = "everything else was applied; to go back on purpose: `envferry tag NAME@ID TAG`"
        raise IntegrityError(message, hint=hint)
    if found.unfinished or not (found.rebuilt or found.copied or found.present):
        message = f"the export in {directory} is not complete"
        if found.unfinished:
            message += f": {', '.join(found.unfinished[:5])} missing"
        hint = "complete it with `envferry export` where it was made, then apply again"
        raise IntegrityError(message, hint=hint)


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
    request = options.request()
    there, here = open_trusting(options.source, trust), Registry.open(options.target)
    if options.dry_run:
        plan = plan_mirror(there, here, request)
        found = plan.report()
        console.preview(found, lambda: mirror_lines(found, dry_run=True))
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


def export_tool(console: Console, options: ExportOptions, signer: Signer | None) -> None:
    """Write what a host needs to install envferry without network."""
    try:
        from envferry.build.downloads import DownloadCache
        from envferry.cli.tool import make_run_file, needs_words
        from envferry.transfer.host_tool import PYTHONS, ToolRequest, write_tool
        from envferry.trust.tool_signature import RUN_FILE, SUMS
    except ModuleNotFoundError as error:
        message = f"--tool needs {error.name}, which is not installed"
        raise UsageError(message, hint='run `pip install "envferry[build]"`') from error
    platform, run_file = options.platform, None
    tool = options.directory / "tool"
    if options.interpreter or platform == current_platform():
        run_file, program = make_run_file(console, platform, options.interpreter)
        words = f"{human_bytes(len(run_file))}, {needs_words(program)}"
        console.note(f"{RUN_FILE} exported: {words}; on the host run: sh {tool}/{RUN_FILE}")
    else:
        console.note(f"no {RUN_FILE} exported: name a Python for {platform} with --interpreter")
    pythons = options.pythons or PYTHONS
    request = ToolRequest(pythons=pythons, platform=platform, run_file=run_file)
    cache = DownloadCache(settings().cache_dir / "downloads")
    names = write_tool(tool, request, cache=cache, progress=console.progress, signer=signer)
    console.note(f"{plural(len(names), 'wheel')} exported; on the host run: sh {tool}/install.sh")
    if signer is None:
        console.note(f"{tool} is not signed: sign it with --sign-key FILE")
    console.note(f"SHA-256 of {tool}/{SUMS}: {sha256_hex((tool / SUMS).read_bytes())}")


def export_bundle(console: Console, directory: Path) -> None:
    """Copy the trust bundle that this machine obeys into the folder, if it has one."""
    from envferry.base.files import write_bytes
    from envferry.transfer.export import KEYS

    path = bundle_path()
    if read_kept_bundle(path):
        write_bytes(directory / KEYS / path.name, path.read_bytes())
        console.note(f"trust bundle exported; on a host run: envferry trust update {directory}")


def export_advisories(console: Console, directory: Path) -> None:
    """Copy the database of advisories, with its signatures, into the folder."""
    from envferry.audit.advisory_database import DATABASE_NAME
    from envferry.audit.database_update import UpdateRequest, update_database
    from envferry.cli.audit import database_lines, database_path, now

    target = directory / "audit" / DATABASE_NAME
    request = UpdateRequest(source=str(database_path()), database=target, now=now())
    facts = update_database(request, progress=console.progress)
    _, age, *_ = database_lines(facts)
    console.note(f"advisories exported, {age}; there run: envferry audit update {target}")


def read_public_keys(files: Iterable[Path]) -> tuple[tuple[PublicKey, bytes], ...]:
    """Read key files, which must be public keys: a private one is never copied."""
    from envferry.trust.signing import read_trusted_keys

    return tuple(
        (key, path.read_bytes())
        for path in files
        for key in read_trusted_keys(Path("/nonexistent"), [path])
    )


def export_lines(found: Exported, options: ExportOptions) -> Iterator[str]:
    """Yield what is in the folder, and what to type at the other side."""
    yield from found.artifacts
    yield from tag_lines(found.tags)
    if found.since:
        yield (
            f"{found.directory}: {human_bytes(found.carried_bytes)}"
            f" instead of {human_bytes(found.archive_bytes)},"
            f" for a site that has {', '.join(found.since)}"
        )
        yield f"at the site run: envferry apply {found.directory} --registry SITE"
        return
    yield f"{found.directory}: {human_bytes(found.carried_bytes)}"
    start = f"sh {found.directory}/tool/envferry.run" if options.tool else "envferry"
    yield f"on the host run: {start} install {options.refs[0]} --registry {found.directory}"


def export_preview_lines(found: Exported, *, with_tool: bool) -> Iterator[str]:
    """Yield what an export would write."""
    for stem in found.artifacts:
        yield f"would export {stem}"
    if with_tool:
        yield f"would export envferry itself to {found.directory}/tool"
    size = human_bytes(found.carried_bytes)
    yield f"{found.directory}: {plural(len(found.artifacts), 'artifact')}, {size} at most"


def apply_lines(found: Applied) -> Iterator[str]:
    """Yield what was added to the registry."""
    for stem in found.rebuilt:
        yield f"rebuilt  {stem}"
    for stem in found.copied:
        yield f"copied  {stem}"
    yield from tag_lines(found.tags)
    fresh = len(found.rebuilt) + len(found.copied)
    yield f"{found.target}: {plural(fresh, 'artifact')} added, {found.present} already present"


def apply_preview_lines(found: Applied) -> Iterator[str]:
    """Yield what would be added to the registry."""
    for stem in found.rebuilt:
        yield f"would rebuild  {stem}"
    for stem in found.copied:
        yield f"would copy  {stem}"
    fresh = plural(len(found.rebuilt) + len(found.copied), "artifact")
    yield f"{found.target}: {fresh} to add, {found.present} already present"


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


def tag_lines(tags: Iterable[TransferredTag]) -> Iterator[str]:
    """Yield what became of tags, those that were right already left out."""
    for tag in tags:
        if tag.outcome == "moved":
            yield f"{tag} is now {tag.id}"
        elif tag.outcome == "newer":
            yield f"{tag} stays at {tag.id}: the target's is newer"


def require_no_conflict(tags: Iterable[TransferredTag], url: str) -> None:
    """Raise IntegrityError when tags point elsewhere in the target after as many moves."""
    found = [f"{tag} ({tag.platform}) at {tag.id}" for tag in tags if tag.outcome == "conflict"]
    if found:
        message = f"{', '.join(found)} in {url} was moved there independently: left unchanged"
        hint = "choose with `envferry tag NAME@ID TAG` in one of the two registries"
        raise IntegrityError(message, hint=hint)
