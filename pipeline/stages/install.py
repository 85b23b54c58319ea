"""Stage 6, install: Artifact -> Installation."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from pipeline import process
from pipeline.archive.extraction import ExtractOptions, extract_tree
from pipeline.archive.prefixes import Relocation
from pipeline.archive.reader import Archive
from pipeline.errors import IntegrityError, PipelineError, TargetOccupied, ToolFailed, UsageError
from pipeline.files import exclusive_lock, require_space, sync_directory, to_json, write_bytes
from pipeline.host import PARTIAL, EnvHome, check_host
from pipeline.models import ENVS_DIR, Checks, Installation, Manifest, SystemRequirements

if TYPE_CHECKING:
    from pipeline.archive.index import Index
    from pipeline.archive.reader import Source
    from pipeline.progress import Progress

BASE_NAMES = ("base", "root")
BLOCK_BYTES = 4096
"""What a file's last block wastes, at most, on the usual file systems."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallOptions:
    """Where and how to install."""

    envs_dir: Path = ENVS_DIR
    name: str | None = None
    """Another name than the environment was built with."""
    prefix: str | None = None
    """The path it shall believe it lives at; where it really is when None."""
    replace: bool = False
    """Move aside what is already there and is not ours."""
    check: bool = True
    """Run the environment's checks afterwards, and go back when they fail."""
    threads: int = 0


def install_artifact(
    source: Source, manifest: Manifest | None, *, options: InstallOptions, progress: Progress
) -> Installation:
    """Install an archive under its name, whole or not at all, and make it the current one.

    From frames to files in one pass, into a directory of its own; then the record; then one atomic
    change of a symbolic link. Until that last step the old environment is untouched.
    Raises IntegrityError, HostError or TargetOccupied with nothing changed.
    """
    archive = Archive(source)
    if manifest is not None:
        check_manifest(archive, manifest)
    home = EnvHome.of(options.envs_dir, options.name or archive.index.name)
    installation = plan_installation(archive.index, manifest, home, options)
    check_target(home, installation.prefix, replace=options.replace)
    requirements = manifest.requirements if manifest else SystemRequirements()
    check_host(archive.index.platform, requirements)
    with exclusive_lock(home.lock_path, f"the environment {home.name}"):
        if not is_installed(home, installation):
            write_tree(archive, home, installation, options, progress)
        make_current(home, installation, options, progress)
    return installation


def check_manifest(archive: Archive, manifest: Manifest) -> None:
    """Raise IntegrityError unless this is the archive that the manifest describes.

    The index binds every frame and every file; the manifest binds the index.
    """
    index_blake3 = blake3(archive.index_frame).hexdigest()
    found = (archive.source.size, archive.index.id, index_blake3)
    expected = (manifest.archive.size, manifest.id, manifest.archive.index_blake3)
    if found != expected:
        message = (
            f"{archive.name} is not the archive of its manifest: "
            f"found {found[0]} bytes, id {found[1]}, expected {expected[0]} bytes, id {expected[1]}"
        )
        raise IntegrityError(message, hint="fetch both again")


def plan_installation(
    index: Index, manifest: Manifest | None, home: EnvHome, options: InstallOptions
) -> Installation:
    """Return the record of the installation that is to be made."""
    return Installation(
        name=home.name,
        id=index.id,
        platform=index.platform,
        prefix=options.prefix or str(home.link),
        built_prefix=index.prefix,
        archive_xxh128=manifest.archive.xxh128 if manifest else "",
        files=len(index.files),
        size=sum(entry.size for entry in index.files),
        checks=manifest.checks if manifest else Checks(),
    )


def check_target(home: EnvHome, prefix: str, *, replace: bool) -> None:
    """Raise unless `envs/NAME` is free, ours, or may be replaced."""
    if home.name in BASE_NAMES:
        raise UsageError(f"{home.name} is conda's own environment and never a target")
    if not Path(prefix).is_absolute():
        raise UsageError(f"the prefix {prefix} is not an absolute path")
    is_taken = home.link.exists() or home.link.is_symlink()
    if is_taken and home.current_id() is None and not replace:
        what = "a link elsewhere" if home.link.is_symlink() else "not ours"
        raise TargetOccupied(
            f"{home.link} exists and is {what}: left untouched",
            hint="use another --name, or --replace to move it aside",
        )


def is_installed(home: EnvHome, wanted: Installation) -> bool:
    """Whether the same artifact is already installed for the same prefix."""
    record = home.record(wanted.id)
    return record.is_file() and home.installation(wanted.id).prefix == wanted.prefix


def write_tree(
    archive: Archive,
    home: EnvHome,
    installation: Installation,
    options: InstallOptions,
    progress: Progress,
) -> None:
    """Extract the tree, put it in place, then write its record: no record, no installation."""
    if home.current_id() == installation.id:
        raise TargetOccupied(
            f"{home.link} is the same artifact, installed for another prefix",
            hint="install it under another --name",
        )
    needed = installation.size + BLOCK_BYTES * installation.files
    for leftover in home.directory.glob(f"{PARTIAL}*"):
        shutil.rmtree(leftover)
    require_space(home.directory, needed, f"the environment {home.name}")
    partial, tree = home.partial(installation.id), home.tree(installation.id)
    partial.mkdir(parents=True)
    relocation = Relocation(archive.index.prefix, installation.prefix)
    try:
        with progress.task(f"install {home.name}", archive.index.tar_size) as advance:
            extract_tree(
                archive,
                partial,
                options=ExtractOptions(relocation=relocation, threads=options.threads),
                advance=advance,
            )
    except (PipelineError, KeyboardInterrupt):
        shutil.rmtree(partial, ignore_errors=True)
        raise
    home.record(installation.id).unlink(missing_ok=True)
    if tree.exists():
        shutil.rmtree(tree)
    partial.rename(tree)
    sync_directory(home.directory)
    write_bytes(home.index(installation.id), archive.index_frame)
    write_bytes(home.record(installation.id), to_json(installation))


def make_current(
    home: EnvHome, installation: Installation, options: InstallOptions, progress: Progress
) -> None:
    """Flip the link; run the checks; flip back when one fails."""
    before = home.current_id()
    aside = move_aside(home) if before is None else None
    home.point_at(installation.id)
    if not options.check or installation.prefix != str(home.link):
        return
    try:
        run_checks(installation.checks, installation.prefix, progress)
    except BaseException:
        home.point_at(before)
        if aside is not None:
            aside.rename(home.link)
        raise


def move_aside(home: EnvHome) -> Path | None:
    """Rename what stands at `envs/NAME` and is not ours; return where it is now."""
    if not home.link.exists() and not home.link.is_symlink():
        return None
    number = 1
    while (aside := home.envs_dir / f"{home.name}.before-{number}").exists():
        number += 1
    home.link.rename(aside)
    return aside


def run_checks(checks: Checks, prefix: str, progress: Progress) -> None:
    """Run the environment's own checks at its place; raise ToolFailed at the first that fails."""
    argvs = checks.argvs(prefix)
    if not argvs:
        return
    environ = {"PATH": f"{prefix}/bin:/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp"}
    with progress.task(f"check {len(argvs)} imports and commands"):
        for argv in argvs:
            finished = process.run(argv, env=environ, check=False)
            if finished.returncode != 0:
                lines = (finished.stderr.strip() or finished.stdout.strip()).splitlines()[-12:]
                what = f"the check `{argv[-1]}` failed on this host; the link was put back:"
                raise ToolFailed(
                    "\n  ".join([what, *lines]),
                    hint="`envferry install --no-check` installs it all the same",
                )
