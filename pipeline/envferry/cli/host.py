"""Commands of the training host: fetch, install, verify, rollback, remove."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import click

from envferry.artifacts import read_artifact
from envferry.base.files import absolute_path, human_bytes
from envferry.cli.options import common_options, registry_option, threads_option
from envferry.cli.trust import (
    allow_downgrade_option,
    check_file,
    is_file_ref,
    load_trust,
    open_trusting,
    require_signature_option,
    trusted_key_option,
    verify_ref,
)
from envferry.config import settings
from envferry.errors import IntegrityError, UsageError
from envferry.install.reuse import Link
from envferry.models import ID_PATTERN, Finding, Ref, current_platform
from envferry.registry import PublishedArchive, Registry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from envferry.archive.reader import Source
    from envferry.cli.console import Console
    from envferry.install.env_home import EnvHome
    from envferry.install.remove import Removal
    from envferry.install.stage import InstallOptions, InstallPlan
    from envferry.install.verify import Verified
    from envferry.models import Installation, Manifest
    from envferry.trust.host_trust import Trust

KEPT = 2
"""Installations that `remove` keeps: the current one, and one to go back to."""

envs_dir_option = click.option(
    "--envs-dir", type=click.Path(path_type=Path), default=lambda: settings().envs_dir,
    show_default="/opt/conda/envs", help="The directory that holds this host's environments.",
)  # fmt: skip


@click.command()
@click.argument("ref")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path(), show_default=True,
    help="The directory that the artifact goes to.",
)  # fmt: skip
@click.option("--platform", default=current_platform, help="Another platform than this one.")
@trusted_key_option
@require_signature_option
@registry_option
@common_options
def fetch(
    console: Console, ref: str, output: Path, platform: str, registry: str, **keys: tuple[Path, ...]
) -> None:
    """Bring the artifact REF (NAME, NAME@TAG or NAME@ID) to a directory, verified.

    Carry the directory to a host without network and `envferry install` the archive there.
    """
    from envferry.registry.fetch import fetch_artifact

    output.mkdir(parents=True, exist_ok=True)
    artifact = fetch_artifact(
        Ref.parse(ref),
        registry=open_trusting(registry, load_trust(keys["trusted_keys"])),
        directory=output,
        platform=platform,
        progress=console.progress,
    )
    facts = {"archive": artifact.archive_path, "id": artifact.manifest.id}
    console.result(facts, lambda: [str(artifact.archive_path)])


@click.command()
@click.argument("ref")
@envs_dir_option
@click.option("--prefix", help="The path it shall live at, where that is not ENVS_DIR/NAME.")
@click.option("--name", help="Another name than the environment's own.")
@click.option("--replace", is_flag=True, help="Move aside what is there and is not ours.")
@click.option("--no-check", is_flag=True, help="Do not run the environment's checks.")
@click.option(
    "--link", type=click.Choice([link.value for link in Link]), default=Link.AUTO.value,
    show_default=True, help="How unchanged files come from what is installed already.",
)  # fmt: skip
@click.option(
    "--force", multiple=True, type=click.Choice(get_args(Finding)),
    help="Install in spite of this finding of the host check; repeatable.",
)  # fmt: skip
@threads_option
@click.option("--dry-run", is_flag=True, help="Say what would be read, and change nothing.")
@trusted_key_option
@require_signature_option
@allow_downgrade_option
@registry_option
@common_options
def install(console: Console, ref: str, registry: str, dry_run: bool, **choices: object) -> None:
    """Install REF, whole or not at all: NAME, NAME@TAG, NAME@ID, or an archive file.

    Files that other environments on this host have are shared, after a look at their checksums;
    only the rest is read. What an interrupted install has done is not done again.

    From outside a container into its volume, for the path inside it:
    `envferry install demo --envs-dir ./conda/envs --prefix /opt/conda/envs/demo`
    """
    from envferry.install.stage import InstallOptions, install_artifact, preview_install

    link, check = Link(choices.pop("link")), not choices.pop("no_check")
    trust = load_trust(
        cast("tuple[Path, ...]", choices.pop("trusted_keys")),
        None if dry_run else cast("Path", choices["envs_dir"]),
        allow_downgrade=bool(choices.pop("allow_downgrade")),
    )
    options = InstallOptions(link=link, check=check, **choices)  # type: ignore[arg-type]
    with opened(ref, registry, trust) as (source, manifest):
        if dry_run:
            plan = preview_install(source, manifest, options=options)
            console.result(plan, lambda: [describe_plan(plan)])
            return
        installation = install_artifact(
            source,
            manifest,
            options=options,
            progress=console.progress,
            announce=lambda plan: console.note(describe_plan(plan)) if plan.saves else None,
        )
    console.result(installation, lambda: [describe_installation(installation, options)])


@contextmanager
def opened(ref: str, registry: str, trust: Trust) -> Iterator[tuple[Source, Manifest]]:
    """Open an archive on a disk, or one in a registry, if its signatures are in order."""
    from envferry.archive.reader import FileSource

    if is_file_ref(ref):
        artifact = read_artifact(Path(ref))
        check_file(Path(ref), artifact.manifest, trust)
        with FileSource(artifact.archive_path) as source:
            yield source, artifact.manifest
        return
    place, wanted = Registry.open(registry, trust=trust), Ref.parse(ref)
    platform = current_platform()
    manifest = place.manifest(wanted.name, platform, place.resolve(wanted, platform))
    place.require_archive(manifest)
    yield PublishedArchive(place, manifest), manifest


@click.command()
@click.argument("name", metavar="NAME|REF")
@envs_dir_option
@click.option("--quick", is_flag=True, help="Compare size, mode and time; read no file.")
@click.option("--repair", is_flag=True, help="Bring back what is changed or missing.")
@click.option("--archive", "file", metavar="FILE", help="Repair from this archive.")
@click.option("--published", is_flag=True, help="Check the artifact, also if it is installed here.")
@click.option("--platform", default=current_platform, help="Another platform than this one.")
@trusted_key_option
@require_signature_option
@registry_option
@common_options
def verify(console: Console, name: str, envs_dir: Path, **choices: Any) -> None:  # noqa: ANN401  (options)
    """Compare the installed NAME or NAME@ID with what was installed; or check an artifact.

    Every file of an environment: says what is changed, missing or extra, and ends with 8 when
    anything is. With --repair, only what is changed or missing is read, from --archive or from
    the registry.

    An archive FILE, NAME@TAG, or a NAME@ID that is not installed here is an artifact: its
    signatures are checked with the trusted keys, and every byte with what is signed. So is the
    folder `tool` of an export, which holds envferry itself.
    """
    if choices["published"] or not is_installed(name, envs_dir):
        keys, platform = choices["trusted_keys"], choices["platform"]
        verify_ref(console, name, keys, platform, choices["registry"])
    else:
        verify_installed(console, name, envs_dir, choices)


def is_installed(name: str, envs_dir: Path) -> bool:
    """Whether a word names an installation, or an environment: a host knows no tags."""
    from envferry.trust.tool_signature import is_tool

    if is_file_ref(name):
        return False
    home, at, id_ = name.partition("@")
    if is_tool(Path(name)):  # unless there is an environment of that name
        return home_of(name, envs_dir)[0].directory.exists()
    return not at or bool(
        ID_PATTERN.fullmatch(id_) and home_of(home, envs_dir)[0].record(id_).exists()
    )


def verify_installed(
    console: Console, name: str, envs_dir: Path, choices: Mapping[str, Any]
) -> None:
    """Compare an installation with its record; repair it if that is wanted."""
    from envferry.install.verify import verify_installation

    home, id_ = home_of(name, envs_dir)
    found = verify_installation(home, id_, quick=bool(choices["quick"]), progress=console.progress)
    if choices["repair"] and found.faults:
        ref = str(choices["file"] or found.ref)
        found = repair_from(console, home, found, (ref, str(choices["registry"])))
    console.result(found, lambda: describe_verified(found))
    if found.differences:
        hint = f"`envferry verify {name} --repair` brings back what is changed or missing"
        if not found.faults:
            hint = "these files came later; remove what should not be there"
        count = len(found.differences)
        message = f"{home.name}@{found.id} is not as it was installed (differences: {count})"
        raise IntegrityError(message, hint=hint)


def repair_from(
    console: Console, home: EnvHome, found: Verified, place: tuple[str, str]
) -> Verified:
    """Repair an installation from a ref or file, and the registry it is in."""
    from envferry.archive.reader import Archive
    from envferry.install.verify import repair_installation

    with opened(*place, load_trust(())) as (source, _):
        return repair_installation(home, found, Archive(source), progress=console.progress)


@click.command()
@click.argument("name")
@click.argument("id_", metavar="[ID]", required=False)
@envs_dir_option
@common_options
def rollback(console: Console, name: str, id_: str | None, envs_dir: Path) -> None:
    """Make the installation of NAME current that was so before, or the one with that ID.

    Once more, and the newer one is back.
    """
    from envferry.install.activation import roll_back
    from envferry.install.env_home import EnvHome

    installation = roll_back(EnvHome.of(envs_dir, name), id_)
    line = f"{name}@{installation.id} is current: {envs_dir / name}"
    console.result(installation, lambda: [line])


@click.command()
@click.argument("name", metavar="NAME[@ID]")
@click.option(
    "--keep", type=click.IntRange(min=1), metavar="N",
    help=f"Keep the N installations that were current last; {KEPT} unless given.",
)  # fmt: skip
@click.option("--all", "whole", is_flag=True, help="Remove the environment, current one and all.")
@click.option(
    "--assume-unused", is_flag=True,
    help="Remove also what processes that do not show here, or are closed to this user, may use.",
)  # fmt: skip
@envs_dir_option
@common_options
def remove(
    console: Console,
    name: str,
    keep: int | None,
    whole: bool,
    assume_unused: bool,
    envs_dir: Path,
) -> None:
    """Remove old installations of NAME, or the one with that ID, or all of NAME.

    None that a process uses, and never the current one but with --all. Where neither /proc nor
    the file system can tell, as in a container on a shared volume, it stays, too.
    """
    from envferry.install.remove import remove_named, remove_old, remove_whole

    home, id_ = home_of(name, envs_dir)
    if [bool(id_), keep is not None, whole].count(True) > 1:
        raise UsageError("an ID, --keep and --all exclude each other")
    if whole:
        removal = remove_whole(home, assume_unused=assume_unused)
    elif id_:
        removal = remove_named(home, id_, assume_unused=assume_unused)
    else:
        removal = remove_old(home, keep or KEPT, assume_unused=assume_unused)
    console.result(removal, lambda: describe_removal(removal))


def home_of(text: str, envs_dir: Path) -> tuple[EnvHome, str | None]:
    """Parse NAME or NAME@ID of something installed."""
    from envferry.install.env_home import EnvHome

    name, at, id_ = text.partition("@")
    if at and not ID_PATTERN.fullmatch(id_):
        message = f"{id_!r} is no id: 12 hex digits"
        raise UsageError(message, hint="tags are the registry's; a host knows ids only")
    return EnvHome.of(envs_dir, name), id_ or None


def describe_plan(plan: InstallPlan) -> str:
    """Return what an install will read."""
    text = (
        f"{plan.name}@{plan.id}: {plan.fetch_bytes:,} of {plan.archive_bytes:,} bytes to read"
        f" ({plan.frames} of {plan.all_frames} frames)"
    )
    if plan.reused:
        text += f"; {plan.reused} of {plan.files} files are here already"
    return text


def describe_verified(found: Verified) -> Iterator[str]:
    """Yield what a verification found, one path a line."""
    for path in found.repaired:
        yield f"repaired  {path}"
    for item in found.differences:
        package = f"  [{item.package}]" if item.package else ""
        reason = f": {item.reason}" if item.kind == "changed" else ""
        yield f"{item.kind:<9} {item.path}{package}{reason}"
    if not found.differences:
        yield f"{found.name}@{found.id}: {found.files} files are as they were installed"


def describe_removal(removal: Removal) -> Iterator[str]:
    """Yield what was removed and what was not."""
    for id_ in removal.removed:
        yield f"removed {removal.name}@{id_}"
    for id_, reason in removal.kept.items():
        yield f"kept    {removal.name}@{id_}: {reason}"


def describe_installation(installation: Installation, options: InstallOptions) -> str:
    """Return what to tell the operator."""
    place = absolute_path(options.envs_dir) / installation.name
    text = f"{installation.name}@{installation.id} is installed: {place}"
    if installation.prefix != str(place):
        text += f"\nfor the path {installation.prefix}"
    return f"{text}\n{installation.files} files, {human_bytes(installation.size)}"
