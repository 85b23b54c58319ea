"""Wheels kept extracted, with their byte code: environments have hard links to these files.

    CACHE/downloads/wheels/USER/ab/SHA256/
        wheel.msgpack               what the wheel was taken apart into
        NAME.whl                    the rest, which uv installs
        files/, files.stamps        what goes to site-packages as it is
        bytecode/KEY/               a folder for each interpreter
            bytecode.msgpack, files/, files.stamps

All is made in containers in which nothing runs but envferry and, for byte code, the interpreter of
KEY. What runs in a build never sees these files at a place where it could write to them. A file is
trusted without being read as long as its inode, size, mtime and ctime are those that were noted.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import xxhash
from msgspec.structs import replace

from envferry.base.file_stamps import FileStamp, scan_folders
from envferry.base.files import COPY_BYTES, read_own
from envferry.base.sha256 import sha256_hex
from envferry.build.extraction_request import ExtractedFile, ExtractedWheel
from envferry.build.inside.built_tree import NotIncremental

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

log = logging.getLogger(__name__)

FOLDER = "wheels"
FILES, STAMPS = "files", "files.stamps"
WHEEL_INDEX, BYTECODE_INDEX = "wheel.msgpack", "bytecode.msgpack"
BYTECODE = "bytecode"
INSIDE = Path(__file__).with_name("inside")


class WheelsNotStored(NotIncremental):
    """These wheels have to be installed as they are: the build starts over without the store."""


class StoredParts(msgspec.Struct, frozen=True):
    """Where in the store the files of a wheel, and its byte code, have been linked from."""

    places: tuple[str, ...]


class StoredFiles(msgspec.Struct, kw_only=True):
    """Files that trees have links to, and how they were when they were last known to be right."""

    home: Path
    files: dict[str, ExtractedFile]
    """By their path in site-packages."""
    stamps: dict[str, FileStamp]

    @classmethod
    def read(cls, home: Path, files: dict[str, ExtractedFile]) -> StoredFiles:
        """Read the stamps of some files; without any, each file is read before it is trusted."""
        return cls(home=home, files=files, stamps=read_stamps(home))

    def path_of(self, file: str) -> str:
        """Return where a file lies."""
        return f"{self.home}/{FILES}/{file}"

    def is_intact(self) -> bool:
        """Whether all files are what was put there; those whose stamp is another one are read."""
        changed = False
        for file in self.files:
            try:
                stamp = FileStamp.of(os.lstat(self.path_of(file)))
                if stamp == self.stamps.get(file):
                    continue
                if not self.holds(file):
                    log.info("%s is damaged", self.path_of(file))
                    return False
            except OSError as error:
                log.info("%s cannot be read: %s", self.path_of(file), error)
                return False
            self.stamps[file] = stamp
            changed = True
        if changed:
            self.note()
        return True

    def holds(self, file: str) -> bool:
        """Read a file: whether it is the one that was put there, with the mode it had."""
        expected = self.files[file]
        checksum, size = xxhash.xxh3_128(), 0
        # Through no link: only what lies in the store is part of it.
        descriptor = os.open(self.path_of(file), os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb", buffering=0) as stream:
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            while piece := stream.read(COPY_BYTES):
                checksum.update(piece)
                size += len(piece)
        found = (size, mode, checksum.hexdigest())
        return found == (
            expected.size,
            0o755 if expected.is_executable else 0o644,
            expected.checksum,
        )

    def note(self) -> None:
        """Write down how the files are; after a crash the ones before count, or they are read."""
        write_unsynced(self.home / STAMPS, msgspec.msgpack.encode(self.stamps))


class StoredWheel(msgspec.Struct, frozen=True, kw_only=True):
    """A wheel that was taken apart, or has to be installed as one."""

    home: Path
    about: ExtractedWheel

    @property
    def small_wheel(self) -> Path:
        """The wheel of all that the installer has rules for."""
        return self.home / self.about.name

    def has_small_wheel(self) -> bool:
        """Whether the small wheel is what was made; there is none where the whole is installed."""
        try:
            return bool(self.about.why_whole) or (
                sha256_hex(self.small_wheel.read_bytes()) == self.about.sha256
            )
        except OSError as error:
            log.info("%s cannot be read: %s", self.small_wheel, error)
            return False

    def files(self) -> StoredFiles:
        """Return what goes to site-packages as it is."""
        return StoredFiles.read(self.home, self.about.files)

    def modules(self) -> list[str]:
        """Return those of the files that python can compile."""
        return [file for file in self.about.files if file.endswith(".py")]

    def bytecode(self, key: str) -> StoredFiles | None:
        """Return the byte code that an interpreter made, None where it is not there."""
        home = self.home / BYTECODE / key
        try:
            encoded = read_own(home / BYTECODE_INDEX)
            files = msgspec.msgpack.decode(encoded, type=dict[str, ExtractedFile])
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            log.info("%s cannot be used: %s", home, error)
            return None
        os.utime(home)
        return StoredFiles.read(home, files)


class CompiledWheel(msgspec.Struct, frozen=True, kw_only=True):
    """A stored wheel with its byte code."""

    wheel: StoredWheel
    bytecode: StoredFiles
    own: Path
    """What was compiled for this environment alone: `own/files`, which may be missing."""

    def own_files(self) -> list[str]:
        """Return the byte code that is only for this environment, by its path in site-packages."""
        if not is_plain(self.own / FILES):
            return []
        return [
            f"{folder}{entry.name}"
            for folder, entries in scan_folders(self.own / FILES)
            for entry in entries
            if entry.is_file(follow_symlinks=False)
        ]

    @property
    def parts(self) -> StoredParts:
        """Where its files are linked from."""
        return StoredParts((str(self.wheel.home), str(self.bytecode.home)))


class WheelStore(msgspec.Struct, frozen=True, kw_only=True):
    """The extracted wheels of a cache."""

    root: Path

    @classmethod
    def beside(cls, cache_root: Path, builds_dir: Path) -> WheelStore | None:
        """Return the store of a cache; None where files cannot be linked from there to builds."""
        # One for each user: who shares a cache need not trust the others.
        root = store_root(cache_root)
        root.parent.mkdir(parents=True, exist_ok=True)
        builds_dir.mkdir(parents=True, exist_ok=True)
        try:
            root.mkdir(mode=0o755, exist_ok=True)
            found = root.lstat()
        except OSError as error:  # the cache belongs to another user, or is read-only
            log.info("wheels are not kept extracted: %s", error)
            return None
        if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o022:
            log.warning(
                "wheels are not kept extracted: %s is not a folder of this user alone", root
            )
            return None
        try:
            _try_link(root, builds_dir)
        except OSError as error:
            log.info("wheels are not kept extracted: no links from the cache to builds: %s", error)
            return None
        return cls(root=root)

    def home_of(self, sha256: str) -> Path:
        """Return where a wheel is, or would be."""
        return self.root / sha256[:2] / sha256

    def find(self, sha256: str) -> StoredWheel | None:
        """Return a wheel that is intact; one that is not is removed."""
        home = self.home_of(sha256)
        try:
            about = msgspec.msgpack.decode(read_own(home / WHEEL_INDEX), type=ExtractedWheel)
        except (OSError, msgspec.MsgspecError) as error:
            if home.exists():  # what was left of one, too
                log.info("%s cannot be used: %s", home, error)
                drop(home)
            return None
        found = StoredWheel(home=home, about=about)
        is_current = about.rules == extraction_rules()
        if not (is_current and found.has_small_wheel() and found.files().is_intact()):
            drop(home)
            return None
        # When it was used last: what `prune` goes by.
        os.utime(home)
        return found

    def keep(self, sha256: str, folder: Path, about: ExtractedWheel) -> StoredWheel:
        """Take over a wheel that was extracted to a folder on the same file system."""
        home = self.home_of(sha256)
        folder.mkdir(mode=0o755, exist_ok=True)
        if about.why_whole:
            shutil.rmtree(folder / FILES, ignore_errors=True)
        about = replace(about, rules=extraction_rules())
        write_stamps(folder, about.files)
        write_unsynced(folder / WHEEL_INDEX, msgspec.msgpack.encode(about))
        take(folder, home, WHEEL_INDEX)
        return StoredWheel(home=home, about=about)


@cache
def extraction_rules() -> str:
    """Return a digest of the code that takes wheels apart: other code may do it in another way."""
    sources = ("extract_wheels.py", "wheel_records.py", "clobbers.py")
    return sha256_hex(b"".join((INSIDE / name).read_bytes() for name in sources))


def is_plain(folder: Path) -> bool:
    """Whether a folder that a container has made, and the two above it, are there and no links."""
    places = (folder, *folder.parents[:2])
    return all(place.is_dir() and not place.is_symlink() for place in places)


def store_root(cache_root: Path) -> Path:
    """Return where this user's wheels are in a cache."""
    return cache_root / FOLDER / str(os.geteuid())


