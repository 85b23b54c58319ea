"""The command verify: what is installed against its record, or an artifact and its signatures."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from envferry.base.files import absolute_path
from envferry.base.text import plural
from envferry.cli.shared.command import argument, command, option
from envferry.cli.shared.completions import complete_installed
from envferry.cli.shared.installations import home_of
from envferry.cli.shared.shared_options import (
    EnvsDirOptions,
    IdentityOptions,
    PlatformOptions,
    RegistryOptions,
    SignatureOptions,
)
from envferry.cli.verify_artifact import SignedRef, verify_ref
from envferry.config import settings
from envferry.errors import IntegrityError
from envferry.install.records.actor import current_actor, utc_now
from envferry.names import ID_PATTERN
from envferry.trust.host_keys import load_trust

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.cli.shared.console import Console
    from envferry.install.records.env_home import EnvHome
    from envferry.install.verify import Verified
    from envferry.trust.host_trust import Trust


class VerifyOptions(
    SignatureOptions, IdentityOptions, PlatformOptions, RegistryOptions, EnvsDirOptions
):
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
        """Read the keys and identities that this host trusts."""
        trust = load_trust(self.trusted_keys, require_signature=self.require_signature)
        return self.with_identity(trust)


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
    # Records have absolute paths, where settings may have relative ones.
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
