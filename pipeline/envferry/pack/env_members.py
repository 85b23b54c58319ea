"""Which files belong to an environment, and whose they are.

The tree is taken as it was built. What is rewritten: conda-meta records (by conda-pack), the heads
of byte code, `python-config`, and lists of files that are not carried.
"""

from __future__ import annotations

import logging
import os
import posixpath
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING

from msgspec.structs import replace

from envferry.archive.index import FileEntry
from envferry.archive.members import NO_OWNER, Member, Owner
from envferry.archive.validation import tree_faults
from envferry.base.env_variables import read_variables
from envferry.base.read_ahead import read_ahead
from envferry.errors import NotFound, SpecError
from envferry.models import PackageFacts
from envferry.pack.byte_code import ByteCode, source_of
from envferry.pack.exclusion import Exclusion
from envferry.pack.frozen import CONDA_MARK, PIP_MARK
from envferry.pack.generated import activation_scripts, conda_unpack
from envferry.pack.packages import conda_packages, pip_packages
from envferry.pack.portability import find_faults, overwritten
from envferry.pack.python_config import fixed_config
from envferry.pack.tree_walk import TreeWalk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from envferry.archive.members import FileIdentity
    from envferry.pack.packages import InstalledPackage, PathRecord
    from envferry.pack.tree_walk import TreeEntry

log = logging.getLogger(__name__)

FAULTS_SHOWN = 20
GENERATED_FILES = frozenset(
    f"bin/{name}"
    for name in (
        "activate",
        "activate.fish",
        "deactivate",
        "deactivate.fish",
        "conda-unpack",
        "conda_unpack_progress.py",
    )
)
"""What is made while packing: an environment that was packed before has them already."""

RATTLER_ASIDE = "__clobbers__"
"""Where rattler and pixi put the file of a package that another one has as well: conda has none."""


class Listing:
    """An environment as members of an archive."""

    def __init__(self, tree: Path, prefix: str, exclude: Sequence[str] = ()) -> None:
        """List the environment whose files are at `tree` and which was built at `prefix`.

        What a glob of `exclude` covers is left out, of the packages' own lists too.
        Raises NotFound when it is not a conda environment, and SpecError, naming all faults,
        when something in it cannot be carried.
        """
        if not (tree / "conda-meta").is_dir():
            msg = f"{tree} is not a conda environment: it has no conda-meta"
            raise NotFound(msg)
        self.tree = tree
        self.prefix = prefix
        packages = [*conda_packages(tree), *pip_packages(tree)]
        # The files of packages tell which folders with names of conda's own are part of the
        # environment.
        walk = TreeWalk(tree, owned=chain.from_iterable(item.files for item in packages))
        found = [item for item in walk if not is_generated(item.path)]
        paths = {item.path for item in found}
        self.packages = [with_real_paths(package, tree, paths) for package in packages]
        for line in overwritten(self.packages):
            log.warning("%s", line)
        aside = (RATTLER_ASIDE,) if (tree / RATTLER_ASIDE).is_dir() else ()
        exclusion = Exclusion((*exclude, *aside))
        self.collector = MemberCollector(tree, prefix, self.packages, exclusion)
        self.collector.take(found)
        exclusion.warn_of_unused()
        # All faults, and before a byte is written: whoever corrects them runs this once more.
        faults = [*walk.faults, *find_faults(tree, prefix, packages)]
        faults += tree_faults([member.entry for member in self.members], prefix)
        refuse_faults(faults)

    @property
    def members(self) -> list[Member]:
        """All members but those that are generated while packing."""
        return [*self.collector.directories(), *self.collector.members]

    def generate(self, files: Sequence[FileEntry]) -> Iterator[Member]:
        """Yield the activation scripts and conda-unpack, knowing all prefix edits."""
        scripts = [*activation_scripts(read_variables(self.tree), self.prefix)]
        yield from scripts
        yield conda_unpack(files, scripts, self.prefix, self.collector.owner_of)

    def facts(self, files: Sequence[FileEntry]) -> tuple[PackageFacts, ...]:
        """Return what the manifest says of each package."""
        sizes = {entry.path: entry.size for entry in files}
        return tuple(
            PackageFacts(
                name=package.owner.name,
                version=package.owner.version,
                kind="conda" if package.owner.kind == "conda" else "pypi",
                build=package.owner.build or None,
                license=package.license,
                size=sum(sizes.get(file, 0) for file in package.files),
            )
            for package in sorted(self.packages, key=lambda package: package.owner.sort_key)
        )


