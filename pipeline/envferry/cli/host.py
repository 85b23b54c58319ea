"""Commands of the training host: fetch, install, verify."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from envferry.base.files import absolute_path, human_bytes, make_folders, plural
from envferry.cli.command import argument, command, option
from envferry.cli.completing import complete_installed, complete_refs
from envferry.cli.hooks import run_hooks
from envferry.cli.host_report import report_host
from envferry.cli.installed import home_of
from envferry.cli.shared_options import (
    DryRunOptions,
    EnvsDirOptions,
    PlatformOptions,
    RegistryOptions,
    SignatureOptions,
    ThreadOptions,
    becomes,
)
from envferry.cli.trust import SignedRef, verify_ref
from envferry.config import settings, user_kernels
from envferry.errors import IntegrityError, UsageError
from envferry.install.actor import current_actor, utc_now
from envferry.install.env_home import IMAGE_SUFFIX, PARTIAL
from envferry.install.installation import Finding
from envferry.install.link_mode import Link
from envferry.models import Artifact
from envferry.names import ID_PATTERN, Ref
from envferry.trust.host_keys import load_trust

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.cli.console import Console
    from envferry.install.env_home import EnvHome
    from envferry.install.installation import Installation, Origin
    from envferry.install.stage import InstallOptions, InstallPreview
    from envferry.install.verify import Verified
    from envferry.registry import Registry
    from envferry.trust.host_trust import Trust


class FetchOptions(DryRunOptions, SignatureOptions, PlatformOptions, RegistryOptions):
    """Which artifact to bring where."""

    ref: str = argument(shell_complete=complete_refs)
    output: Path = option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        default=Path(),
        show_default=True,
        help="The directory to write the artifact to.",
    )


class InstallCommandOptions(
    DryRunOptions, SignatureOptions, RegistryOptions, ThreadOptions, EnvsDirOptions
):
    """What to install, where and how."""

    ref: str = argument(shell_complete=complete_refs)
    prefix: str | None = option(
        "-p",
        "--prefix",
        metavar="PATH",
        help="The path at which the environment is used; default: that of the current installation,"
        " else ENVS_DIR/NAME.",
    )
    name: str | None = option(
        "-n", "--name", metavar="NAME", help="Install under another name than the environment's."
    )
    replace: bool = option(
        "--replace", is_flag=True, help="Move aside anything in the way that envferry did not make."
    )
    no_check: bool = option("--no-check", is_flag=True, help="Do not run the environment's checks.")
    link: Link = option(
        "--link",
        type=click.Choice([link.value for link in Link]),
        default=lambda: settings().link,
        show_default="auto",
        callback=becomes(Link),
        help="How to share unchanged files with existing installations; auto: reflinks, else hard "
        "links, which are read-only. Copies share nothing.",
    )
    force: tuple[str, ...] = option(
        "--force",
        multiple=True,
        type=click.Choice(get_args(Finding)),
        help="Install despite this finding of the host check; repeatable.",
    )
    kernel: str | None = option(
        "--kernel",
        is_flag=False,
        flag_value="",
        metavar="[DIR]",
        help="Also make a Jupyter kernel, in DIR or the usual directory; it follows updates and "
        "rollbacks and goes with the environment. `none` removes it.",
    )
    modulefile: str | None = option(
        "--modulefile",
        is_flag=False,
        flag_value="",
        metavar="[DIR]",
        help="Also make a modulefile (Lmod, Environment Modules) in DIR or the directory of the "
        "settings, in the same way.",
    )
    allow_downgrade: bool = option(
        "--allow-downgrade", is_flag=True, help="Accept a tag that was moved back."
    )
    verify_shared: bool = option(
        "--verify-shared",
        is_flag=True,
        help="Read every file before it is shared, even if nothing was written to it since the last"
        " install or verification.",
    )
    mount: bool = option(
        "--mount",
        is_flag=True,
        help="Mount an image instead of unpacking: REF is one, or one is made of it here.",
    )

    def as_install_options(self, origin: Origin | None) -> InstallOptions:
        """Return what the stage is to do."""
        from envferry.install.stage import InstallOptions

        return InstallOptions(
            envs_dir=self.envs_dir,
            name=self.name,
            prefix=self.prefix,
            replace=self.replace,
            check=not self.no_check,
            link=self.link,
            force=self.force,
            threads=self.threads,
            verify_shared=self.verify_shared,
            origin=origin,
            kernel_dir=kernel_directory(self.kernel),
            modulefile_dir=modulefile_directory(self.modulefile),
        )


class VerifyOptions(SignatureOptions, PlatformOptions, RegistryOptions, EnvsDirOptions):
    """What to verify, and whether to repair it."""

    name: str = argument(metavar="NAME|REF", shell_complete=complete_installed)
    quick: bool = option(
        "--quick", is_flag=True, help="Compare only sizes, modes and times; read no files."
    )
    repair: bool = option("--repair", is_flag=True, help="Restore what is changed or missing.")
    file: str | None = option(
        "-f", "--file", "--archive", metavar="FILE", help="Repair from this archive."
    )
    published: bool = option(
        "--published", is_flag=True, help="Verify the artifact even if it is installed here."
    )

    def trust(self) -> Trust:
        """Read the keys that this host trusts."""
        return load_trust(self.trusted_keys, require_signature=self.require_signature)


@command(FetchOptions)
def fetch(console: Console, options: FetchOptions) -> None:
    """Bring the artifact REF (NAME, NAME@TAG or NAME@ID) to a directory, verified.

    Carry the directory to a host without network and run `envferry install` on the archive there.
    """
    from envferry import api
    from envferry.registry.accepted_sources import open_trusting

    trust = load_trust(options.trusted_keys, require_signature=options.require_signature)
    if options.dry_run:
        preview_fetch(console, options, open_trusting(options.registry, trust))
        return
    artifact = api.fetch(
        options.ref,
        options.output,
        registry=open_trusting(options.registry, trust),
        platform=options.platform,
        progress=console.progress,
    )
    facts = {"archive": artifact.archive_path, "id": artifact.manifest.id}
    console.result(facts, lambda: [str(artifact.archive_path)])


def preview_fetch(console: Console, options: FetchOptions, registry: Registry) -> None:
    """Print what a fetch would bring."""
    ref, platform = Ref.parse(options.ref), options.platform
    manifest = registry.manifest(ref.name, platform, registry.resolve(ref, platform))
    registry.require_archive(manifest)
    path, size = (
        Artifact(directory=options.output, manifest=manifest).archive_path,
        manifest.archive.size,
    )
    is_there = path.is_file() and path.stat().st_size == size
    facts = {"archive": path, "id": manifest.id, "size": size, "present": is_there}
    line = f"{path}: would be fetched, {human_bytes(size)}"
    if is_there:
        line = f"{path} already present: would be verified"
    console.preview(facts, lambda: [line])


@command(InstallCommandOptions)
def install(console: Console, options: InstallCommandOptions) -> None:
    """Install REF, whole or not at all: NAME, NAME@TAG, NAME@ID, or an archive file.

    Files that other environments on this host have are verified and shared; only the rest is read.
    An interrupted install resumes where it stopped.

    From outside a container into its volume, for the path inside it:
    `envferry install demo --envs-dir ./conda/envs --prefix /opt/conda/envs/demo`
    """
    from envferry.install.stage import install_artifact, preview_install
    from envferry.registry.accepted_sources import opened_archive, origin_of

    trust = load_trust(
        options.trusted_keys,
        None if options.dry_run else options.envs_dir,
        allow_downgrade=options.allow_downgrade,
        require_signature=options.require_signature,
    )
    if options.mount:
        install_mounted(console, options, trust)
        return
    with opened_archive(options.ref, options.registry, trust) as (source, manifest):
        origin = origin_of(options.ref, options.registry, trust.signers_of(manifest))
        wanted = options.as_install_options(origin)
        if options.dry_run:
            plan = preview_install(source, manifest, options=wanted)
            console.preview(plan, lambda: [describe_plan(plan)])
            return
        installation = install_artifact(
            source,
            manifest,
            options=wanted,
            progress=console.progress,
            announce=lambda plan: console.note(describe_plan(plan)) if plan.saves else None,
        )
    report_installed(console, installation, wanted)


def report_installed(console: Console, installation: Installation, options: InstallOptions) -> None:
    """Print what was installed, what the host lacks for it, and run the site's hooks."""
    console.result(installation, lambda: [describe_installation(installation, options)])
    note_compilers(console, installation, options.envs_dir)
    report_host(options.envs_dir)
    run_hooks("install", installation, options.envs_dir)


