"""A virtual environment with its interpreter, as something to pack.

venv, virtualenv and uv make folders that run by an interpreter elsewhere. Here such a folder
becomes an environment like those that conda makes: python is a package in conda-meta, and all lies
below one prefix.
"""

from __future__ import annotations

import logging
import posixpath
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from envferry.archive.index import FileEntry
from envferry.archive.members import Recorded
from envferry.archive.prefix_search import find_edits
from envferry.archive.prefixes import Relocation
from envferry.base.sha256 import sha256_hex
from envferry.base.site_packages import site_packages_folders
from envferry.build.inside import compile_bytecode
from envferry.build.inside.conda_meta import list_bytecode, note_checksums
from envferry.channel.conda_package import PLACEHOLDER, CondaPackage
from envferry.channel.elf import glibc_floor
from envferry.channel.interpreter import Interpreter, find_interpreter
from envferry.channel.interpreter_staging import left_modules, stage_interpreter
from envferry.channel.venv_files import (
    binaries_in,
    copied_files,
    copy_entry,
    outside_libraries,
    point_to_interpreter,
    settings_of,
)
from envferry.config import child_environ
from envferry.errors import SpecError
from envferry.models import SpecOptions, SystemRequirements
from envferry.names import check_env_prefix
from envferry.pack.env_members import refuse_faults
from envferry.pack.existing_env import describe_env
from envferry.process import run
from envferry.specs.importing.conversion import default_name
from envferry.specs.importing.file_kinds import FileKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.models import BuiltEnv
    from envferry.progress import Progress

log = logging.getLogger(__name__)

LIBRARIES_SHOWN = 20
CHANNEL = "file:///envferry"
"""Where the package python says it comes from: no channel has it."""


class VirtualEnv(NamedTuple):
    """A virtual environment, and what is told of it."""

    folder: Path
    prefix: str | None = None
    """The path that its scripts hold, by default where it is."""
    name: str | None = None
    """By default the name of its folder, or of the project around it."""


@contextmanager
def venv_with_interpreter(
    source: VirtualEnv, *, work_dir: Path, progress: Progress
) -> Iterator[BuiltEnv]:
    """Yield a virtual environment, and all that its interpreter is, as one environment.

    Its files lie below the folder `work_dir` until the context ends; the virtual environment itself
    is only read. What the host has to have is named in warnings. Raises SpecError when something
    in it cannot travel.
    """
    place = posixpath.normpath(source.folder.absolute())
    prefix = source.prefix or place
    # Asked before the interpreter, whose staging takes seconds.
    check_env_prefix(prefix, "say which path it was made for: `--prefix /PATH`")
    name = source.name or default_name(source.folder, FileKind.VENV)
    interpreter = interpreter_of(source.folder)
    work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="venv-", dir=work_dir) as folder:
        staging = _Staging(
            venv=Path(place), prefix=prefix, interpreter=interpreter, tree=Path(folder, "env")
        )
        staging.tree.mkdir()
        with progress.task(f"collect python {interpreter.version} and {source.folder}"):
            record = staging.add_interpreter()
            # After the interpreter: of two files at one path the one that people installed stays.
            staging.add_venv()
        with progress.task(f"compile the modules of {name}"):
            # Before the records, which list byte code.
            staging.compile()
        staging.add_records(record)
        built = describe_env(staging.tree, prefix=prefix, name=name, lock_dir=Path(folder))
        system = SystemRequirements(glibc=staging.check_binaries())
        yield msgspec.structs.replace(built, options=SpecOptions(system=system))


def interpreter_of(venv: Path) -> Interpreter:
    """Return the interpreter that a virtual environment runs by; raise SpecError if it cannot go.

    Packages of the system's site-packages are not in the environment: who sees them is refused.
    """
    if settings_of(venv).get("include-system-site-packages", "").lower() == "true":
        message = f"{venv} uses packages that are installed in the system's python, outside of it"
        hint = (
            "install what it needs into it, write `include-system-site-packages = false` in its "
            "pyvenv.cfg, and try what you run; then pack"
        )
        raise SpecError(message, hint=hint)
    try:
        interpreter = find_interpreter(venv / "bin/python")
    except SpecError as error:
        message = f"{venv} cannot be carried with its interpreter: {error.message}"
        hint = f"make it again with a standard CPython, or `envferry import {venv}` and build that"
        raise SpecError(message, hint=hint) from error
    if not (venv / interpreter.site_packages).is_dir():
        found = ", ".join(str(path.relative_to(venv)) for path in site_packages_folders(venv))
        message = (
            f"{venv} runs python {interpreter.minor} and has its packages in {found or 'no folder'}"
        )
        raise SpecError(message, hint="make the environment again")
    return interpreter


