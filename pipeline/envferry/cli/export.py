"""The command export: a registry for a disk, with envferry itself and what a host trusts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from envferry.base.sha256 import sha256_hex
from envferry.base.text import human_bytes, plural
from envferry.base.times import now
from envferry.cli.shared.byte_sizes import size_of
from envferry.cli.shared.command import argument, command, option
from envferry.cli.shared.copied_tags import journals, require_no_conflict, tag_lines
from envferry.cli.shared.shared_options import (
    ChosenTagOptions,
    DryRunOptions,
    InterpreterOptions,
    PlatformOptions,
    RegistryOptions,
    SignKeyOptions,
    TrustedKeyOptions,
)
from envferry.config import settings
from envferry.errors import UsageError
from envferry.names import Ref, current_platform
from envferry.registry.accepted_sources import open_trusting
from envferry.stores.split import LEAST_PART
from envferry.trust.host_keys import bundle_path, load_signer, load_trust, read_kept_bundle

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from envferry.cli.shared.console import Console
    from envferry.transfer.export import Exported, ExportRequest
    from envferry.trust.signing import PublicKey, Signer


PYTHON_VERSION = re.compile(r"3\.[1-9]\d")


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
            message = "--oci and --advisories cannot be combined"
            raise UsageError(message, hint="export to two folders")
        if self.oci and (self.since or self.part_bytes or self.tool):
            name = "--since" if self.since else "--split" if self.part_bytes else "--tool"
            message = f"--oci and {name} cannot be combined"
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
    # Before anything is copied: a key that cannot be used is reported at once.
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
    # After the result: a conflict of tags does not take back what was written.
    require_no_conflict(found.tags, found.directory)


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
    # The Python of this machine serves its own platform only.
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
    """Copy the trust bundle that this machine uses into the folder, if it has one."""
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
    from envferry.cli.audit import database_lines, database_path, note_unsigned

    target = directory / "audit" / DATABASE_NAME
    request = UpdateRequest(sources=(str(database_path()),), database=target, now=now())
    facts = update_database(request, progress=console.progress)
    _, age, *_ = database_lines(facts)
    console.note(f"advisories exported, {age}; there run: envferry audit update {target}")
    note_unsigned(console, target)


def read_public_keys(files: Iterable[Path]) -> tuple[tuple[PublicKey, bytes], ...]:
    """Read key files, which must be public keys: a private one is never copied."""
    from envferry.trust.signing import read_trusted_keys

    return tuple(
        (key, path.read_bytes())
        for path in files
        # No folder of keys: those of this machine are not meant.
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