def note_compilers(console: Console, installation: Installation, envs_dir: Path) -> None:
    """Say what this host lacks for packages that compile while they run, if they run here."""
    from envferry.install.env_home import EnvHome
    from envferry.install.host_compilers import find_compilers

    home = EnvHome.of(envs_dir, installation.name)
    if installation.prefix != str(home.link):
        return
    for one in find_compilers(home, installation.id):
        if one.lacks:
            console.note(f"{one}, which this host does not have")


def kernel_directory(told: str | None) -> Path | None:
    """Return where a kernel goes, as the command line or the settings say; None for nowhere new."""
    if told:
        return Path(told)
    set_up = settings().kernel_dir
    return set_up or (user_kernels() if told is not None else None)


def modulefile_directory(told: str | None) -> Path | None:
    """Return where a modulefile goes; raise UsageError where nothing says so."""
    if told:
        return Path(told)
    set_up = settings().modulefile_dir
    if told is not None and set_up is None:
        message = "--modulefile names no directory, and no setting does"
        raise UsageError(
            message, hint="give --modulefile DIR, or set modulefile_dir (`envferry config`)"
        )
    return set_up


def install_mounted(console: Console, options: InstallCommandOptions, trust: Trust) -> None:
    """Install an image that is there, or one that is made of an artifact here."""
    from envferry.cli.image import make_image
    from envferry.install.env_home import EnvHome
    from envferry.install.image import is_image, mount_image, read_image
    from envferry.registry.accepted_sources import opened_archive, origin_of

    if options.dry_run:
        message = "--mount has no --dry-run"
        raise UsageError(message, hint="leave one of the two out")
    place = Path(options.ref)
    if is_image(place):
        wanted = options.as_install_options(origin_of(options.ref, options.registry))
        image = read_image(place)
        trust.forbid_revoked_index(image.index)
        installation = mount_image(
            image,
            options=wanted,
            progress=console.progress,
            accept=lambda path: trust.check_image(path, of=place),
        )
    else:
        with opened_archive(options.ref, options.registry, trust) as (source, manifest):
            origin = origin_of(options.ref, options.registry, trust.signers_of(manifest))
            wanted = options.as_install_options(origin)
            home = EnvHome.of(wanted.envs_dir, wanted.name or manifest.name)
            make_folders(home.directory)
            target = home.directory / f"{PARTIAL}{manifest.id}{IMAGE_SUFFIX}"
            image = make_image(console, (source, manifest), target, wanted)
        installation = mount_image(
            image, options=wanted, progress=console.progress, accept=lambda _: origin.signed_by
        )
    report_installed(console, installation, wanted)