class MemberCollector:
    """Makes members of what is found in a tree."""

    def __init__(
        self, tree: Path, prefix: str, packages: Sequence[InstalledPackage], exclusion: Exclusion
    ) -> None:
        self.tree = tree
        self.prefix = prefix
        self.exclusion = exclusion
        self.owners: dict[str, Owner] = {}
        self.records: dict[str, PathRecord] = {}
        # conda packages last: where both halves claim a file, it is conda's.
        for package in reversed(packages):
            self.owners.update(dict.fromkeys(package.files, package.owner))
            self.records.update(package.records)
        self.members: list[Member] = []
        self.empty_directories: set[str] = set()

    def take(self, found: Sequence[TreeEntry]) -> None:
        """Take what is carried of all that was found."""
        byte_code = ByteCode(str(self.tree), self.prefix)
        # These are looked into one after the other, before any frame is packed.
        compiled = [f"{self.tree}/{item.path}" for item in found if item.path.endswith(".pyc")]
        read_ahead([path for one in compiled for path in (source_of(one), one) if path])
        carried = []
        for item in found:
            if self.exclusion.covers(item.path):
                continue
            if item.kind == "file" and item.path.endswith(".pyc"):
                # Conda's packages list their byte code, so what is not listed was written later.
                if item.path not in self.owners and self.owner_of(item.path).kind == "conda":
                    continue  # Python wrote it when it ran
                head = byte_code.head(item.path)
                if head is None:
                    self.exclusion.stale.add(item.path)
                    continue
                if head:
                    self.exclusion.rewritten.add(item.path)
                carried.append((item, head))
            else:
                if item.kind == "file" and self.fixed_config(item.path) is not None:
                    self.exclusion.rewritten.add(item.path)
                carried.append((item, b""))
        # Only when all that is left out is known: records and lists of files lose it as well.
        for item, head in carried:
            self.add(item, head)

    def add(self, item: TreeEntry, head: bytes) -> None:
        """Take one file, link or empty folder; `head` takes the place of a file's first bytes."""
        place = f"{self.tree}/{item.path}"
        if item.kind == "directory":
            if item.is_empty:
                self.empty_directories.add(item.path)
        elif item.kind == "symlink":
            entry = FileEntry(path=item.path, type="symlink", mode=0o777, link=item.link)
            self.add_member(entry, b"")
        else:
            content = self.changed_content(item.path, place)
            size = item.size if content is None else len(content)
            # Only whether it can be run is kept: the rest of a mode is due to the umask of the
            # build.
            entry = FileEntry(path=item.path, mode=0o755 if item.executable else 0o644, size=size)
            if content is None:
                self.add_member(entry, place, head, item.identity)
            else:
                self.add_member(entry, content)

    def changed_content(self, path: str, place: str) -> bytes | None:
        """Return what a file holds in the archive where that is not what it holds in the tree."""
        if path in self.exclusion.rewritten:
            # Byte code is here as well, and gets None: its head is replaced when the frame is
            # packed.
            return self.fixed_config(path)
        if not is_conda_record(path):
            return self.exclusion.edited(path, place)
        from conda_pack.core import rewrite_conda_meta

        content: bytes = rewrite_conda_meta(place)[0]
        return self.exclusion.edited_record(content, self.tree)

    def fixed_config(self, path: str) -> bytes | None:
        """Return what `python-config` holds in the archive; None for any other file."""
        return fixed_config(path, f"{self.tree}/{path}", self.prefix)

    def add_member(
        self,
        entry: FileEntry,
        source: str | bytes,
        head: bytes = b"",
        identity: FileIdentity | None = None,
    ) -> None:
        """Note a member and its owner."""
        record = self.records.get(entry.path)
        self.members.append(
            Member(
                entry=entry,
                owner=self.owner_of(entry.path),
                source=source,
                head=head,
                identity=identity,
                recorded=record.prefix if record else None,
            )
        )

    def owner_of(self, path: str) -> Owner:
        """Return whose file this is; byte code belongs to the owner of its source."""
        owner = self.owners.get(path)
        if owner is None and path.endswith(".pyc"):
            directory, _, name = path.rpartition("/")
            source = f"{directory.removesuffix('__pycache__')}{name.split('.')[0]}.py"
            owner = self.owners.get(source)
        return owner or NO_OWNER

    def directories(self) -> Iterator[Member]:
        """Yield all directories that members lie in, and the empty ones.

        A directory in which all is of one package is that package's: a version more of it then
        changes the frames of the package alone.
        """
        owners = dict.fromkeys(self.empty_directories, NO_OWNER)
        for path in self.empty_directories:
            note_parents(owners, path, NO_OWNER)
        for member in self.members:
            note_parents(owners, member.entry.path, member.owner)
        owners.setdefault("bin", NO_OWNER)  # for conda-unpack and the activation scripts
        for path, owner in sorted(owners.items(), key=itemgetter(0)):
            yield Member(entry=FileEntry(path=path, type="directory", mode=0o755), owner=owner)


