"""The finished build before, as what the next one starts from when only its wheels differ.

The conda half and the wheels that stay are hard-linked into the new tree; what has changed is
installed and compiled on top of them. The result is the tree that a build from nothing makes,
byte for byte: whatever does not lead there for certain leads to a build from nothing.
"""

from __future__ import annotations

import logging
import os
from glob import escape as glob_escape
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from envferry import __version__
from envferry.base.files import read_own, write_bytes
from envferry.base.json import decode_json
from envferry.base.sha256 import sha256_hex
from envferry.build.file_stamps import FileStamp, stamp_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from envferry.build.build_dir import BuildDir
    from envferry.build.build_options import BuildOptions
    from envferry.build.request import BuildAnswer
    from envferry.engines.port import Sandbox
    from envferry.models import LockedPackage

log = logging.getLogger(__name__)

NOTE = "tree.json"
STATE = "conda-meta/state"
INSIDE = Path(__file__).with_name("inside")


class LockedWheel(msgspec.Struct, frozen=True, order=True):
    """What tells one wheel from all others."""

    name: str
    version: str
    sha256: str


class Materials(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a tree follows from, but for its data and what activation sets."""

    base: str
    """A digest of all but the wheels: the conda half, the prefix, the options, the builder."""
    wheels: tuple[LockedWheel, ...]


class TreeNote(msgspec.Struct, frozen=True, kw_only=True):
    """What is noted beside a finished tree."""

    materials: Materials
    tools: dict[str, str]
    warnings: tuple[str, ...]
    """What was said of the conda half."""
    wheel_files: dict[str, tuple[str, ...]]
    """Which files each wheel has brought, by its name."""
    data: tuple[str, ...]
    """The files that belong to no package, relative to the tree."""
    device: int
    files: dict[str, FileStamp]


class EarlierBuild(msgspec.Struct, frozen=True, kw_only=True):
    """A finished tree from which another one can start."""

    tree: Path
    note: TreeNote
    added: frozenset[str]
    """The URLs of the wheels that it lacks."""
    wheel_files: dict[str, tuple[str, ...]]
    """Which files each wheel has brought that stays, by its name."""
    dropped: frozenset[str]
    """The files that the new tree has not, or gets anew."""

    def link_into(self, work: BuildDir) -> bool:
        """Hard-link what stays into an empty tree; return whether that was possible.

        A folder that held only what goes is not made: a build from nothing has none.
        """
        kept = [path for path in self.note.files if path not in self.dropped]
        try:
            for folder in _folders(self.tree, self.dropped):
                (work.tree / folder).mkdir(mode=0o755, parents=True, exist_ok=True)
            for path in kept:
                os.link(self.tree / path, work.tree / path, follow_symlinks=False)
        except OSError as error:
            log.info("built from nothing, as files cannot be linked: %s", error)
            return False
        return True


def describe_materials(
    packages: Sequence[LockedPackage], prefix: str, sandbox: Sandbox, options: BuildOptions
) -> Materials:
    """Return what a tree of these packages follows from; sources must be replaced by wheels."""
    conda = [package for package in packages if package.manager == "conda"]
    base = {
        "conda": conda,
        "prefix": prefix,
        "platform": packages[0].platform,
        "allowed": [sorted(options.allow_clobber), sorted(options.allow_conflict)],
        "sandbox": [sandbox.name, sandbox.image],
        "builder": [__version__, *_builder_sources()],
    }
    wheels = (
        LockedWheel(package.name, package.version, package.sha256 or "")
        for package in packages
        if package.manager == "pip"
    )
    digest = sha256_hex(msgspec.json.encode(base, order="deterministic"))
    return Materials(base=digest, wheels=tuple(sorted(wheels)))


def _builder_sources() -> Iterator[str]:
    """Yield what tells this builder from others of the same version: a checkout is one, too."""
    for path in sorted(INSIDE.glob("*.py")):
        yield sha256_hex(path.read_bytes())


def note_tree(home: Path, materials: Materials, answer: BuildAnswer) -> None:
    """Note how a finished tree was left, if another build may start from it."""
    (tree,) = (path for path in (home / "envs").iterdir())
    if not answer.is_plain:
        return
    note = TreeNote(
        materials=materials,
        tools=answer.tools,
        warnings=answer.conda_warnings,
        wheel_files=answer.wheel_files,
        data=answer.data,
        device=tree.stat().st_dev,
        files=dict(stamp_files(tree)),
    )
    try:
        encoded = msgspec.json.encode(note)
    except UnicodeEncodeError as error:
        log.info("the next build will be from nothing: a file's name is not UTF-8 (%s)", error)
        return
    write_bytes(home / NOTE, encoded)


def find_earlier(
    home: Path, materials: Materials, packages: Sequence[LockedPackage]
) -> EarlierBuild | None:
    """Return the build in `home` if it is unchanged, and one of these materials can start there."""
    note = _read_note(home / NOTE)
    if note is None or note.materials.base != materials.base:
        return None
    trees = list((home / "envs").iterdir()) if (home / "envs").is_dir() else []
    if len(trees) != 1 or trees[0].stat().st_dev != note.device:
        return None
    if dict(stamp_files(trees[0])) != note.files:
        log.info("built from nothing, as %s was changed", trees[0])
        return None
    kept = set(materials.wheels) & set(note.materials.wheels)
    added = set(materials.wheels) - kept
    names = {wheel.name for wheel in kept}
    files = {name: files for name, files in note.wheel_files.items() if name in names}
    gone = (theirs for name, theirs in note.wheel_files.items() if name not in names)
    staying = set(chain.from_iterable(files.values()))
    dropped = set(_with_bytecode(set(chain.from_iterable(gone)) - staying, trees[0])) - staying
    return EarlierBuild(
        tree=trees[0],
        note=note,
        added=frozenset(
            package.url
            for package in packages
            if package.manager == "pip"
            and LockedWheel(package.name, package.version, package.sha256 or "") in added
        ),
        wheel_files=files,
        dropped=frozenset({*dropped, *note.data, STATE}),
    )


def _read_note(path: Path) -> TreeNote | None:
    try:
        return decode_json(read_own(path), TreeNote)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        log.info("built from nothing, as %s cannot be read: %s", path, error)
        return None


def _folders(tree: Path, dropped: frozenset[str]) -> Iterator[str]:
    """Yield the folders of a tree, without those that only what was dropped has kept alive."""
    lost = {str(parent) for path in dropped for parent in PurePosixPath(path).parents}
    for directory, folders, names in os.walk(tree, topdown=False):
        folder = os.path.relpath(directory, tree)
        inside = [f"{folder}/{name}".removeprefix("./") for name in (*folders, *names)]
        if folder in lost and all(one in dropped or one in lost for one in inside):
            if folder != ".":
                continue
        elif folder in lost:
            lost.discard(folder)
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
