"""The finished build before, as what the next one starts from.

The packages that stay, of both halves, are hard-linked into the new tree; what has changed is
installed and compiled on top of them. The result is the tree that a build from scratch makes,
byte for byte: whatever does not lead there for certain leads to a build from scratch.
"""

from __future__ import annotations

import logging
import os
from glob import escape as glob_escape
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from envferry.base.file_stamps import TREE_NOTE, StampedTree, stamp_files
from envferry.base.files import read_own, write_bytes
from envferry.base.json import decode_json
from envferry.build.inside.built_tree import NotIncremental
from envferry.build.inside.clobbers import is_for_installer
from envferry.build.inside.conda_meta import STATE
from envferry.build.inside.incremental import folders_of, module_name, why_affects_others
from envferry.build.plain_folders import PlainFolders
from envferry.build.tree_materials import LockedConda, Materials, locked_wheel
from envferry.build.wheel_store import StoredParts, learn_stamps, read_stamps

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from envferry.base.file_stamps import FileStamp
    from envferry.build.build_dir import BuildDir
    from envferry.build.request import BuildAnswer
    from envferry.models import LockedPackage

log = logging.getLogger(__name__)


class TreeNote(StampedTree, frozen=True, kw_only=True):
    """What is noted beside a finished tree."""

    why_not_reusable: str
    """Empty where another build can start from the tree; its files are noted only then."""
    materials: Materials
    tools: dict[str, str]
    warnings: tuple[str, ...]
    """What was said of the conda half."""
    wheel_warnings: tuple[str, ...]
    contested: tuple[str, ...]
    """The files that several wheels have, with other contents: which one stays follows from all."""
    wheel_files: dict[str, tuple[str, ...]]
    """Which files each wheel has brought, by its name."""
    conda_files: dict[str, tuple[str, ...]]
    conda_tied: str
    """Why no conda package can come or go by itself; empty where each of them can."""
    data: tuple[str, ...]
    """The files that belong to no package, relative to the tree."""
    site_packages: str = ""
    """Where wheels go, relative to the tree."""
    stored: dict[str, StoredParts] = msgspec.field(default_factory=dict)
    """What was linked from the store of wheels, by the name of the wheel."""


def _still_stored(earlier: EarlierBuild | None) -> dict[str, StoredParts]:
    """Return what of an earlier build's stored wheels is in the new tree."""
    if earlier is None:
        return {}
    stored = earlier.note.stored
    return {name: stored[name] for name in stored.keys() & earlier.wheel_files.keys()}


class EarlierBuild(msgspec.Struct, frozen=True, kw_only=True):
    """A finished tree from which another one can start."""

    tree: Path
    note: TreeNote
    added: frozenset[str]
    """The URLs of the packages that it lacks."""
    changes_conda: bool
    """Whether some of the packages that were added or removed are conda's."""
    wheel_files: dict[str, tuple[str, ...]]
    """Which files each wheel has brought that stays, by its name."""
    conda_files: dict[str, tuple[str, ...]]
    """The same of conda packages."""
    dropped: frozenset[str]
    """The files that the new tree lacks, or gets again."""

    def link_into(self, work: BuildDir) -> Callable[[], None]:
        """Hard-link what stays into an empty tree; return what links the modules of wheels.

        These may have links in other environments' trees, so the container does not see them: they
        are linked when it has ended. A folder that held only what goes is not made: a build from
        scratch has none. Raises NotIncremental where files cannot be linked.
        """
        held = set(chain.from_iterable(self.wheel_files.values()))
        # From the note and not from the disk: `find_earlier` has compared the two just before.
        kept = [path for path in self.note.files if path not in self.dropped]
        later = set(_linked_later(kept, self.note.site_packages, held))
        # Whatever else has links in the store, for certain.
        later |= _stored_stamps(self.note).keys() & set(kept)
        now = [path for path in kept if path not in later]
        folders = list(_folders(self.tree, self.dropped, held))
        # Of no use before the files in them: an empty folder would be taken for one that stays so.
        late = folders_of(later) - folders_of(now)
        work.tree.mkdir(exist_ok=True)
        self._link(work, [folder for folder in folders if folder not in late], now)
        return lambda: self._link(work, [folder for folder in folders if folder in late], later)

    def _link(self, work: BuildDir, folders: Iterable[str], files: Iterable[str]) -> None:
        # As text: two Path objects for each of 70,000 files cost more than linking them.
        source, target = f"{self.tree}/", f"{work.tree}/"
        made = PlainFolders(work.tree)
        try:
            for folder in folders:
                made.make(target + folder)
            for path in files:
                # What the container has left there may be a link by now.
                made.make((target + path).rpartition("/")[0])
                # follow_symlinks=False links the symbolic link itself, not what it leads to.
                os.link(source + path, target + path, follow_symlinks=False)
        except OSError as error:
            message = f"files cannot be linked: {error}"
            raise NotIncremental(message) from error

    def first_ctimes(self, files: Mapping[str, FileStamp]) -> dict[str, int]:
        """Return the first ctime that was noted of each file that was linked and stayed as it was.

        `files` are those of the new tree, after the names of the old one were removed.
        """
        before, since = self.note.files, self.note.since
        return {
            path: since.get(path, before[path].ctime_ns)
            for path, stamp in files.items()
            if path in before and path not in self.dropped and stamp.is_linked_from(before[path])
        }