@command(VerifyOptions)
def verify(console: Console, options: VerifyOptions) -> None:
    """Compare the installed NAME or NAME@ID with what was installed; or verify an artifact.

    For an environment: lists every file that is changed, missing or extra, and exits with 8 if
    there is one. With --repair, only what is changed or missing is read, from --file or from
    the registry.

    An archive FILE, NAME@TAG, or a NAME@ID that is not installed here is an artifact: its
    signatures are verified with the trusted keys, and every byte with what is signed. So is the
    folder `tool` of an export, which holds envferry itself, and an envferry.run.
    """
    if options.published or not is_installed(options.name, options.envs_dir):
        wanted = SignedRef(ref=options.name, platform=options.platform, registry=options.registry)
        verify_ref(console, wanted, options.trust())
    else:
        verify_installed(console, options)


def is_installed(name: str, envs_dir: Path) -> bool:
    """Whether a word names an installation, or an environment: a host knows no tags."""
    from envferry.registry.accepted_sources import is_file_ref
    from envferry.trust.tool_signature import is_run_file, is_tool

    if is_file_ref(name):
        return False
    home, at, id_ = name.partition("@")
    if is_tool(Path(name)) or is_run_file(
        Path(name)
    ):  # unless there is an environment of that name
        return home_of(name, envs_dir)[0].directory.exists()
    return not at or bool(
        ID_PATTERN.fullmatch(id_) and home_of(home, envs_dir)[0].record(id_).exists()
    )