class _Staging(msgspec.Struct, frozen=True, kw_only=True):
    """Puts an environment together in `tree` that believes it lives at `prefix`."""

    venv: Path
    prefix: str
    interpreter: Interpreter
    tree: Path

    def add_interpreter(self) -> dict[str, Any]:
        """Lay out the interpreter, and return what conda-meta has to say of it."""
        package = stage_interpreter(self.interpreter, self.tree)
        if left := left_modules(self.interpreter, self.tree):
            what = f"{', '.join(left)} of python's standard library"
            log.warning("%s is not carried: it takes libraries from this system", what)
        shutil.rmtree(self.tree / "info", ignore_errors=True)  # the licence is in lib, too
        paths = [
            self.give_prefix(path)
            for path in sorted(self.tree.rglob("*"))
            if path.is_symlink() or path.is_file()
        ]
        return record_of(package, paths)

    def give_prefix(self, path: Path) -> dict[str, Any]:
        """Give one file of the interpreter its prefix, and return its entry of conda-meta."""
        name = str(path.relative_to(self.tree))
        if path.is_symlink():
            return {"_path": name, "path_type": "softlink"}
        content = path.read_bytes()
        entry = {"_path": name, "path_type": "hardlink", "sha256": sha256_hex(content)}
        # Most files: their digest in the package is the one in the prefix.
        if PLACEHOLDER.encode() not in content:
            return {**entry, "size_in_bytes": len(content)}
        mode = "binary" if b"\0" in content else "text"
        recorded = Recorded("binary" if mode == "binary" else "text", len(PLACEHOLDER))
        edits = find_edits(content, PLACEHOLDER.encode(), recorded).edits
        as_indexed = FileEntry(path=name, size=len(content), edits=edits)
        placed = Relocation(PLACEHOLDER, self.prefix).edit(content, as_indexed)
        # It has the mode of the interpreter's own file, which may be read-only.
        path.chmod(path.stat().st_mode | 0o200)
        path.write_bytes(placed)
        return {
            **entry,
            "size_in_bytes": len(content),
            "prefix_placeholder": PLACEHOLDER,
            "file_mode": mode,
            "sha256_in_prefix": sha256_hex(placed),
        }

    def add_venv(self) -> None:
        """Put what is in the virtual environment on top."""
        faults: list[str] = []
        homes = (self.venv / "bin", self.interpreter.executable.parent)
        for item in copied_files(self.venv, faults):
            copy_entry(item, self.venv, self.tree)
            target = self.tree / item.path
            if item.path.startswith("bin/") and target.is_file() and not target.is_symlink():
                kept = point_to_interpreter(target, self.prefix, homes)
                if kept:
                    log.warning("%s is run by %s, which is not carried", item.path, kept)
        refuse_faults(faults)

    def compile(self) -> None:
        """Compile all modules: nothing is compiled, or written, when it runs on a host."""
        script = Path(compile_bytecode.__file__)
        python = self.tree / "bin/python"
        # -S: `.pth` files of the environment may run anything, and are not needed to compile.
        words: list[str | Path] = [
            python,
            "-I",
            "-B",
            "-S",
            "-W",
            "ignore",
            script,
            self.tree,
            self.prefix,
        ]
        environ = child_environ(PYTHONHOME=None, PYTHONPATH=None, __PYVENV_LAUNCHER__=None)
        for line in run(words, env=environ).stderr.splitlines():
            log.debug("%s", line)

    def add_records(self, record: dict[str, Any]) -> None:
        """Write conda-meta, without what the virtual environment put in a file's place."""
        replaced = {
            path
            for path in record["files"]
            # `bin/python*` of the venv is not carried, so the interpreter's own stays in its
            # record.
            if (self.venv / path).is_file() and not path.startswith("bin/python")
        }
        entries = record["paths_data"]["paths"]
        entries[:] = [entry for entry in entries if entry["_path"] not in replaced]
        record["files"] = [path for path in record["files"] if path not in replaced]
        list_bytecode(self.tree, record, self.interpreter.minor)
        note_checksums(record)
        folder = self.tree / "conda-meta"
        folder.mkdir(exist_ok=True)
        # conda takes a folder for an environment only where this file exists.
        (folder / "history").touch()
        encoded = msgspec.json.format(msgspec.json.encode(record, order="sorted"), indent=2)
        (folder / record["fn"]).with_suffix(".json").write_bytes(encoded + b"\n")

    def check_binaries(self) -> str | None:
        """Name the libraries that hosts have to have; return the glibc that all binaries need."""
        packages = binaries_in(self.tree / self.interpreter.site_packages)
        outside = list(outside_libraries(self.tree, packages))
        for line in outside[:LIBRARIES_SHOWN]:
            log.warning("%s", line)
        if len(outside) > LIBRARIES_SHOWN:
            log.warning("%d more libraries are not carried", len(outside) - LIBRARIES_SHOWN)
        own = [*binaries_in(self.tree / "bin"), *self.tree.glob("lib/*.so*")]
        own += binaries_in(self.tree / "lib" / f"python{self.interpreter.minor}" / "lib-dynload")
        floor = glibc_floor([*packages, *own])
        return "{}.{}".format(*floor) if floor else None


def record_of(package: CondaPackage, paths: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a record of conda-meta (CEP 32) for a package that no channel has."""
    file_name = f"{package.stem}.conda"
    return {
        "name": package.name,
        "version": package.version,
        "build": package.build,
        "build_number": 0,
        "channel": CHANNEL,
        "subdir": package.subdir,
        "fn": file_name,
        "url": f"{CHANNEL}/{package.subdir}/{file_name}",
        "depends": list(package.depends),
        "constrains": list(package.constrains),
        "license": package.license,
        "files": [entry["_path"] for entry in paths],
        "paths_data": {"paths": paths, "paths_version": 1},
        "extracted_package_dir": "",
        "package_tarball_full_path": "",
        # 1 is a hard link in conda's LinkType.
        "link": {"source": "", "type": 1},
        "requested_specs": ["python"],
    }
