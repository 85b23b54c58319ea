"""Complete the tree of an installation in a staging directory beside its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from envferry.archive.contents import is_directory
from envferry.archive.extraction import (
    ExtractOptions,
    cannot_write,
    extract_tree,
    make_directories,
    needed_frames,
)
from envferry.archive.install_journal import InstallJournal, read_noted
from envferry.base.files import remove_tree, sync_directory, write_bytes
from envferry.base.json import to_json
from envferry.errors import HostError, IntegrityError
from envferry.install.plan import recorded
from envferry.install.preview import InstallPreview, preview_plan
from envferry.install.records.env_home import HOME, PARTIAL, TRASH
from envferry.install.records.installation import Sharing
from envferry.install.records.seen_files import SeenTree, note_seen
from envferry.install.tree.link_mode import Link
from envferry.install.tree.mounting import refuse_mounts
from envferry.install.tree.moves import discard_directory, exchange, move_directory
from envferry.install.tree.resume import ResumableFiles, clear_others, find_kept
from envferry.install.tree.reuse import FileSharer, choose_link

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from envferry.archive.contents import Content
    from envferry.install.plan import InstallPlan
    from envferry.install.records.env_home import EnvHome
    from envferry.install.records.installation import Installation
    from envferry.progress import Progress


def preview_staging(plan: InstallPlan) -> InstallPreview:
    """Return what `write_tree` would read; what is here already is looked at, nothing changed."""
    kept = find_leftover(plan)
    rest = plan.reusable.candidates(plan.archive.index, plan.relocation, kept.files)
    # How files would be linked does not matter: without a target nothing is written.
    supply = FileSharer(plan.archive.index, rest, Link.COPY, plan.reusable)
    present = kept.files | supply.verify(plan.options.threads)
    return preview_plan(plan, present, needed_frames(plan.archive, present, kept.frames))


def write_tree(
    plan: InstallPlan, progress: Progress, announce: Callable[[InstallPreview], None]
) -> Installation:
    """Write the tree, put it in place, then its record: no record, no installation.

    What an install of the same archive for the same prefix left behind is taken over as far as its
    checksums are right. After an interrupt or a lost connection it stays for the next one; after
    damage or on a full disk it goes.
    """
    home, id_ = plan.home, plan.installation.id
    refuse_mounts(home.tree(id_), home.image(id_))  # a damaged one is replaced
    clear_leftovers(home, id_)
    take_over(home, id_)
    partial = home.partial(id_)
    try:
        filled = fill_tree(plan, partial, progress, announce)
        return put_in_place(plan, filled)
    except (IntegrityError, HostError):
        discard(home, id_)
        raise
    except OSError as error:
        discard(home, id_)
        raise cannot_write(error, partial) from error


class FilledTree(msgspec.Struct, frozen=True, kw_only=True):
    """A tree that is complete, and still under its temporary name."""

    edited: dict[str, Content]
    """What files hold whose prefix was edited."""
    sharing: Sharing | None
    """What it shares with others by hard links."""


def put_in_place(plan: InstallPlan, filled: FilledTree) -> Installation:
    """Give a finished tree its name and write its index and record."""
    home, id_ = plan.home, plan.installation.id
    finished = msgspec.structs.replace(
        plan.installation,
        edited={path: (content.size, content.xxh128) for path, content in filled.edited.items()},
        sharing=filled.sharing,
    )
    # They are about the tree that goes: after a crash they must not seem to be about the new one.
    home.state(id_).unlink(missing_ok=True)
    home.seen(id_).unlink(missing_ok=True)
    there = recorded(home, id_)
    # The record of a repair stays right all the time; one for another prefix would vouch for files
    # that are edited differently.
    if there is None or there.prefix != finished.prefix:
        home.record(id_).unlink(missing_ok=True)
    partial, tree = home.partial(id_), home.tree(id_)
    # Replaces a damaged one of the same id in one step, if the file system can.
    if is_directory(str(tree)) and exchange(partial, tree):
        remove_tree(partial)
    else:
        discard_directory(tree, home.directory / f"{TRASH}{id_}")
        move_directory(partial, tree)
    # The tree must have its name on the disk before a record says that it is there.
    sync_directory(home.directory)
    write_bytes(home.index(id_), plan.archive.index_frame)
    # After the move: where directories cannot be renamed it was copied, and has other inodes.
    note_seen(home, id_, SeenTree(str(tree), plan.archive.index, filled.edited))
    write_bytes(home.record(id_), to_json(finished))
    # Last: by its journal, the next install knows a tree that has no record yet (take_over).
    home.journal(id_).unlink(missing_ok=True)
    return finished


def take_over(home: EnvHome, id_: str) -> None:
    """Go on with a tree that was finished when its install was cut off: it has no record yet."""
    is_unrecorded = home.tree(id_).is_dir() and not home.record(id_).exists()
    is_ours = home.journal(id_).exists() and not home.partial(id_).exists()
    if is_unrecorded and is_ours and home.linked_id() != id_:
        move_directory(home.tree(id_), home.partial(id_))


def fill_tree(
    plan: InstallPlan,
    partial: Path,
    progress: Progress,
    announce: Callable[[InstallPreview], None],
) -> FilledTree:
    """Bring a staging directory from whatever it holds to the whole tree.

    First what is right of an interrupted install, then what other installations have, then the
    frames that hold the rest.
    """
    archive, home = plan.archive, plan.home
    kept = find_leftover(plan)
    # Read first, opened then: a journal about something else is emptied.
    with InstallJournal(home.journal(archive.index.id), plan.journal_subject) as journal:
        partial.mkdir(exist_ok=True)
        clear_others(archive, partial, kept)
        present, edited, sharing = set(kept.files), dict(kept.edited), None
        rest = plan.reusable.candidates(archive.index, plan.relocation, present)
        if rest:
            # The extraction makes them otherwise; files are put into them before it here.
            make_directories(archive.index, str(partial))
            size = sum(archive.index.files[number].size for number in rest)
            link = choose_link(partial, plan.options.link)
            with progress.task(f"share files of {home.name}", size) as advance:
                supply = FileSharer(archive.index, rest, link, plan.reusable, advance)
                shared = supply.put_into(partial, plan.options.threads)
            present |= shared
            sharing = describe_sharing(plan, supply)
            edited.update(edited_among(plan, shared, rest))
        frames = needed_frames(archive, present, kept.frames)
        announce(preview_plan(plan, present, frames))
        size = sum(archive.index.frames[number].tar_size for number in frames)
        with progress.task(f"install {home.name}", size) as advance:
            options = ExtractOptions(
                relocation=plan.relocation,
                threads=plan.options.threads,
                present=present,
                done_frames=kept.frames,
                journal=journal,
                has_directories=bool(rest),
            )
            edited.update(extract_tree(archive, partial, options=options, advance=advance))
    return FilledTree(edited=edited, sharing=sharing)


def describe_sharing(plan: InstallPlan, supply: FileSharer) -> Sharing | None:
    """Return what is shared by hard links now, and with which installations."""
    if not supply.linked:
        return None
    # As text: one Path for each of 70,000 files costs more than linking them.
    homes = f"{plan.home.envs_dir / HOME}/"
    sources = (supply.candidates[number][0] for number in supply.linked)
    parts = {tuple(source.removeprefix(homes).split("/", 2)[:2]) for source in sources}
    return Sharing(
        files=len(supply.linked),
        size=sum(plan.archive.index.files[number].size for number in supply.linked),
        with_=tuple(sorted(f"{name}@{id_}" for name, id_ in parts)),
    )


def edited_among(
    plan: InstallPlan, shared: Iterable[int], places: Mapping[int, tuple[str, Content]]
) -> Iterator[tuple[str, Content]]:
    """Yield what shared files hold that their first owner had edited for the same prefix."""
    for number in shared:
        entry = plan.archive.index.files[number]
        if plan.relocation.changes(entry):
            yield entry.path, places[number][1]


def find_leftover(plan: InstallPlan) -> ResumableFiles:
    """Return what an interrupted install of the same thing left that is right."""
    id_ = plan.archive.index.id
    noted = read_noted(plan.home.journal(id_), plan.journal_subject)
    partial = plan.home.partial(id_)
    if noted is None or not partial.is_dir():
        return ResumableFiles()
    return find_kept(plan.archive, partial, plan.relocation, noted, plan.options.threads)


def clear_leftovers(home: EnvHome, id_: str) -> None:
    """Remove what interrupted installs of other archives left behind."""
    ours = (home.partial(id_), home.journal(id_))
    for leftover in home.directory.glob(f"{PARTIAL}*"):
        if leftover in ours:
            continue
        if leftover.is_dir():
            remove_tree(leftover)
        else:
            leftover.unlink()


def discard(home: EnvHome, id_: str) -> None:
    """Remove an unfinished install, and a tree of it that has no record."""
    unfinished = [home.partial(id_)]
    # What `envs/NAME` leads to stays, record or not: programs may be running from it.
    if not home.record(id_).exists() and home.linked_id() != id_:
        unfinished.append(home.tree(id_))
        home.index(id_).unlink(missing_ok=True)
    for path in unfinished:
        if path.is_dir():
            remove_tree(path)
    home.journal(id_).unlink(missing_ok=True)
