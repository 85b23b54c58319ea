"""Interpreters that compile stored wheels: python and what it needs, and no other package.

What they make depends on nothing else, so environments share it whose conda halves differ.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from envferry.base.file_stamps import FileStamp, stamp_files
from envferry.base.files import read_own
from envferry.base.sha256 import sha256_hex
from envferry.build.build_dir import BuildDir, fresh_build_dir
from envferry.build.container_job import builder_request, run_builder
from envferry.build.wheel_store import take, write_unsynced
from envferry.progress import Silent
from envferry.specs.conda_needs import locked_needs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from envferry.build.build_options import BuildOptions
    from envferry.build.downloads import DownloadCache
    from envferry.engines.port import Mount, Sandbox
    from envferry.models import LockedPackage

log = logging.getLogger(__name__)

STAMPS = "stamps.msgpack"
PREFIX = "/opt/conda/envs/interpreter"


class CompilingPython(msgspec.Struct, frozen=True, kw_only=True):
    """A python in a folder of its own."""

    work: BuildDir

    @property
    def python(self) -> str:
        """Where a container sees it that has `mount`."""
        return f"{PREFIX}/bin/python"

    @property
    def mount(self) -> Mount:
        """Its folder, read-only."""
        return self.work.mount(writable=False)


class CompilingPythons(msgspec.Struct, frozen=True, kw_only=True):
    """Finds and makes interpreters; they are kept in the store of wheels."""

    root: Path
    """Holds one folder for each."""
    sandbox: Sandbox
    cache: DownloadCache
    options: BuildOptions

    def key(self, packages: Sequence[LockedPackage]) -> str:
        """Return what tells the interpreter of an environment's packages from all others."""
        made_of = {
            # The digest of a file says all of it.
            "packages": sorted(
                (item.name, item.sha256 or item.md5 or "") for item in python_and_needs(packages)
            ),
            "sandbox": [self.sandbox.name, self.sandbox.image],
        }
        return sha256_hex(msgspec.json.encode(made_of, order="deterministic"))[:32]

    def find_or_make(self, packages: Sequence[LockedPackage], work_home: Path) -> CompilingPython:
        """Return the interpreter of an environment's packages; it is made in `work_home`."""
        home = self.root / self.key(packages)
        found = CompilingPython(work=BuildDir(home=home, prefix=PurePosixPath(PREFIX)))
        if not is_unchanged(found.work):
            shutil.rmtree(home, ignore_errors=True)
            self._make(tuple(python_and_needs(packages)), work_home, home)
        # When it was used last: what `prune` goes by.
        home.touch()
        return found

    def _make(self, packages: tuple[LockedPackage, ...], work_home: Path, home: Path) -> None:
        # Most builds have just fetched them, and said so.
        downloads = self.cache.fetch_all(packages, progress=Silent(), offline=self.options.offline)
        with fresh_build_dir(work_home, PREFIX) as work:
            request = builder_request(packages, downloads, work, self.options)
            # It starts a few times only.
            request = msgspec.structs.replace(request, compiles=False)
            run_builder(request, work, self.cache.root, self.sandbox, self.options)
            for folder in (work.home, work.envs):
                folder.chmod(0o755)
            stamps = dict(stamp_files(work.tree))
            write_unsynced(work.home / STAMPS, msgspec.msgpack.encode(stamps))
            take(work.home, home, STAMPS)


def python_and_needs(packages: Sequence[LockedPackage]) -> Iterator[LockedPackage]:
    """Yield the conda packages that python needs, itself included.

    All of them where a lock does not say what they need.
    """
    conda = {item.name: item for item in packages if item.manager == "conda"}
    if not any(item.dependencies or item.record for item in conda.values()):
        yield from conda.values()
        return
    waiting, seen = ["python"], {"python"}
    while waiting:
        item = conda.get(waiting.pop())
        if item is None:  # a virtual package, or one that may be missing (`--allow-conflict`)
            continue
        yield item
        needs = {*item.dependencies, *locked_needs(item.record.get("depends", ()))}
        waiting += needs - seen
        seen |= needs


def is_unchanged(work: BuildDir) -> bool:
    """Whether an interpreter is there, and each of its files as it was when it was made."""
    try:
        encoded = read_own(work.home / STAMPS)
        stamps = msgspec.msgpack.decode(encoded, type=dict[str, FileStamp])
        return dict(stamp_files(work.tree)) == stamps
    except FileNotFoundError:
        return False
    except (OSError, msgspec.MsgspecError) as error:
        log.info("%s cannot be used: %s", work.home, error)
        return False


def interpreter_size(home: Path) -> int:
    """Return how many bytes the files of an interpreter have."""
    try:
        stamps = msgspec.msgpack.decode(read_own(home / STAMPS), type=dict[str, FileStamp])
    except (OSError, msgspec.MsgspecError) as error:
        log.info("%s cannot be used: %s", home, error)
        return 0
    return sum(stamp.size for stamp in stamps.values())