def verify_installed(console: Console, options: VerifyOptions) -> None:
    """Compare an installation with its record; repair it if that is wanted."""
    from envferry.install.verify import verify_installation

    home, id_ = home_of(options.name, options.envs_dir)
    found = verify_installation(
        home, id_, quick=options.quick, progress=console.progress, time=utc_now()
    )
    if options.repair and found.faults:
        found = repair(console, home, found, options)
    console.result(found, lambda: describe_verified(found))
    if found.differences:
        words = f"{options.name} --repair{archive_words(home, found.id, options)}"
        hint = f"run `envferry verify {words}` to restore changed or missing files"
        if not found.faults:
            hint = "these files were added later; remove those that do not belong there"
        others = sorted({name for item in found.faults for name in item.shared_with})
        if others:
            hint += f"; the same files are part of {', '.join(others)}: repair these as well"
        count = len(found.differences)
        message = f"{home.name}@{found.id} differs from what was installed (differences: {count})"
        raise IntegrityError(message, hint=hint)


def archive_words(home: EnvHome, id_: str, options: VerifyOptions) -> str:
    """Return the options with which a repair finds what was installed where it came from."""
    from envferry.registry.accepted_sources import is_file_ref

    origin = home.installation(id_).origin
    usual = settings().registry
    places = {usual, str(absolute_path(Path(usual)))}
    if origin is None or origin.source in places or options.registry != usual or options.file:
        return ""
    name = "--file" if is_file_ref(origin.ref) else "--registry"
    return f" {name} {shlex.quote(origin.source)}"


def repair(console: Console, home: EnvHome, found: Verified, options: VerifyOptions) -> Verified:
    """Repair an installation from an archive, or from what the registry has of it."""
    from envferry.archive.reader import Archive
    from envferry.install.verify import repair_installation
    from envferry.registry.accepted_sources import opened_archive

    with opened_archive(options.file or found.ref, options.registry, options.trust()) as (
        source,
        _,
    ):
        return repair_installation(
            home, found, Archive(source), progress=console.progress, actor=current_actor()
        )


def describe_plan(plan: InstallPreview) -> str:
    """Return what an install will read."""
    text = (
        f"{plan.name}@{plan.id}: {plan.fetch_bytes:,} of {plan.archive_bytes:,} bytes to read"
        f" ({plan.frames} of {plan.all_frames} frames)"
    )
    if plan.reused:
        text += f"; {plan.reused} of {plan.files} files already present"
    return text


def describe_verified(found: Verified) -> Iterator[str]:
    """Yield what a verification found, one path a line."""
    for path in found.repaired:
        yield f"repaired  {path}"
    for item in found.differences:
        package = f"  [{item.package}]" if item.package else ""
        reason = f": {item.reason}" if item.kind == "changed" else ""
        shared = f"; shared with {', '.join(item.shared_with)}" if item.shared_with else ""
        yield f"{item.kind:<9} {item.path}{package}{reason}{shared}"
    if not found.differences:
        yield f"{found.name}@{found.id}: {plural(found.files, 'file')} unchanged since the install"


def describe_installation(installation: Installation, options: InstallOptions) -> str:
    """Return what to tell the operator."""
    place = absolute_path(options.envs_dir) / installation.name
    text = f"{installation.name}@{installation.id} installed in {place}"
    if installation.prefix != str(place):
        text += f"\nfor use at {installation.prefix}"
    text += f"\n{plural(installation.files, 'file')}, {human_bytes(installation.size)}"
    if sharing := installation.sharing:
        text += (
            f"\n{plural(sharing.files, 'file')}, {human_bytes(sharing.size)}, shared with "
            f"{', '.join(sharing.with_)}: hard links, read-only"
        )
    return f"{text}\nconda_env: {installation.name}"
