"""What a conda package says of its files, before any of it is linked."""

from __future__ import annotations

import re
import tarfile
import zipfile
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import msgspec
import zstandard
from rattler.package_streaming import PackageArchive

from envferry.base.json import decode_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CONDA_RECORD = re.compile(r"conda-meta/[^/]+\.json")
ZIP_ERRORS = (zipfile.BadZipFile, zstandard.ZstdError, tarfile.TarError, EOFError, RuntimeError)
"""What reading a damaged `.conda` raises."""


class PathEntry(msgspec.Struct):
    """A file that a package links."""

    path: str = msgspec.field(name="_path")
    path_type: str = "hardlink"


class PathsFile(msgspec.Struct):
    """What we read of a package's `info/paths.json`."""

    paths: tuple[PathEntry, ...] = ()


async def read_files(package: Path, names: Sequence[str]) -> dict[str, bytes | None]:
    """Return files of a package's `info`, None for those it does not have.

    Raises ValueError, or what rattler raises, when it is damaged.
    """
    if package.suffix == ".conda":
        try:
            return read_conda(package, names)
        except ZIP_ERRORS as error:
            raise ValueError(str(error)) from error
    archive = await PackageArchive.from_path(package)
    found: dict[str, bytes | None] = await archive.read_files(names)
    return found


def read_conda(package: Path, names: Sequence[str]) -> dict[str, bytes | None]:
    """Read a `.conda`; py-rattler 0.28 refuses those with a zip64 field that is not needed."""
    found: dict[str, bytes | None] = dict.fromkeys(names)
    with zipfile.ZipFile(package) as outer:
        info = next((name for name in outer.namelist() if name.startswith("info-")), None)
        if info is None:
            message = "it holds no info"
            raise ValueError(message)
        with (
            outer.open(info) as packed,
            zstandard.ZstdDecompressor().stream_reader(packed) as stream,
            # `r|`, as the decompressor cannot go back.
            tarfile.open(fileobj=stream, mode="r|") as tar,
        ):
            for member in tar:
                file = tar.extractfile(member) if member.name in found else None
                if file is not None:
                    found[member.name] = file.read()
    return found


def files_of(paths: bytes | None, files: bytes | None) -> PathsFile:
    """Return what a package links: by its paths.json, or the list that those of 2015 have."""
    if paths is not None:
        return decode_json(paths, PathsFile)
    # Names of files need not be UTF-8.
    lines = (files or b"").decode(errors="surrogateescape").splitlines()
    return PathsFile(tuple(PathEntry(line.strip()) for line in lines if line.strip()))


def refuse_paths(file: PathsFile) -> None:
    """Raise ValueError for a file that would lie outside of the prefix or be a record of conda."""
    for entry in file.paths:
        if entry.path.startswith("/") or ".." in entry.path.split("/"):
            message = f"its file {entry.path} points outside the environment"
            raise ValueError(message)
        # As a path, so that `conda-meta//x.json` is found as well.
        if CONDA_RECORD.fullmatch(PurePosixPath(entry.path).as_posix()):
            message = f"its file {entry.path} would be one of conda's own records"
            raise ValueError(message)
