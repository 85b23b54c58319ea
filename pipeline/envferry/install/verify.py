"""Compare an installed environment with the index of its archive, and repair it."""

from __future__ import annotations

import stat
from collections import Counter
from contextlib import nullcontext
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from envferry.archive.contents import is_directory
from envferry.archive.extraction import TOP_MODE, ExtractOptions, extract_tree
from envferry.base.files import remove_tree
from envferry.base.text import plural
from envferry.errors import IntegrityError
from envferry.install.cleanup import changing, clean_up_if_idle
from envferry.install.records.env_home import REPAIR
from envferry.install.records.events import UNKNOWN_ACTOR, Actor, note_event
from envferry.install.records.installed import chosen_id, open_installed
from envferry.install.records.last_results import LastVerified, note_verified
from envferry.install.records.seen_files import SeenTree, being_read
from envferry.install.records.shared_files import find_sharers
from envferry.install.tree.tree_check import (
    FileDifference,
    InstalledTree,
    compare_tree,
    faults_among,
    top_faults,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from envferry.archive.reader import Archive
    from envferry.install.records.env_home import EnvHome
    from envferry.progress import Progress


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What a verification found."""

    name: str
    id: str
    ref: str
    """What it is called in a registry, which knows it by the name it was built with."""
    files: int
    differences: tuple[FileDifference, ...]
    repaired: tuple[str, ...] = ()
    """The paths that were brought back."""

    @property
    def faults(self) -> tuple[FileDifference, ...]:
        """What is changed or missing: what a repair can bring back."""
        return tuple(item for item in self.differences if item.kind != "extra")


def verify_installation(
    home: EnvHome, id_: str | None, *, quick: bool, progress: Progress, time: str = ""
) -> Verified:
    """Compare an installed tree with the index of its archive; read every file unless `quick`.

    With the `time`, what was found is noted beside the record; and how files look that were read,
    so that updates do not read them again.
    """
    # Before the current one is looked up: a killed command may have left one whose checks never
    # passed.
    clean_up_if_idle(home)
    found = chosen_id(home, id_)
    tree = open_installed(home, found)
    total = 0 if quick else sum(entry.size for entry in tree.index.files)
    seen = SeenTree(str(tree.root), tree.index, tree.edited)
    noting = being_read(home, found, seen) if time and not quick else nullcontext(set[str]())
    with progress.task(f"verify {home.name}", total) as advance, noting as wrong:
        differences = compare_tree(
            tree, quick=quick, advance=(lambda count: None) if quick else advance
        )
        # Within the block, at whose end all others are noted as known.
        wrong.update(item.path for item in differences)
    if time:
        note_verified(home, found, summary(differences, time=time, quick=quick))
    changed = [item.path for item in differences if item.kind == "changed"]
    sharers = find_sharers(home, found, changed)
    return Verified(
        name=home.name,
        id=found,
        ref=f"{tree.index.name}@{found}",
        files=len(tree.index.files),
        differences=tuple(
            replace(item, shared_with=sharers.get(item.path, ())) for item in differences
        ),
    )


def summary(differences: Iterable[FileDifference], *, time: str, quick: bool) -> LastVerified:
    """Return what is remembered of a verification."""
    kinds = Counter(item.kind for item in differences)
    return LastVerified(
        time=time,
        quick=quick,
        changed=kinds["changed"],
        missing=kinds["missing"],
        extra=kinds["extra"],
    )


def repair_installation(
    home: EnvHome,
    found: Verified,
    archive: Archive,
    *,
    progress: Progress,
    actor: Actor = UNKNOWN_ACTOR,
) -> Verified:
    """Bring back what is changed or missing, reading only the frames that hold it.

    Each file is written beside the tree and renamed into its place: a program that has the old one
    open keeps it. What is extra stays. Raises IntegrityError for an archive of another id.
    """
    tree = open_installed(home, found.id)
    # Whole indexes and not ids: the numbers of files and frames must be the same as well.
    if archive.index != tree.index:
        message = f"{archive.name} is {archive.index.name}@{archive.index.id}, expected {found.id}"
        raise IntegrityError(message, hint="name the archive that was installed")
    faulty = {item.path for item in found.faults}
    files = tree.index.files
    present = {number for number, entry in enumerate(files) if entry.path not in faulty}
    staging = home.directory / f"{REPAIR}{found.id}"
    with changing(home):
        # Free: `changing` has removed what a killed repair left.
        staging.mkdir()
        try:
            with progress.task(f"repair {home.name}") as advance:
                options = ExtractOptions(relocation=tree.relocation, present=present)
                edited = extract_tree(archive, staging, options=options, advance=advance)
            # The record stays as it is: a file that was edited in another way would count as
            # changed again.
            for path, content in edited.items():
                if tree.edited.get(path) != content:
                    message = f"{path} was edited differently when {home.name} was installed"
                    raise IntegrityError(
                        message, hint="remove this installation, then install again"
                    )
            put_back(tree, staging, faulty)
        finally:
            remove_tree(staging)
        note_event(home, actor, "repaired", found.id, plural(len(faulty), "file"))
    repaired = verify_again(tree, found)
    if actor.time:
        note_verified(home, found.id, summary(repaired.differences, time=actor.time, quick=False))
    return repaired


def put_back(tree: InstalledTree, staging: Path, faulty: set[str]) -> None:
    """Move repaired entries into their places, directories first.

    So no file is moved through a symbolic link that stands where a directory must be.
    """
    # The index does not list the top directory.
    put_directory_back(tree.root, TOP_MODE)
    wrong = [entry for entry in tree.index.files if entry.path in faulty]
    directories = (entry for entry in wrong if entry.type == "directory")
    for entry in sorted(directories, key=lambda entry: entry.path):
        put_directory_back(tree.root / entry.path, entry.mode)
    for entry in wrong:
        if entry.type != "directory":
            target = tree.root / entry.path
            # rename(2) does not replace a directory by a file.
            if is_directory(str(target)):
                remove_tree(target)
            (staging / entry.path).replace(target)


def put_directory_back(path: Path, mode: int) -> None:
    """Make a directory with its mode where it is missing or something else stands."""
    if not is_directory(str(path)):
        path.unlink(missing_ok=True)
        path.mkdir()
    # mkdir is subject to the umask. A set-group-id bit comes from the folder above and does not
    # count.
    if stat.S_IMODE(path.stat().st_mode) & 0o777 != mode:
        path.chmod(mode)


def verify_again(tree: InstalledTree, found: Verified) -> Verified:
    """Read once more what was brought back."""
    faulty = {item.path for item in found.faults}
    numbers = [number for number, entry in enumerate(tree.index.files) if entry.path in faulty]
    rest = [*top_faults(tree), *faults_among(tree, numbers, quick=False)]
    if rest:
        message = f"{rest[0].path} of {found.name} is wrong again: {rest[0].reason}"
        raise IntegrityError(
            message, hint="check the disk, and whether another process writes there"
        )
    return Verified(
        name=found.name,
        id=found.id,
        ref=found.ref,
        files=found.files,
        differences=tuple(item for item in found.differences if item.kind == "extra"),
        repaired=tuple(item.path for item in found.faults),
    )