def note_tree(
    home: Path,
    materials: Materials,
    answer: BuildAnswer,
    stored: Mapping[str, StoredParts],
    earlier: EarlierBuild | None,
) -> None:
    """Note how a finished tree was left, and why no other build can start from it, if so."""
    (tree,) = (path for path in (home / "envs").iterdir())
    files = {} if answer.why_not_reusable else dict(stamp_files(tree))
    note = TreeNote(
        why_not_reusable=answer.why_not_reusable,
        materials=materials,
        tools=answer.tools,
        warnings=answer.conda_warnings,
        wheel_warnings=answer.wheel_warnings,
        contested=answer.contested,
        wheel_files=answer.wheel_files,
        conda_files=answer.conda_files,
        conda_tied=answer.conda_tied,
        data=answer.data,
        site_packages=answer.site_packages,
        stored={**_still_stored(earlier), **stored},
        device=tree.stat().st_dev,
        files=files,
        since=earlier.first_ctimes(files) if earlier else {},
    )
    try:
        encoded = msgspec.json.encode(note)
    # Names with surrogate escapes cannot be JSON; the build itself is fine.
    except UnicodeEncodeError as error:
        log.info("the next build will start from scratch: a file's name is not UTF-8 (%s)", error)
        return
    # Without a note the next build starts from scratch, so a crash before this line loses time
    # only.
    write_bytes(home / TREE_NOTE, encoded)
    # The links of this build, and of the one it replaced, gave these files other ctimes.
    for parts in note.stored.values():
        for place in parts.places:
            learn_stamps(Path(place), files, f"{note.site_packages}/")


def find_earlier(
    home: Path, materials: Materials, packages: Sequence[LockedPackage]
) -> EarlierBuild | str:
    """Return the build in `home` if it is unchanged, and one of these materials can start there.

    Else why not, for people; empty where there is none.
    """
    note = _read_note(home / TREE_NOTE)
    if isinstance(note, str):
        return note
    trees = list((home / "envs").iterdir()) if (home / "envs").is_dir() else []
    # Inodes identify files only within one file system.
    if len(trees) != 1 or trees[0].stat().st_dev != note.device:
        return "the previous build was moved"
    tree, gone = trees[0], _names(note.materials.conda, materials.conda)
    kept = set(materials.wheels) & set(note.materials.wheels)
    wheels = {wheel.name for wheel in kept}
    lost = set(_files_without(note.wheel_files, wheels))
    if reason := _why_not(tree, note, materials, gone, lost):
        return reason
    # Last, as it looks at every file.
    unchanged = _unchanged(tree, note)
    if unchanged is None:
        return f"{tree} was changed"
    note = unchanged
    new = _names(materials.conda, note.materials.conda)
    wheel_files = {name: files for name, files in note.wheel_files.items() if name in wheels}
    conda_files = {name: files for name, files in note.conda_files.items() if name not in gone}
    lost |= set(_files_without(note.conda_files, conda_files))
    staying = set(chain.from_iterable((*wheel_files.values(), *conda_files.values())))
    # Wheels may have equal files: one stays as long as any package that stays has it.
    leaving = lost - staying
    return EarlierBuild(
        tree=tree,
        note=note,
        added=frozenset(
            package.url
            for package in packages
            if (
                package.name in new
                if package.manager == "conda"
                else locked_wheel(package) not in kept
            )
        ),
        changes_conda=bool(gone or new),
        wheel_files=wheel_files,
        conda_files=conda_files,
        # Every build places data, and writes what activation sets, itself.
        dropped=frozenset({*(set(_with_bytecode(leaving, tree)) - staying), *note.data, STATE}),
    )


def _files_without(files: Mapping[str, Iterable[str]], names: Collection[str]) -> Iterator[str]:
    """Yield the files of all packages but those of these names."""
    return chain.from_iterable(theirs for name, theirs in files.items() if name not in names)