def keep_bytecode(wheel: StoredWheel, key: str, folder: Path) -> StoredFiles:
    """Take over a wheel's byte code, of `folder/files`, which may have none."""
    (folder / FILES).mkdir(parents=True, exist_ok=True)
    if not is_plain(folder / FILES):
        message = f"the byte code of {wheel.about.name} was exchanged"
        raise WheelsNotStored(message)
    folder.chmod(0o755)
    files = dict(_read_files(folder / FILES))
    write_stamps(folder, files)
    write_unsynced(folder / BYTECODE_INDEX, msgspec.msgpack.encode(files))
    home = wheel.home / BYTECODE / key
    drop(home)
    take(folder, home, BYTECODE_INDEX)
    return StoredFiles.read(home, files)


def drop(home: Path) -> None:
    """Forget a part of the store; its index first, so that no half of it is used."""
    if home.is_dir() and not home.is_symlink():
        for index in (WHEEL_INDEX, BYTECODE_INDEX):
            (home / index).unlink(missing_ok=True)
        shutil.rmtree(home, ignore_errors=True)
    else:
        home.unlink(missing_ok=True)


def take(folder: Path, home: Path, index: str) -> None:
    """Rename a folder into the store, unless another build was faster: theirs is the same."""
    # Folders that others of a group can write to would let them exchange what is in there.
    if not home.parent.is_dir():
        home.parent.unlink(missing_ok=True)
    home.parent.mkdir(mode=0o755, exist_ok=True)
    if not (home / index).exists():
        drop(home)
    try:
        folder.rename(home)
    except OSError:
        if not (home / index).exists():
            raise


