"""A worker that links conda packages into a prefix with rattler, then leaves at once."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rattler import MatchSpec, PackageRecord, Platform, PrefixRecord, RepoDataRecord, install
from rattler.exceptions import (
    ExtractError,
    InstallerError,
    InvalidMatchSpecError,
    IoError,
    LinkError,
    TransactionError,
)

from envferry.base.json import decode_json
from envferry.build.inside.incremental import folders_of
from envferry.build.inside.package_files import PathsFile, files_of, read_files, refuse_paths
from envferry.build.request import BuildRequest, CondaFile, LinkAnswer
from envferry.specs.conda_needs import locked_needs
from envferry.worker_process import answer_request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

INDEX, PATHS, FILES = "info/index.json", "info/paths.json", "info/files"
PATCHED = ("depends", "constrains", "extra_depends", "features", "track_features")
"""What is not true of a package any more when its channel's index does not say it."""
SUBDIR = re.compile(r"noarch|(?:linux|osx|win)-[a-z0-9]+")
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


async def link_packages(request: BuildRequest) -> LinkAnswer:
    """Install the conda packages of a request, from a cache on the file system of the prefix.

    What a started prefix lacks is installed beside it, as if it were there.
    """
    scratch = Path(request.scratch)
    held = held_records(Path(request.prefix)) if request.is_started else {}
    # In the order of the request, on which `broken_dependencies` relies.
    records: list[RepoDataRecord] = []
    added: list[RepoDataRecord] = []
    paths = {}
    for file in request.conda:
        if not file.path:
            records.append(held[file.name.lower()])
            continue
        try:
            record, paths[file.name] = await read_package(file, scratch, request.platform)
        except PACKAGE_ERRORS as error:
            return LinkAnswer(failure=f"{file.url} is not a valid conda package: {error}")
        records.append(record)
        added.append(record)
    broken = tuple(broken_dependencies(records, request))
    # Packages are not patched, indexes are: what a package says of itself proves nothing.
    knows = any(file.record or file.dependencies is not None for file in request.conda)
    faults = (*(broken if knows else ()), *folders_for_files(paths))
    if faults:
        return LinkAnswer(faults=faults)
    # A noarch package is linked for the python that is there, which is not linked again.
    python = [held["python"]] if "python" in held and added else []
    target = Path(request.added_prefix if request.is_started else request.prefix)
    noted = [note_as_linked(record, Path(request.prefix), target) for record in python]
    try:
        await install(
            records=[*python, *added],
            target_prefix=target,
            alternative_target_prefix=request.prefix if request.is_started else None,
            # Beside the prefix, as files are hard-linked out of it.
            cache_dir=scratch / "pkgs",
            show_progress=False,
            # The builder does that: rattler goes on when a script fails.
            execute_link_scripts=False,
            platform=Platform(request.platform),
        )
    except PACKAGE_ERRORS as error:
        return LinkAnswer(failure=str(error))
    # Only rattler was to see it: the started prefix has that record itself.
    for path in noted:
        path.unlink()
    # Scripts run in this order: one may use what its package depends on.
    ordered = PackageRecord.sort_topologically(added)
    return LinkAnswer(
        linked=tuple(record.name.normalized for record in ordered),
        warnings=()
        if knows
        else tuple(f"{words}: the lock does not record this" for words in broken),
    )


def held_records(prefix: Path) -> dict[str, PrefixRecord]:
    """Return what a started prefix holds, by name."""
    found = map(PrefixRecord.from_path, prefix.glob("conda-meta/*.json"))
    return {record.name.normalized: record for record in found}


def note_as_linked(record: PrefixRecord, prefix: Path, target: Path) -> Path:
    """Copy a package's record from one prefix to another, for rattler; return its path there."""
    name = f"conda-meta/{record.name.normalized}-{record.version}-{record.build}.json"
    (target / "conda-meta").mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(prefix / name, target / name))


async def read_package(
    file: CondaFile, scratch: Path, platform: str
) -> tuple[RepoDataRecord, PathsFile]:
    """Return the record of a package, as its channel's index has it, and its files.

    Raises ValueError when it is not the one that is locked, or not one to link.
    """
    found = await read_files(Path(file.path), (INDEX, PATHS, FILES))
    index = found[INDEX]
    if index is None:
        message = f"it contains no {INDEX}"
        raise ValueError(message)
    paths = files_of(found[PATHS], found[FILES])
    refuse_paths(paths)
    index_path = scratch / "index.json"
    index_path.write_bytes(msgspec.json.encode(patched(index, file, platform)))
    record = PackageRecord.from_index_json(
        index_path, size=Path(file.path).stat().st_size, sha256=file.sha256, md5=file.md5
    )
    if record.name.normalized != file.name.lower():
        message = f"it contains {record.name.normalized}, but is locked as {file.name}"
        raise ValueError(message)
    # With the subdir at its end, as conda notes it.
    channel = file.url.rsplit("/", 1)[0]
    return RepoDataRecord(record, Path(file.path).name, Path(file.path).as_uri(), channel), paths


def patched(index: bytes, file: CondaFile, platform: str) -> dict[str, Any]:
    """Return what a package says of itself, corrected by what the lock has of its channel's index.

    Raises msgspec.MsgspecError for what is not a record.
    """
    own = decode_json(index, dict[str, Any])
    folder = file.url.rsplit("/", 2)[-2]
    # Packages of 2015 and before do not say it, and need not lie in a folder that does.
    own["subdir"] = own.get("subdir") or (folder if SUBDIR.fullmatch(folder) else platform)
    if file.record:
        kept = {key: value for key, value in own.items() if key not in PATCHED}
        return {"depends": [], "constrains": [], **kept, **file.record}
    if file.dependencies is not None and locked_needs(own.get("depends", ())) != file.dependencies:
        lines = [f"{name} {limits}".strip() for name, limits in file.dependencies.items()]
        return {**own, "depends": lines}
    return own


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


def broken_dependencies(records: Sequence[RepoDataRecord], request: BuildRequest) -> Iterator[str]:
    """Yield each requirement between conda packages that the lock does not meet."""
    by_name = {record.name.normalized: record for record in records}
    for record, file in zip(records, request.conda, strict=True):
        if record.name.normalized in request.allow_conflict:
            continue
        # A lock of another tool has no limits, and those of the package may have been lifted.
        knows_limits = file.record or file.dependencies is None
        lines = [(text, True) for text in record.depends]
        lines += [(text, False) for text in record.constrains if knows_limits]
        for text, must_exist in lines:
            if words := unmet(text, by_name, must_exist=must_exist):
                yield f"{record.name.normalized} {record.version} {words}"


def unmet(text: str, by_name: Mapping[str, RepoDataRecord], *, must_exist: bool) -> str:
    """Return in what way a requirement is not met, empty when it is."""
    try:
        wanted = MatchSpec(text)
    except InvalidMatchSpecError as error:
        return f"needs {text}, which is not a valid requirement: {error}"
    target = wanted.name.normalized if wanted.name else ""
    found = by_name.get(target)
    # What starts like this is the machine's own: the host is asked about it at install.
    if target.startswith("__") or (found is None and not must_exist):
        return ""
    if found is None:
        return f"needs {text}, but {target} is not in the lock"
    if wanted.matches(found):
        return ""
    verb = "needs" if must_exist else "works only with"
    return f"{verb} {text}, but the lock has {found.version}"


if __name__ == "__main__":
    answer_request(BuildRequest, lambda request, _: asyncio.run(link_packages(request)))