def note_parents(owners: dict[str, Owner], path: str, owner: Owner) -> None:
    """Note the owner of the directories above a path; what several have in it has no owner."""
    while path := path.rpartition("/")[0]:
        known = owners.get(path)
        if known in {owner, NO_OWNER}:
            return  # noted before, with all that is above
        owners[path] = owner = owner if known is None else NO_OWNER


def refuse_faults(faults: Iterable[str]) -> None:
    """Raise SpecError when something cannot travel, naming all of it."""
    ordered = sorted(set(faults))
    if not ordered:
        return
    more = len(ordered) - FAULTS_SHOWN
    shown = [*ordered[:FAULTS_SHOWN], *([f"and {more} more"] if more > 0 else [])]
    message = "\n  ".join(["these cannot be carried to another machine:", *shown])
    raise SpecError(message, hint="remove them from the environment, then pack again")


def with_real_paths(package: InstalledPackage, tree: Path, found: set[str]) -> InstalledPackage:
    """Return a package whose files are called by the paths at which they were found.

    One that was installed by way of a link between folders lists its files behind that link.
    """
    hidden = package.files - found
    moved = {path: real for path in hidden if (real := real_path(tree, path)) in found}
    if not moved:
        return package
    files = frozenset(moved.get(path, path) for path in package.files)
    records = {moved.get(path, path): record for path, record in package.records.items()}
    return replace(package, files=files, records=records)


def real_path(tree: Path, path: str) -> str:
    """Return a path of the tree without links on its way; its last part may be one."""
    folder = os.path.realpath(tree / posixpath.dirname(path))
    return posixpath.normpath(
        posixpath.join(os.path.relpath(folder, os.path.realpath(tree)), posixpath.basename(path))
    )


def is_conda_record(path: str) -> bool:
    """Whether a file is conda's record of a package."""
    return path.startswith("conda-meta/") and path.endswith(".json") and path.count("/") == 1


def is_generated(path: str) -> bool:
    """Whether packing makes this file itself, if it is to be there at all."""
    is_mark = path.endswith(f"/{PIP_MARK}") and path.count("/") == 2
    return path in GENERATED_FILES or path == CONDA_MARK or is_mark
