"""The packages of an environment, as conda-meta and the dist-infos list them."""

from __future__ import annotations

import csv
import email.message
import email.parser
import posixpath
from typing import TYPE_CHECKING, Literal

import msgspec

from envferry.archive.members import Owner, Recorded
from envferry.base.json import decode_json
from envferry.base.site_packages import site_packages_folders
from envferry.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

LICENSE_CHARACTERS = 100


class PathRecord(msgspec.Struct):
    """What conda notes of a file that it linked."""

    path: str = msgspec.field(name="_path")
    path_type: str | None = None
    file_mode: str | None = None
    prefix_placeholder: str | None = None
    sha256: str | None = None

    @property
    def prefix(self) -> Recorded | None:
        """What this says of the prefix in the file; None for what was made when it was linked."""
        if self.prefix_placeholder:
            mode: Literal["text", "binary"] = "binary" if self.file_mode == "binary" else "text"
            return Recorded(mode, len(self.prefix_placeholder))
        return (
            Recorded("none", 0, self.sha256)
            if self.path_type == "hardlink" and self.sha256
            else None
        )


class PathsData(msgspec.Struct):
    """The files of a package in the form of its `paths.json`."""

    paths: tuple[PathRecord, ...] = ()


class CondaRecord(msgspec.Struct):
    """What is needed here of a record in conda-meta."""

    name: str
    version: str
    build: str
    files: tuple[str, ...]
    license: str | None = None
    paths_data: PathsData = msgspec.field(default_factory=PathsData)


class InstalledPackage(msgspec.Struct, frozen=True, kw_only=True):
    """A package of an environment and the files that it says are its own."""

    owner: Owner
    license: str | None
    files: frozenset[str]
    records: Mapping[str, PathRecord]
    """What conda noted of each file, by path."""


def conda_packages(tree: Path) -> Iterator[InstalledPackage]:
    """Yield the packages that conda-meta lists; raise SpecError when a record is not valid."""
    for path in sorted(tree.glob("conda-meta/*.json")):
        try:
            yield conda_package(path)
        except msgspec.MsgspecError as error:
            message = f"{path} is not a valid record of a conda package: {error}"
            raise SpecError(message, hint="run `conda doctor` there") from error


def conda_package(path: Path) -> InstalledPackage:
    """Return the package that a record in conda-meta describes."""
    record = decode_json(path.read_bytes(), CondaRecord)
    return InstalledPackage(
        owner=Owner(
            rank=1,
            name=record.name,
            kind="conda",
            version=record.version,
            build=record.build,
        ),
        license=record.license or None,
        # A record does not list itself.
        files=frozenset([*record.files, f"conda-meta/{path.name}"]),
        records={entry.path: entry for entry in record.paths_data.paths},
    )


def pip_packages(tree: Path) -> Iterator[InstalledPackage]:
    """Yield the packages that pip or uv installed; raise SpecError when a RECORD is not valid."""
    folders = site_packages_folders(tree)
    for record in sorted(path for item in folders for path in item.glob("*.dist-info/RECORD")):
        if is_of_conda(record, tree):
            continue
        try:
            yield pip_package(tree, record)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            message = f"{record.parent} does not describe a package: {error}"
            raise SpecError(message, hint="install that package again, then pack") from error


def is_of_conda(record: Path, tree: Path) -> bool:
    """Whether conda installed a distribution: by its INSTALLER, or else by conda-meta."""
    try:
        return record.with_name("INSTALLER").read_bytes().strip() == b"conda"
    except FileNotFoundError:
        file = record.relative_to(tree).as_posix()
        return any(file in package.files for package in conda_packages(tree))


def license_in_metadata(text: str) -> str | None:
    """Return the licence that the METADATA of a distribution states; None for none."""
    return _license_of(email.parser.HeaderParser().parsestr(text))


def _license_of(metadata: email.message.Message) -> str | None:
    text = metadata["License-Expression"] or metadata["License"] or ""
    # Some put the whole text there.
    return text.strip().split("\n")[0][:LICENSE_CHARACTERS] or None


def pip_package(tree: Path, record: Path) -> InstalledPackage:
    """Return the package of a RECORD, its name as PEP 503 has it."""
    from packaging.utils import canonicalize_name

    base = record.parent.parent.relative_to(tree)
    with record.open(newline="", encoding="utf-8") as stream:
        rows = [row[0] for row in csv.reader(stream) if row]
    # Only name, version and licence are read: a description in another encoding does no harm.
    with record.with_name("METADATA").open(encoding="utf-8", errors="replace") as stream:
        metadata = email.parser.HeaderParser().parse(stream)
    # The folder's name says both, too, if less exactly.
    name, _, version = record.parent.name.removesuffix(".dist-info").partition("-")
    return InstalledPackage(
        owner=Owner(
            rank=1,
            name=canonicalize_name(metadata["Name"] or name),
            kind="pypi",
            version=metadata["Version"] or version,
        ),
        license=_license_of(metadata),
        files=frozenset(posixpath.normpath(posixpath.join(base, row)) for row in rows),
        records={},
    )
