"""The command `image`: an environment as one file to mount."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from envferry.base.files import write_bytes
from envferry.base.text import human_bytes
from envferry.cli.shared.command import argument, command, option
from envferry.cli.shared.completions import complete_refs
from envferry.cli.shared.shared_options import (
    EnvsDirOptions,
    RegistryOptions,
    SignatureOptions,
    SignKeyOptions,
)
from envferry.errors import NotFound, UsageError
from envferry.names import ENVS_DIR
from envferry.trust.host_keys import load_signer, load_trust

if TYPE_CHECKING:
    from envferry.archive.reader import Source
    from envferry.cli.shared.console import Console
    from envferry.install.image import Image
    from envferry.install.plan import InstallOptions
    from envferry.models import Manifest


class ImageOptions(SignatureOptions, SignKeyOptions, RegistryOptions, EnvsDirOptions):
    """What to make an image of."""

    ref: str = argument(shell_complete=complete_refs)
    file: Path = argument(metavar="FILE", type=click.Path(path_type=Path))
    prefix: str | None = option(
        "-p",
        "--prefix",
        metavar="PATH",
        help="The path at which it will be mounted; default: /opt/conda/envs/NAME.",
    )
    name: str | None = option(
        "-n", "--name", metavar="NAME", help="Another name than the environment's."
    )
    installed: bool = option(
        "--installed",
        is_flag=True,
        help="Make it from an installation: REF is NAME or NAME@ID, the prefix its own.",
    )


@command(ImageOptions)
def image(console: Console, options: ImageOptions) -> None:
    """Write the artifact REF (or an archive) as one squashfs image FILE, for `install --mount`.

    With --installed the image is made from an installation on this host, without the archive.
    `envferry install FILE --mount` puts it in place; apptainer and `mount -o loop` take it, too.
    The same artifact and prefix give the same bytes.
    """
    from envferry.trust.image_signature import attest_image
    from envferry.trust.signed_files import attestation_of

    if not options.file.absolute().parent.is_dir():
        message = f"the directory {options.file.parent} does not exist"
        raise NotFound(message, hint="make it, or name another FILE")
    signer = load_signer(options.sign_keys)
    attestation = attestation_of(options.file)
    write = image_of_installed if options.installed else image_of_artifact
    written = write(console, options)
    # That of an earlier image under this name: it is not about these bytes.
    attestation.unlink(missing_ok=True)
    if signer:
        write_bytes(attestation, attest_image(options.file, signer))
    installation = written.record.installation
    facts = {
        "file": options.file,
        "size": written.size,
        "id": installation.id,
        "prefix": installation.prefix,
        "signed": signer is not None,
    }
    line = f"{options.file}: {human_bytes(written.size)}, for {installation.prefix}"
    console.result(facts, lambda: [line])


def image_of_artifact(console: Console, options: ImageOptions) -> Image:
    """Write the image of an artifact, once the host accepts who made it."""
    from envferry.install.plan import InstallOptions
    from envferry.registry.accepted_sources import opened_archive

    trust = load_trust(options.trusted_keys, require_signature=options.require_signature)
    with opened_archive(options.ref, options.registry, trust) as source:
        # Whatever this machine has installed: the same artifact gives the same image everywhere.
        prefix = options.prefix or str(ENVS_DIR / (options.name or source[1].name))
        wanted = InstallOptions(envs_dir=ENVS_DIR, name=options.name, prefix=prefix)
        return make_image(console, source, options.file, wanted)


def image_of_installed(console: Console, options: ImageOptions) -> Image:
    """Write the image of an installation, for the prefix that it has."""
    from envferry.cli.shared.installations import home_of
    from envferry.install.image import write_installed_image

    if options.name or options.prefix:
        message = "an image of an installation is for the name and prefix that it has"
        raise UsageError(message, hint="leave out --name and --prefix, or name its archive")
    home, id_ = home_of(options.ref, options.envs_dir)
    return write_installed_image(home, id_, options.file, progress=console.progress)


def make_image(
    console: Console, source: tuple[Source, Manifest], target: Path, options: InstallOptions
) -> Image:
    """Write the image of an artifact that is open."""
    from envferry.archive.identity import check_manifest
    from envferry.archive.reader import Archive
    from envferry.install.image import write_image

    archive = Archive(source[0])
    check_manifest(archive, source[1])
    return write_image(archive, source[1], target, options=options, progress=console.progress)