def _names(some: Sequence[LockedConda], others: Sequence[LockedConda]) -> set[str]:
    """Return the names of the packages that are not among the others as they are here."""
    return {package.name for package in set(some) - set(others)}


def _why_not(
    tree: Path, note: TreeNote, materials: Materials, gone: set[str], lost: set[str]
) -> str:
    """Return why a build of these materials cannot start from a tree; empty if it can.

    `gone` are the conda packages that go, or become others, `lost` the files of such wheels.
    """
    if note.why_not_reusable:
        return note.why_not_reusable
    if note.materials.base != materials.base:
        return "the prefix, the container, the options or envferry changed"
    if note.materials.conda != materials.conda:
        if "python" in _names(note.materials.conda, materials.conda) | _names(
            materials.conda, note.materials.conda
        ):
            # Byte code, scripts and the place of site-packages all follow python.
            return "python changed"
        if note.conda_tied:
            return note.conda_tied
    if contested := set(note.contested) & lost:
        return f"several wheels have {min(contested)}, and one of them goes"
    leaving = chain.from_iterable(note.conda_files[name] for name in gone)
    return why_affects_others(tree, leaving)


def _unchanged(tree: Path, note: TreeNote) -> TreeNote | None:
    """Return a note with the stamps of today if all files are what it says; None if one is not.

    Files that came from the store get another ctime when other environments link them: of these,
    the store knows whether they were written to.
    """
    found = dict(stamp_files(tree))
    if found == note.files:
        return note
    if found.keys() != note.files.keys():
        return None
    other = {path: stamp for path, stamp in found.items() if stamp != note.files[path]}
    known = _stored_stamps(note)
    for path, stamp in other.items():
        if not stamp.is_linked_from(note.files[path]) or known.get(path) != stamp:
            return None
    since = {path: note.since.get(path, note.files[path].ctime_ns) for path in other}
    return msgspec.structs.replace(note, files=found, since={**note.since, **since})


def _stored_stamps(note: TreeNote) -> dict[str, FileStamp]:
    """Return how the files of a tree are that came from the store, as the store knows them."""
    top = f"{note.site_packages}/"
    known: dict[str, FileStamp] = {}
    for parts in note.stored.values():
        for place in parts.places:
            known |= {top + path: stamp for path, stamp in read_stamps(Path(place)).items()}
    return known


def _linked_later(
    paths: Iterable[str], site_packages: str, wheel_files: Collection[str]
) -> Iterator[str]:
    """Yield those of a tree's files that a wheel brings to site-packages, and their byte code."""
    top = f"{site_packages}/"
    for path in paths:
        if not path.startswith(top) or is_for_installer(path.removeprefix(top)):
            continue
        folder, _, name = path.rpartition("/")
        module = f"{folder.removesuffix('__pycache__')}{module_name(name)}.py"
        is_code = folder.endswith("/__pycache__") and module in wheel_files
        if is_code or path in wheel_files:
            yield path


def _read_note(path: Path) -> TreeNote | str:
    """Return a note; else why there is none that counts, empty where there is none at all."""
    try:
        # A note that another user wrote could bring any file into the next artifact.
        return decode_json(read_own(path), TreeNote)
    except FileNotFoundError:
        return ""
    except (OSError, msgspec.MsgspecError) as error:
        log.info("%s cannot be read: %s", path, error)
        return "the record of the previous build cannot be read"


def _folders(tree: Path, dropped: frozenset[str], held: set[str]) -> Iterator[str]:
    """Yield the folders in a tree, without those that only what was dropped has kept alive.

    A wheel may have empty folders: those of `held` stay, and those that were dropped go.
    """
    lost = {str(parent) for path in dropped for parent in PurePosixPath(path).parents}
    # From below: whether a folder stays depends on those in it.
    for directory, folders, names in os.walk(tree, topdown=False):
        folder = directory.removeprefix(str(tree)).removeprefix("/")
        if folder in lost:
            inside = (f"{folder}/{name}" for name in (*folders, *names))
            if folder not in held and all(one in dropped or one in lost for one in inside):
                continue
            # Something else keeps it alive, so the folder above is not lost by it.
            lost.discard(folder)
        elif folder in dropped and not folders and not names:
            continue
        if folder:
            yield folder


def _with_bytecode(files: Iterable[str], tree: Path) -> Iterator[str]:
    """Yield files, and the byte code that was compiled of them."""
    for file in files:
        yield file
        path = PurePosixPath(file)
        if path.suffix == ".py":
            folder = path.parent / "__pycache__"
            for one in (tree / folder).glob(f"{glob_escape(path.stem)}.cpython-*.pyc"):
                yield str(folder / one.name)