def _try_link(root: Path, builds_dir: Path) -> None:
    """Raise OSError where files cannot be linked: another file system, or another mount of it."""
    name = f".link-{os.getpid()}-{threading.get_ident()}"
    source, target = root / name, builds_dir / name
    source.touch()
    try:
        target.hardlink_to(source)
    finally:
        source.unlink()
        target.unlink(missing_ok=True)


def read_stamps(home: Path) -> dict[str, FileStamp]:
    """Return how the files of a folder were; nothing where that cannot be known."""
    try:
        return msgspec.msgpack.decode(read_own(home / STAMPS), type=dict[str, FileStamp])
    except (OSError, msgspec.MsgspecError) as error:
        log.info("the files in %s are read again: %s", home, error)
        return {}


def learn_stamps(home: Path, tree: Mapping[str, FileStamp], top: str) -> None:
    """Take over the stamps of files that got, or lost, links in a tree, and nothing else since.

    `top` is where the files lie in the tree.
    """
    known = read_stamps(home)
    news = {
        file: stamp
        for file, before in known.items()
        if (stamp := tree.get(top + file)) and stamp != before and stamp.is_linked_from(before)
    }
    if news:
        write_unsynced(home / STAMPS, msgspec.msgpack.encode({**known, **news}))


def write_stamps(folder: Path, files: Iterable[str]) -> None:
    """Note how files are that were just written."""
    top = f"{folder}/{FILES}/"
    stamps = {file: FileStamp.of(os.lstat(top + file)) for file in files}
    write_unsynced(folder / STAMPS, msgspec.msgpack.encode(stamps))


def write_unsynced(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, without waiting for the disk: it can be done without."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _read_files(top: Path) -> Iterator[tuple[str, ExtractedFile]]:
    """Yield the files below a folder, none of which is executable, and give them their mode."""
    for folder, entries in scan_folders(top):
        (top / folder).chmod(0o755)
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                data = (top / folder / entry.name).read_bytes()
                os.chmod(entry.path, 0o644)  # noqa: PTH101
                checksum = xxhash.xxh3_128_hexdigest(data)
                yield f"{folder}{entry.name}", ExtractedFile(len(data), False, checksum)
