"""The command install: an artifact, an archive or an image becomes an environment of this host."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from envferry.base.files import absolute_path
from envferry.base.text import human_bytes, plural
from envferry.cli.shared.command import argument, command, option
from envferry.cli.shared.completions import complete_refs
from envferry.cli.shared.hooks import run_hooks
from envferry.cli.shared.host_report import report_host
from envferry.cli.shared.shared_options import (
    DryRunOptions,
    EnvsDirOptions,
    IdentityOptions,
    RegistryOptions,
    SignatureOptions,
    ThreadOptions,
    becomes,
)
from envferry.config import settings, user_kernels
from envferry.errors import NotFound, UsageError
from envferry.install.records.env_home import IMAGE_SUFFIX, PARTIAL
from envferry.install.records.installation import Finding
from envferry.install.tree.link_mode import Link
from envferry.trust.host_keys import load_trust

if TYPE_CHECKING:
    from envferry.cli.shared.console import Console
    from envferry.install.records.installation import Installation, Origin
    from envferry.install.stage import InstallOptions, InstallPreview
    from envferry.trust.host_trust import Trust


class InstallCommandOptions(
    DryRunOptions,
    SignatureOptions,
    IdentityOptions,
    RegistryOptions,
    ThreadOptions,
    EnvsDirOptions,
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
    unless_current: bool = option(
        "--unless-current",
        is_flag=True,
        help="Change nothing where the records of this host say that REF is current, signed by who "
        "is trusted, and passed its checks: one request, no file is looked at. With --no-check, "
        "checks that never ran here are not asked for; those that failed here run again.",
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


@command(InstallCommandOptions)
def install(console: Console, options: InstallCommandOptions) -> None:
    """Install REF, whole or not at all: NAME, NAME@TAG, NAME@ID, or an archive file.

    Files that other environments on this host have are verified and shared; only the rest is read.
    An interrupted install resumes where it stopped.

    From outside a container into its volume, for the path inside it:
    `envferry install demo --envs-dir ./conda/envs --prefix /opt/conda/envs/demo`
    """
    from envferry.install.stage import install_artifact, preview_install
    from envferry.install.unchanged import without_known_failures
    from envferry.registry.accepted_sources import opened_archive, origin_of, settled

    trust = load_trust(
        options.trusted_keys,
        # Without the directory no tag is remembered: a dry run leaves no trace.
        None if options.dry_run else options.envs_dir,
        allow_downgrade=options.allow_downgrade,
        require_signature=options.require_signature,
    )
    trust = options.with_identity(trust)
    if options.mount:
        install_mounted(console, options, trust)
        return
    if options.unless_current:
        wanted = options.as_install_options(None)
        if there := settled(options.ref, options.registry, trust, wanted):
            console.result(there, lambda: [describe_installation(there, wanted)])
            return
    with opened_archive(options.ref, options.registry, trust) as (source, manifest):
        origin = origin_of(options.ref, options.registry, trust.signers_of(manifest))
        wanted = options.as_install_options(origin)
        if options.unless_current:
            wanted = without_known_failures(manifest.name, manifest.id, wanted)
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
    # Last: a hook that fails ends the command, and all else is done by then.
    run_hooks("install", installation, options.envs_dir)


def note_compilers(console: Console, installation: Installation, envs_dir: Path) -> None:
    """Say what this host lacks for packages that compile while they run, if they run here."""
    from envferry.install.host.host_compilers import find_compilers
    from envferry.install.records.env_home import EnvHome

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
    # The option alone gives an empty text: wanted, at the usual place.
    set_up = settings().kernel_dir
    return set_up or (user_kernels() if told is not None else None)


def modulefile_directory(told: str | None) -> Path | None:
    """Return where a modulefile goes; raise UsageError where nothing says so."""
    if told:
        return Path(told)
    set_up = settings().modulefile_dir
    # The option alone gives an empty text: wanted, at the place of the settings.
    if told is not None and set_up is None:
        message = "--modulefile names no directory, and no setting does"
        raise UsageError(
            message, hint="give --modulefile DIR, or set modulefile_dir (`envferry config`)"
        )
    return set_up


def install_mounted(console: Console, options: InstallCommandOptions, trust: Trust) -> None:
    """Install an image that is there, or one that is made of an artifact here."""
    from envferry.cli.image import make_image
    from envferry.install.cleanup import changing
    from envferry.install.image import image_there, is_image, mount_image, read_image
    from envferry.install.records.env_home import EnvHome
    from envferry.install.tree.mounting import require_right_to_mount
    from envferry.registry.accepted_sources import opened_archive, origin_of

    if options.dry_run:
        message = "--mount has no --dry-run"
        raise UsageError(message, hint="leave one of the two out")
    # Before anything is fetched or made for it.
    require_right_to_mount()
    place = Path(options.ref)
    if place.suffix == IMAGE_SUFFIX and not place.exists():
        message = f"the image {place} does not exist"
        raise NotFound(message, hint=f"`envferry image REF {shlex.quote(str(place))}` makes one")
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
            there = image_there(home, manifest.id, wanted)
            if there is not None:
                image = there
            else:
                # The name under which `mount_image` would bring it, so that it is not copied.
                target = home.directory / f"{PARTIAL}{manifest.id}{IMAGE_SUFFIX}"
                with changing(home, installing=manifest.id):
                    image = make_image(console, (source, manifest), target, wanted)
        # It was made here, of an archive whose signatures were checked when it was opened.
        installation = mount_image(
            image, options=wanted, progress=console.progress, accept=lambda _: origin.signed_by
        )
    report_installed(console, installation, wanted)


def describe_plan(plan: InstallPreview) -> str:
    """Return what an install will read."""
    text = (
        f"{plan.name}@{plan.id}: {plan.fetch_bytes:,} of {plan.archive_bytes:,} bytes to read"
        f" ({plan.frames} of {plan.all_frames} frames)"
    )
    if plan.reused:
        text += f"; {plan.reused:,} of {plan.files:,} files already present"
    return text


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
