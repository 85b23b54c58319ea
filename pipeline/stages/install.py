"""Stage 6, install: Artifact -> Installation."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from blake3 import blake3

from pipeline import process
from pipeline.archive.donors import Donors, Link, Supply, choose_link
from pipeline.archive.extraction import (
    ExtractOptions,
    extract_tree,
    make_directories,
    needed_frames,
)
from pipeline.archive.journal import Journal, read_journal
from pipeline.archive.prefixes import Relocation
from pipeline.archive.reader import Archive
from pipeline.archive.resuming import Kept, clear_others, find_kept
from pipeline.archive.validation import is_sane_prefix
from pipeline.errors import HostError, IntegrityError, TargetOccupied, ToolFailed, UsageError
from pipeline.files import exclusive_lock, sync_directory, to_json, write_bytes
from pipeline.host import PARTIAL, EnvHome
from pipeline.host_check import Needs, check_host, cuda_runtime
from pipeline.installations import find_donors
from pipeline.models import ENVS_DIR, Checks, Installation, Manifest, SystemRequirements

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pipeline.archive.contents import Content
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
    link: Link = Link.AUTO
    """How unchanged files come from what is installed already."""
    force: tuple[str, ...] = ()
    """Findings of the host check to live with."""
    threads: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallPlan:
    """What an install will do, known before it reads a frame."""

    name: str
    id: str
    files: int
    reused: int
    """Files that an interrupted install or other installations have."""
    frames: int
    all_frames: int
    fetch_bytes: int
    """Exactly what is read of the archive: its index and these frames."""
    archive_bytes: int


def install_artifact(
    source: Source,
    manifest: Manifest | None,
    *,
    options: InstallOptions,
    progress: Progress,
    announce: Callable[[InstallPlan], None] = lambda plan: None,
) -> Installation:
    """Install an archive under its name, whole or not at all, and make it the current one.

    What other installations have is shared, verified, and only the rest is read: from frames to
    files in one pass, into a directory of its own; then the record; then one atomic change of a
    symbolic link. Until that last step the old environment is untouched. `announce` is told what
    will be read before that begins. Raises IntegrityError, HostError or TargetOccupied with
    nothing changed.
    """
    order = prepare_install(source, manifest, options)
    home, installation = order.home, order.installation
    with exclusive_lock(home.lock_path, f"the environment {home.name}"):
        if is_installed(home, installation):
            installation = home.installation(installation.id)
        else:
            installation = write_tree(order, progress, announce)
        make_current(home, installation, options, progress)
    return installation


def preview_install(
    source: Source, manifest: Manifest | None, *, options: InstallOptions
) -> InstallPlan:
    """Say what an install would read, to the byte, and change nothing; raise what it would."""
    order = prepare_install(source, manifest, options)
    if is_installed(order.home, order.installation):
        return describe_plan(order, range(len(order.archive.index.files)), [])
    kept = find_leftover(order)
    rest = order.donors.candidates(order.archive.index, order.relocation, kept.files)
    present = kept.files | Supply(order.archive.index, rest, Link.COPY).verify()
    return describe_plan(order, present, needed_frames(order.archive, present, kept.frames))


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallOrder:
    """An install that nothing speaks against."""

    archive: Archive
    home: EnvHome
    installation: Installation
    """Its record, but for the files that will be edited."""
    relocation: Relocation
    donors: Donors
    options: InstallOptions

    @property
    def journal_subject(self) -> str:
        """What the journal of this install starts with: another archive or prefix is another."""
        digest = blake3(self.archive.index_frame).hexdigest()
        return f"envferry {digest} {self.installation.prefix}"


def prepare_install(
    source: Source, manifest: Manifest | None, options: InstallOptions
) -> InstallOrder:
    """Read the index and check archive, target and host; write nothing."""
    archive = Archive(source)
    if manifest is not None:
        check_manifest(archive, manifest)
    home = EnvHome.of(options.envs_dir, options.name or archive.index.name)
    installation = plan_installation(archive.index, manifest, home, options)
    check_target(home, installation, replace=options.replace)
    relocation = Relocation(archive.index.prefix, installation.prefix, archive.index)
    relocation.check(archive.index)
    donors = Donors()
    if not is_installed(home, installation):
        donors = find_donors(home, installation)
    order = InstallOrder(
        archive=archive,
        home=home,
        installation=installation,
        relocation=relocation,
        donors=donors,
        options=options,
    )
    system = manifest.requirements if manifest else SystemRequirements()
    check_host(find_needs(order, system), options.force)
    return order


def find_needs(order: InstallOrder, system: SystemRequirements) -> Needs:
    """Return what the host must offer; shared files and those of an interrupted install are free.

    An installation that is there already needs nothing but a host that can run it.
    """
    index = order.archive.index
    numbers = set(range(len(index.files)))
    if is_installed(order.home, order.installation):
        numbers = set()
    elif order.options.link is not Link.COPY:
        numbers -= order.donors.candidates(index, order.relocation).keys()
    partial = order.home.partial(index.id)
    written = sum(path.lstat().st_blocks * 512 for path in partial.rglob("*"))
    needed = sum(index.files[number].size + BLOCK_BYTES for number in numbers)
    return Needs(
        platform=index.platform,
        system=system,
        cuda_runtime=cuda_runtime(index.packages),
        directory=order.home.directory,
        free_bytes=max(needed - written, 0),
        inodes=len(numbers) if not written else 0,
        has_links=any(entry.type == "symlink" for entry in index.files),
    )


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


def check_target(home: EnvHome, installation: Installation, *, replace: bool) -> None:
    """Raise unless `envs/NAME` is free, ours, or may be replaced."""
    prefix = installation.prefix
    if home.name in BASE_NAMES:
        raise UsageError(f"{home.name} is conda's own environment and never a target")
    if not is_sane_prefix(prefix):
        raise UsageError(f"the prefix {prefix!r} is not an absolute path of usual characters")
    is_taken = home.link.exists() or home.link.is_symlink()
    current = home.current_id()
    if is_taken and current is None and not replace:
        what = "a link elsewhere" if home.link.is_symlink() else "not ours"
        raise TargetOccupied(
            f"{home.link} exists and is {what}: left untouched",
            hint="use another --name, or --replace to move it aside",
        )
    if current == installation.id and not is_installed(home, installation):
        raise TargetOccupied(
            f"{home.link} is the same artifact, installed for another prefix",
            hint="install it under another --name",
        )


def is_installed(home: EnvHome, wanted: Installation) -> bool:
    """Whether the same artifact is already installed for the same prefix."""
    record = home.record(wanted.id)
    return record.is_file() and home.installation(wanted.id).prefix == wanted.prefix


def write_tree(
    order: InstallOrder, progress: Progress, announce: Callable[[InstallPlan], None]
) -> Installation:
    """Write the tree, put it in place, then its record: no record, no installation.

    What an install of the same archive for the same prefix left behind is taken over as far as its
    checksums are right. After an interrupt or a lost connection it stays for the next one; after
    damage or on a full disk it goes.
    """
    home, id_ = order.home, order.installation.id
    clear_leftovers(home, id_)
    partial, tree = home.partial(id_), home.tree(id_)
    try:
        edited = fill_tree(order, partial, progress, announce)
    except (IntegrityError, HostError):
        discard(home, id_)
        raise
    finished = msgspec.structs.replace(
        order.installation,
        edited={path: (content.size, content.xxh128) for path, content in edited.items()},
    )
    home.record(id_).unlink(missing_ok=True)
    if tree.exists():
        shutil.rmtree(tree)
    partial.rename(tree)
    sync_directory(home.directory)
    write_bytes(home.index(id_), order.archive.index_frame)
    write_bytes(home.record(id_), to_json(finished))
    home.journal(id_).unlink(missing_ok=True)
    return finished


def fill_tree(
    order: InstallOrder,
    partial: Path,
    progress: Progress,
    announce: Callable[[InstallPlan], None],
) -> dict[str, Content]:
    """Bring a staging directory from whatever it holds to the whole tree; return what was edited.

    First what is right of an interrupted install, then what other installations have, then the
    frames that hold the rest.
    """
    archive, home = order.archive, order.home
    kept = find_leftover(order)
    with Journal(home.journal(archive.index.id), order.journal_subject) as journal:
        partial.mkdir(exist_ok=True)
        clear_others(archive, partial, kept)
        present, edited = set(kept.files), dict(kept.edited)
        rest = order.donors.candidates(archive.index, order.relocation, present)
        if rest:
            make_directories(archive.index, str(partial))
            size = sum(archive.index.files[number].size for number in rest)
            link = choose_link(partial, order.options.link)
            with progress.task(f"share files of {home.name}", size) as advance:
                shared = Supply(archive.index, rest, link, advance).put_into(partial)
            present |= shared
            edited.update(edited_among(order, shared, rest))
        frames = needed_frames(archive, present, kept.frames)
        announce(describe_plan(order, present, frames))
        size = sum(archive.index.frames[number].tar_size for number in frames)
        with progress.task(f"install {home.name}", size) as advance:
            options = ExtractOptions(
                relocation=order.relocation,
                threads=order.options.threads,
                present=present,
                done_frames=kept.frames,
                journal=journal,
            )
            edited.update(extract_tree(archive, partial, options=options, advance=advance))
    return edited


def edited_among(
    order: InstallOrder, shared: Iterable[int], places: Mapping[int, tuple[str, Content]]
) -> Iterator[tuple[str, Content]]:
    """Yield what shared files hold that their first owner had edited for the same prefix."""
    for number in shared:
        entry = order.archive.index.files[number]
        if order.relocation.changes(entry):
            yield entry.path, places[number][1]


def describe_plan(
    order: InstallOrder, present: Collection[int], frames: Sequence[int]
) -> InstallPlan:
    """Return what is about to be read."""
    archive = order.archive
    read_bytes = sum(archive.index.frames[number].size for number in frames)
    return InstallPlan(
        name=order.home.name,
        id=archive.index.id,
        files=len(archive.index.files),
        reused=len(present),
        frames=len(frames),
        all_frames=len(archive.index.frames),
        fetch_bytes=archive.opening_bytes + read_bytes,
        archive_bytes=archive.source.size,
    )


def find_leftover(order: InstallOrder) -> Kept:
    """Return what an interrupted install of the same thing left that is right."""
    id_ = order.archive.index.id
    noted = read_journal(order.home.journal(id_), order.journal_subject)
    partial = order.home.partial(id_)
    if noted is None or not partial.is_dir():
        return Kept()
    return find_kept(order.archive, partial, order.relocation, noted)


def clear_leftovers(home: EnvHome, id_: str) -> None:
    """Remove what interrupted installs of other archives left behind."""
    ours = (home.partial(id_), home.journal(id_))
    for leftover in home.directory.glob(f"{PARTIAL}*"):
        if leftover in ours:
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def discard(home: EnvHome, id_: str) -> None:
    """Remove an unfinished install."""
    shutil.rmtree(home.partial(id_), ignore_errors=True)
    home.journal(id_).unlink(missing_ok=True)


def make_current(
    home: EnvHome, installation: Installation, options: InstallOptions, progress: Progress
) -> None:
    """Flip the link; run the checks; flip back when one fails."""
    before, history = home.current_id(), home.history()
    aside = move_aside(home) if before is None else None
    home.make_current(installation.id)
    if not options.check or installation.prefix != str(home.link):
        return
    try:
        run_checks(installation.checks, installation.prefix, progress)
    except BaseException:
        home.point_at(before)
        home.write_history(history)
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
