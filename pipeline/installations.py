"""What is installed on a host: verified, repaired, rolled back, removed, and shared."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.archive.contents import Content
from pipeline.archive.donors import Donors
from pipeline.archive.extraction import ExtractOptions, extract_tree
from pipeline.archive.index import decode_index
from pipeline.archive.prefixes import Relocation
from pipeline.archive.verification import (
    Difference,
    InstalledTree,
    compare_tree,
    faults_among,
)
from pipeline.errors import IntegrityError, NotFound, PipelineError, TargetOccupied
from pipeline.files import exclusive_lock, sync_directory
from pipeline.host import HOME, TRASH, EnvHome
from pipeline.in_use import users_of
from pipeline.models import NAME_PATTERN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.archive.index import Index
    from pipeline.archive.reader import Archive
    from pipeline.models import Installation
    from pipeline.progress import Progress

REPAIR = ".repair-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What a verification found."""

    name: str
    id: str
    ref: str
    """What it is called in a registry, which knows it by the name it was built with."""
    files: int
    differences: tuple[Difference, ...]
    repaired: tuple[str, ...] = ()
    """The paths that were brought back."""

    @property
    def faults(self) -> tuple[Difference, ...]:
        """What is changed or missing: what a repair can bring back."""
        return tuple(item for item in self.differences if item.kind != "extra")


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What was removed and what had to stay."""

    name: str
    removed: tuple[str, ...]
    kept: dict[str, str]
    """Why each of the others is still there, by id."""


def open_installed(home: EnvHome, id_: str) -> InstalledTree:
    """Read what an installation must be; raise IntegrityError when that is damaged."""
    record = home.installation(id_)
    index = read_index(home, id_)
    return InstalledTree(
        root=home.tree(id_),
        index=index,
        relocation=Relocation(record.built_prefix, record.prefix, index),
        edited=edited_contents(record),
    )


def read_index(home: EnvHome, id_: str) -> Index:
    """Read the index that an installation keeps of its archive."""
    path = home.index(id_)
    try:
        frame = path.read_bytes()
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise IntegrityError(message, hint="remove this installation and install again") from error
    return decode_index(frame, str(path))


def edited_contents(record: Installation) -> dict[str, Content]:
    """Return what the files hold whose prefix was edited."""
    return {path: Content(size, xxh128) for path, (size, xxh128) in record.edited.items()}


def chosen_id(home: EnvHome, id_: str | None) -> str:
    """Return the id that is meant: the current one unless one is named; raise NotFound."""
    found = id_ or home.current_id()
    if found is None:
        message = f"{home.name} is not installed in {home.envs_dir}"
        raise NotFound(message, hint=f"run `envferry install {home.name}`")
    return home.installation(found).id


def verify_installation(
    home: EnvHome, id_: str | None, *, quick: bool, progress: Progress
) -> Verified:
    """Compare an installed tree with the index of its archive; read every file unless `quick`."""
    found = chosen_id(home, id_)
    tree = open_installed(home, found)
    total = 0 if quick else sum(entry.size for entry in tree.index.files)
    with progress.task(f"verify {home.name}", total) as advance:
        differences = compare_tree(
            tree, quick=quick, advance=(lambda count: None) if quick else advance
        )
    return Verified(
        name=home.name,
        id=found,
        ref=f"{tree.index.name}@{found}",
        files=len(tree.index.files),
        differences=tuple(differences),
    )


def repair_installation(
    home: EnvHome, found: Verified, archive: Archive, *, progress: Progress
) -> Verified:
    """Bring back what is changed or missing, reading only the frames that hold it.

    Each file is written beside the tree and renamed into its place: a program that has the old one
    open keeps it. What is extra stays. Raises IntegrityError for an archive of another id.
    """
    tree = open_installed(home, found.id)
    if archive.index != tree.index:
        message = f"{archive.name} is {archive.index.name}@{archive.index.id}, needed is {found.id}"
        raise IntegrityError(message, hint="name the archive that was installed")
    faulty = {item.path for item in found.faults}
    files = tree.index.files
    present = {number for number, entry in enumerate(files) if entry.path not in faulty}
    staging = home.directory / f"{REPAIR}{found.id}"
    with exclusive_lock(home.lock_path, f"the environment {home.name}"):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            with progress.task(f"repair {home.name}") as advance:
                options = ExtractOptions(relocation=tree.relocation, present=present)
                edited = extract_tree(archive, staging, options=options, advance=advance)
            for path, content in edited.items():
                if tree.edited.get(path) != content:
                    message = f"{path} was edited differently when {home.name} was installed"
                    raise IntegrityError(message, hint="remove this installation, install again")
            put_back(tree, staging, faulty)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return verify_again(tree, found)


def put_back(tree: InstalledTree, staging: Path, faulty: set[str]) -> None:
    """Move repaired entries into their places, directories first."""
    for entry in tree.index.files:
        if entry.path not in faulty:
            continue
        target = tree.root / entry.path
        is_directory = target.is_dir() and not target.is_symlink()
        if entry.type == "directory":
            if not is_directory:
                target.unlink(missing_ok=True)
                target.mkdir()
            continue
        if is_directory:
            shutil.rmtree(target)
        (staging / entry.path).replace(target)


def verify_again(tree: InstalledTree, found: Verified) -> Verified:
    """Read once more what was brought back."""
    faulty = {item.path for item in found.faults}
    numbers = [number for number, entry in enumerate(tree.index.files) if entry.path in faulty]
    rest = faults_among(tree, numbers, quick=False)
    if rest:
        message = f"{rest[0].path} of {found.name} is wrong again: {rest[0].reason}"
        raise IntegrityError(message, hint="is the disk failing, or is somebody writing there?")
    return Verified(
        name=found.name,
        id=found.id,
        ref=found.ref,
        files=found.files,
        differences=tuple(item for item in found.differences if item.kind == "extra"),
        repaired=tuple(item.path for item in found.faults),
    )


def roll_back(home: EnvHome, id_: str | None) -> Installation:
    """Make the installation current that was so before, or the one that is named."""
    with exclusive_lock(home.lock_path, f"the environment {home.name}"):
        wanted = id_ or home.previous_id()
        if wanted is None:
            installed = ", ".join(item.id for item in home.installations()) or "nothing"
            message = f"{home.name} has no earlier installation in {home.envs_dir}"
            raise NotFound(f"{message} (installed: {installed})", hint="install one, or name an id")
        installation = home.installation(wanted)
        if home.current_id() is None and home.link.exists():
            message = f"{home.link} exists and is not ours: left untouched"
            raise TargetOccupied(message, hint="move it aside first")
        home.make_current(wanted)
    return installation


def remove_old(home: EnvHome, keep: int) -> Removal:
    """Remove all but the `keep` installations that were current last.

    Never the current one, and none that a process uses.
    """
    with exclusive_lock(home.lock_path, f"the environment {home.name}"):
        clear_trash(home)
        current = home.current_id()
        past = home.history()
        ids = [item.id for item in home.installations()]
        # Those that never became current come first: nobody asked for them.
        ids.sort(key=lambda id_: (id_ == current, past.index(id_) if id_ in past else -1))
        kept = dict.fromkeys(ids[max(len(ids) - keep, 0) :], "kept")
        if current:
            kept[current] = "current"
        removed = []
        for id_ in ids:
            if id_ in kept:
                continue
            users = users_of(home.tree(id_))
            if users:
                kept[id_] = f"in use by {describe_users(users)}"
                continue
            remove_one(home, id_)
            removed.append(id_)
    return Removal(name=home.name, removed=tuple(removed), kept=kept)


def remove_named(home: EnvHome, id_: str) -> Removal:
    """Remove one installation; raise TargetOccupied for the current one and one in use."""
    with exclusive_lock(home.lock_path, f"the environment {home.name}"):
        home.installation(id_)
        if id_ == home.current_id():
            message = f"{home.name}@{id_} is the current installation"
            raise TargetOccupied(message, hint=f"run `envferry rollback {home.name}` first")
        refuse_used(home, id_)
        remove_one(home, id_)
    return Removal(name=home.name, removed=(id_,), kept={})


def remove_whole(home: EnvHome) -> Removal:
    """Remove an environment, current installation and all; raise TargetOccupied if one is in use.

    The link goes first, then the records: from then on nothing is installed.
    """
    if not home.directory.is_dir():
        message = f"{home.name} is not installed in {home.envs_dir}"
        raise NotFound(message, hint="environments that envferry did not install are not its own")
    with exclusive_lock(home.lock_path, f"the environment {home.name}"):
        ids = sorted(path.stem for path in home.directory.glob("*.json"))
        for id_ in ids:
            refuse_used(home, id_)
        if home.has_link:
            home.point_at(None)
        for id_ in ids:
            remove_one(home, id_)
        # With the lock file, whose next holder sees that it is gone.
        shutil.rmtree(home.directory)
    return Removal(name=home.name, removed=tuple(ids), kept={})


def refuse_used(home: EnvHome, id_: str) -> None:
    """Raise TargetOccupied for an installation that a process uses."""
    users = users_of(home.tree(id_))
    if users:
        message = f"{home.name}@{id_} is in use by {describe_users(users)}"
        raise TargetOccupied(message, hint="end these processes first")


def remove_one(home: EnvHome, id_: str) -> None:
    """Remove an installation: its record first, for without it there is none."""
    home.record(id_).unlink()
    home.index(id_).unlink(missing_ok=True)
    home.tree(id_).rename(home.directory / f"{TRASH}{id_}")
    sync_directory(home.directory)
    clear_trash(home)


def clear_trash(home: EnvHome) -> None:
    """Delete what was removed, also by one who was cut off."""
    for path in home.directory.glob(f"{TRASH}*"):
        shutil.rmtree(path)


def describe_users(users: dict[int, str]) -> str:
    """Return the processes that use something, a few of them by name."""
    shown = ", ".join(f"{program} (pid {pid})" for pid, program in sorted(users.items())[:5])
    return shown + (f" and {len(users) - 5} more" if len(users) > 5 else "")


def all_installations(home: EnvHome) -> Iterator[tuple[EnvHome, Installation]]:
    """Yield what is installed in an envs directory: the current one, its siblings, the others.

    A damaged record is passed over; `envferry verify` says so.
    """
    names = {path.name for path in (home.envs_dir / HOME).glob("*") if path.is_dir()}
    current = home.current_id()
    for name in sorted(filter(NAME_PATTERN.fullmatch, names), key=lambda name: name != home.name):
        other = EnvHome.of(home.envs_dir, name)
        paths = sorted(other.directory.glob("*.json"), key=lambda path: path.stem != current)
        for path in paths:
            with contextlib.suppress(PipelineError):
                yield other, other.installation(path.stem)


def find_donors(home: EnvHome, wanted: Installation) -> Donors:
    """Return what the installations on this host offer to a new one."""
    donors = Donors()
    for other, record in all_installations(home):
        same = (record.built_prefix, record.prefix) == (wanted.built_prefix, wanted.prefix)
        try:
            index = read_index(other, record.id)
        except PipelineError:
            continue
        donors.offer(other.tree(record.id), index, edited_contents(record), same_prefixes=same)
    return donors
