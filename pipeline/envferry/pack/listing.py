"""Which files belong to an environment, and whose they are.

conda-pack does the listing and the checks; its `Packer` takes any object with `add` and `add_bytes`
as the archive, and that is where ours plugs in. The tree is taken as it was built: of what `Packer`
would rewrite for conda-unpack, only the conda-meta records are taken over.
"""

from __future__ import annotations

import logging
import os
import posixpath
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envferry.archive.index import FileEntry
from envferry.archive.members import GENERATED, NOBODY, Member, Owner
from envferry.errors import NotFound, SpecError
from envferry.models import PackageFacts
from envferry.pack.exclusion import Exclusion
from envferry.pack.frozen import CONDA_MARK, PIP_MARK
from envferry.pack.packages import conda_packages, pip_packages
from envferry.pack.portability import find_faults, overwritten

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from envferry.pack.packages import Package

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
        Raises NotFound when it is no conda environment, and SpecError, naming everything at once,
        when something in it cannot travel.
        """
        self.tree = tree
        self.prefix = prefix
        self.packages = [*conda_packages(tree), *pip_packages(tree)]
        self.collector = MemberCollector(tree, prefix, self.packages)
        aside = (RATTLER_ASIDE,) if (tree / RATTLER_ASIDE).is_dir() else ()
        self.collector.exclusion = exclusion = Exclusion((*exclude, *aside))
        self.collector.faults.extend(find_faults(tree, prefix, self.packages))
        for line in overwritten(self.packages):
            log.warning("%s", line)
        self.packer = pack_into(self.collector, tree, prefix)
        self.collector.add_forgotten(self.packages)
        exclusion.warn_of_unused()
        self.collector.refuse_faults()

    @property
    def members(self) -> list[Member]:
        """All members but those that are generated while packing."""
        return [*self.collector.directories(), *self.collector.members]

    def generate(self, files: Sequence[FileEntry]) -> Iterable[Member]:
        """Return conda-pack's activation scripts and conda-unpack, knowing all prefix edits.

        conda-unpack stops at the first binary that a longer prefix does not fit into: those come
        first, so that it stops before it has changed anything.
        """
        records = [
            (entry.path, self.prefix, "text" if entry.edits.text else "binary")
            for entry in files
            if entry.edits
        ]
        self.packer.prefixes = sorted(records, key=lambda record: (record[2], record[0]))
        self.collector.start_generated()
        self.packer.finish()
        return self.collector.members

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
    """The archive that conda-pack's Packer sees: it turns each call into a member."""

    def __init__(self, tree: Path, prefix: str, packages: Sequence[Package]) -> None:
        self.tree = tree
        self.prefix = prefix
        self.owners: dict[str, Owner] = {}
        self.placeholders: dict[str, int] = {}
        # conda packages last: where both halves claim a file, it is conda's.
        for package in reversed(packages):
            self.owners.update(dict.fromkeys(package.files, package.owner))
            self.placeholders.update(package.placeholders)
        self.members: list[Member] = []
        self.empty_directories: set[str] = set()
        self.faults: list[str] = []
        self.generating = False
        self.exclusion = Exclusion(())

    def start_generated(self) -> None:
        """Take what comes now as generated members."""
        self.members, self.generating = [], True

    def add(self, source: str, target: str) -> None:
        """Take a file of the tree, or a script of conda-pack's own."""
        if self.generating:
            path = Path(source)
            self.add_content(target, path.read_bytes(), is_executable=os.access(path, os.X_OK))
            return
        if is_generated(target) or self.exclusion.covers(target):
            return
        place = f"{self.tree}/{target}"
        status = os.lstat(place)
        kind = stat.S_IFMT(status.st_mode)
        if not is_utf8(target):
            self.faults.append(f"{target!r}: its name is not UTF-8")
        elif kind == stat.S_IFDIR:
            self.empty_directories.add(target)
        elif kind == stat.S_IFLNK:
            self.add_link(target, os.readlink(place))  # noqa: PTH115  (Path would normalise it)
        elif kind == stat.S_IFREG:
            mode = 0o755 if status.st_mode & 0o111 else 0o644
            content = self.exclusion.edited(target, place)
            size = status.st_size if content is None else len(content)
            entry = FileEntry(path=target, mode=mode, size=size)
            self.add_member(entry, place if content is None else content)
        else:
            self.faults.append(f"{target}: a socket, pipe or device")

    def add_forgotten(self, packages: Sequence[Package]) -> None:
        """Take what packages list and conda-pack passed over: with a package cache at hand it
        lists what the cache has, which is not all that the tree has.
        """
        known = {member.entry.path for member in self.members} | self.empty_directories
        for package in packages:
            for file in sorted(package.files - known):
                if is_generated(file) or file.startswith(".."):
                    continue
                if (self.tree / file).is_file():
                    known.add(file)
                    self.add(file, file)

    def add_bytes(self, source: str, content: bytes, target: str) -> None:
        """Take a conda-meta record that conda-pack rewrote."""
        is_executable = bool(Path(source).stat().st_mode & 0o111)
        content = self.exclusion.edited_record(content, self.tree)
        self.add_content(target, content, is_executable=is_executable)

    def add_content(self, target: str, content: bytes, *, is_executable: bool) -> None:
        """Take a file that exists only here."""
        mode = 0o755 if is_executable else 0o644
        self.add_member(FileEntry(path=target, mode=mode, size=len(content)), content)

    def add_link(self, target: str, link: str) -> None:
        """Take a symbolic link that stays inside the prefix."""
        inside = link.startswith(self.prefix + "/")
        if not link.startswith("/"):
            resolved = posixpath.normpath(posixpath.join(posixpath.dirname(target), link))
            inside = not resolved.startswith("..")
        if inside and is_utf8(link):
            self.add_member(FileEntry(path=target, type="symlink", mode=0o777, link=link), b"")
        else:
            self.faults.append(f"{target}: a link to {link!r}, outside the environment")

    def add_member(self, entry: FileEntry, source: str | bytes) -> None:
        """Note a member and its owner."""
        self.members.append(
            Member(
                entry=entry,
                owner=GENERATED if self.generating else self.owner_of(entry.path),
                source=source,
                placeholder_length=self.placeholders.get(entry.path, 0),
            )
        )

    def owner_of(self, path: str) -> Owner:
        """Return whose file this is; byte code belongs to the owner of its source."""
        owner = self.owners.get(path)
        if owner is None and path.endswith(".pyc"):
            directory, _, name = path.rpartition("/")
            source = f"{directory.removesuffix('__pycache__')}{name.split('.')[0]}.py"
            owner = self.owners.get(source)
        return owner or NOBODY

    def directories(self) -> Iterator[Member]:
        """Yield all directories that members lie in, and the empty ones."""
        paths = set(self.empty_directories)
        for path in [*self.empty_directories, *(member.entry.path for member in self.members)]:
            parent = posixpath.dirname(path)
            while parent and parent not in paths:
                paths.add(parent)
                parent = posixpath.dirname(parent)
        # conda-unpack and the activation scripts are put there at the end.
        for path in sorted(paths | {"bin"}):
            yield Member(entry=FileEntry(path=path, type="directory", mode=0o755), owner=NOBODY)

    def refuse_faults(self) -> None:
        """Raise SpecError when something cannot travel, naming all of it."""
        if not self.faults:
            return
        faults = sorted(set(self.faults))  # conda-pack may list a link twice
        more = len(faults) - FAULTS_SHOWN
        shown = [*faults[:FAULTS_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        message = "\n  ".join(["these cannot travel to another machine:", *shown])
        raise SpecError(message, hint="remove them from the environment, then pack again")


def pack_into(collector: MemberCollector, tree: Path, prefix: str) -> Any:  # noqa: ANN401
    """Have conda-pack list and check the tree into a collector; return its Packer."""
    from conda_pack.core import CondaEnv, CondaPackException, Packer

    try:
        # What it would refuse for these two is among our own faults, all of them at once.
        env = CondaEnv.from_prefix(
            str(tree),
            on_missing_cache="ignore",
            ignore_editable_packages=True,
            ignore_missing_files=True,
        )
    except CondaPackException as error:
        kind = NotFound if "not a conda environment" in str(error) else SpecError
        raise kind(f"conda-pack refuses {tree}: {error}") from error
    packer = Packer(prefix, collector)
    for file in env.files:
        # No mode: taken as it is, conda-meta records rewritten, nothing read.
        file.file_mode = None
        packer.add(file)
    return packer


def is_generated(path: str) -> bool:
    """Whether packing makes this file itself, if it is to be there at all."""
    is_mark = posixpath.basename(path) == PIP_MARK and path.count("/") == 2
    return path in GENERATED_FILES or path == CONDA_MARK or is_mark


def is_utf8(text: str) -> bool:
    """Whether a path can be written as UTF-8: os.fsdecode leaves surrogates where it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
