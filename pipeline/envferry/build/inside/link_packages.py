"""A worker that links conda packages into a prefix with rattler, then leaves at once."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rattler import MatchSpec, PackageRecord, Platform, RepoDataRecord, install
from rattler.exceptions import ExtractError, InstallerError, IoError, LinkError, TransactionError
from rattler.package_streaming import PackageArchive

from envferry.base.json import decode_json
from envferry.build.request import BuildOrder, CondaFile, LinkAnswer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

INDEX, PATHS = "info/index.json", "info/paths.json"
CONDA_RECORD = re.compile(r"conda-meta/[^/]+\.json")
PACKAGE_ERRORS = (
    ExtractError,
    InstallerError,
    IoError,
    LinkError,
    OSError,
    TransactionError,
    ValueError,
    msgspec.MsgspecError,
)


class PathEntry(msgspec.Struct):
    """A file that a package links."""

    path: str = msgspec.field(name="_path")
    path_type: str = "hardlink"


class PathsFile(msgspec.Struct):
    """What we read of a package's `info/paths.json`."""

    paths: tuple[PathEntry, ...] = ()


def main(order_path: str, answer_path: str) -> None:
    """Link the packages of an order and leave an answer."""
    order = decode_json(Path(order_path).read_bytes(), BuildOrder)
    answer = asyncio.run(link_packages(order))
    Path(answer_path).write_bytes(msgspec.json.encode(answer))


async def link_packages(order: BuildOrder) -> LinkAnswer:
    """Install the conda packages of an order, from a cache on the file system of the prefix."""
    scratch = Path(order.scratch)
    records, paths = [], {}
    for file in order.conda:
        try:
            record, paths[file.name] = await read_package(file, scratch)
        except PACKAGE_ERRORS as error:
            return LinkAnswer(failure=f"{file.url} is no conda package to link: {error}")
        records.append(record)
    faults = (*broken_dependencies(records, order.allow_conflict), *folders_for_files(paths))
    if faults:
        return LinkAnswer(faults=faults)
    try:
        await install(
            records=records,
            target_prefix=order.prefix,
            cache_dir=scratch / "pkgs",
            show_progress=False,
            # The builder does that: rattler goes on when a script fails.
            execute_link_scripts=False,
            platform=Platform(order.platform),
        )
    except PACKAGE_ERRORS as error:
        return LinkAnswer(failure=str(error))
    ordered = PackageRecord.sort_topologically(list(records))
    return LinkAnswer(linked=tuple(record.name.normalized for record in ordered))


async def read_package(file: CondaFile, scratch: Path) -> tuple[RepoDataRecord, PathsFile]:
    """Return the record of a package and its files, from itself: no repodata is at hand.

    Raises ValueError when it is not the one that is locked, or not one to link.
    """
    package = await PackageArchive.from_path(file.path)
    found = await package.read_files((INDEX, PATHS))
    index = found[INDEX]
    if index is None:
        message = f"it holds no {INDEX}"
        raise ValueError(message)
    paths = decode_json(found[PATHS] or b"{}", PathsFile)
    refuse_paths(paths)
    index_path = scratch / "index.json"
    index_path.write_bytes(index)
    record = PackageRecord.from_index_json(
        index_path, size=Path(file.path).stat().st_size, sha256=file.sha256, md5=file.md5
    )
    if record.name.normalized != file.name.lower():
        message = f"it holds {record.name.normalized}, and is locked as {file.name}"
        raise ValueError(message)
    # With the subdir at its end, as conda notes it.
    channel = file.url.rsplit("/", 1)[0]
    return RepoDataRecord(record, Path(file.path).name, Path(file.path).as_uri(), channel), paths


def refuse_paths(file: PathsFile) -> None:
    """Raise ValueError for a file that would lie outside of the prefix or be a record of conda."""
    for entry in file.paths:
        if entry.path.startswith("/") or ".." in entry.path.split("/"):
            message = f"its file {entry.path} leads out of its place"
            raise ValueError(message)
        if CONDA_RECORD.fullmatch(entry.path):
            message = f"its file {entry.path} would be one of conda's own records"
            raise ValueError(message)


def folders_for_files(packages: Mapping[str, PathsFile]) -> Iterator[str]:
    """Yield each folder of one package that is a file of another: chance would decide between."""
    files = {
        entry.path: name
        for name, file in packages.items()
        for entry in file.paths
        if entry.path_type == "hardlink"
    }
    for name, file in packages.items():
        for folder in sorted(folders_of(entry.path for entry in file.paths)):
            if folder in files:
                yield f"{folder} is a file of {files[folder]} and a folder of {name}"


def folders_of(paths: Iterable[str]) -> set[str]:
    """Return all folders that some files lie in."""
    found: set[str] = set()
    for path in paths:
        folder = path.rpartition("/")[0]
        while folder and folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


def broken_dependencies(records: Sequence[RepoDataRecord], allowed: Sequence[str]) -> Iterator[str]:
    """Yield each requirement between conda packages that the lock does not meet."""
    by_name = {record.name.normalized: record for record in records}
    for record in records:
        name = record.name.normalized
        needs = [(text, True) for text in record.depends]
        limits = [(text, False) for text in record.constrains]
        for text, must_exist in [*needs, *limits]:
            wanted = MatchSpec(text)
            target = wanted.name.normalized if wanted.name else ""
            # What starts like this is the machine's own: the host is asked about it at install.
            if target.startswith("__") or name in allowed:
                continue
            found = by_name.get(target)
            if found is None and must_exist:
                yield f"{name} {record.version} needs {text}, and {target} is not in the lock"
            elif found is not None and not wanted.matches(found):
                verb = "needs" if must_exist else "goes only with"
                yield f"{name} {record.version} {verb} {text}, and the lock has {found.version}"


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    # Not through the interpreter's exit: py-rattler 0.28 sometimes crashes there.
    os._exit(0)
