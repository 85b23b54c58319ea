"""Conflicts over files: no wheel replaces conda's files, and of two wheels always the same wins."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, TypeAlias

from packaging.utils import canonicalize_name

from envferry.base.entry_points import read_scripts
from envferry.build.inside.conda_meta import RATTLER_ASIDE
from envferry.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from envferry.build.inside.conda_meta import CondaRecords
    from envferry.build.request import WheelFile

CLOBBERS_SHOWN = 8
WRITTEN_BESIDE_RECORD = ("INSTALLER", "REQUESTED")
"""By any installer of wheels."""
CONDA_META = "conda-meta/"
WHEEL_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError)
"""What zipfile raises for damaged, encrypted and unknown archives, and we for hostile ones."""
DIST_INFO = re.compile(r"([^/-]+)-[^/]+\.(?:(?:dist|egg)-info/(?:METADATA|PKG-INFO)|egg-info)")
"""Also the single file that distutils left."""


Written: TypeAlias = "Mapping[WheelFile, Mapping[str, int]]"
"""Where the files of each wheel land, relative to the prefix, and their CRC-32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clobber:
    """A file of a conda package that a wheel writes as well."""

    wheel: WheelFile
    file: str
    owner: str


def find_clobbers(written: Written, records: CondaRecords) -> list[Clobber]:
    """Return every file of a conda package that a wheel would overwrite or take away."""
    owners = records.owners()
    installed = installed_distributions(owners, records.site_packages)
    clobbers = []
    for wheel, files in written.items():
        # pip takes another version of the same package away first, whatever its files are.
        twin = installed.get(canonicalize_name(wheel.name))
        clobbers += [
            Clobber(wheel=wheel, file=file, owner=owners[file])
            for file in [*files, *([twin] if twin and twin not in files else [])]
            if file in owners
        ]
    return clobbers


def installed_distributions(files: Iterable[str], site_packages: str) -> dict[str, str]:
    """Return the metadata file of every distribution that pip finds, by normal name.

    Only those right in `site_packages` count: what setuptools vendors is not installed.
    """
    top = f"{site_packages}/"
    return {
        canonicalize_name(found[1]): file
        for file in files
        if file.startswith(top) and (found := DIST_INFO.fullmatch(file.removeprefix(top)))
    }


def refuse_clobbers(clobbers: Sequence[Clobber], allowed: Sequence[str]) -> None:
    """Raise SpecError for those that are not allowed, naming both packages and the file."""
    names = {canonicalize_name(name) for name in allowed}
    faults = [
        f"{item.wheel.name} {item.wheel.version} (pip) overwrites {item.file} "
        f"of {item.owner} (conda)"
        for item in clobbers
        if not names & {canonicalize_name(item.wheel.name), canonicalize_name(item.owner)}
    ]
    if faults:
        more = [f"and {len(faults) - CLOBBERS_SHOWN} more"] if faults[CLOBBERS_SHOWN:] else []
        raise SpecError(
            "\n  ".join(["pip would overwrite conda's files:", *faults[:CLOBBERS_SHOWN], *more]),
            hint="ask for the package in one half of the spec only and lock again, "
            "or accept it: --allow-clobber NAME",
        )


def find_overlaps(written: Written) -> dict[str, list[WheelFile]]:
    """Return the files that several wheels have with other contents, and those wheels by name.

    They are installed in parallel, so chance would decide whose file stays.
    """
    holders: dict[str, list[tuple[int, WheelFile]]] = {}
    # In the order in which `add_wheels` installs them again, so that the last one's file stays.
    for wheel in sorted(written, key=lambda wheel: wheel.name):
        for file, checksum in written[wheel].items():
            holders.setdefault(file, []).append((checksum, wheel))
    return {
        file: [wheel for _, wheel in held]
        for file, held in holders.items()
        # Equal files do not conflict, whoever writes last.
        if len({checksum for checksum, _ in held}) > 1
    }


def written_files(wheel: WheelFile, records: CondaRecords) -> dict[str, int]:
    """Return what `wheel_files` does, each file where it lands: folders may be links of conda's."""
    top = os.path.realpath(records.prefix)
    landing: dict[str, str] = {}
    files = {}
    for file, checksum in wheel_files(wheel, records.site_packages).items():
        folder, _, name = file.rpartition("/")
        if folder not in landing:
            # Once for each folder: realpath asks the file system for every part of a path.
            landing[folder] = os.path.relpath(os.path.realpath(f"{top}/{folder}"), top)
        files[f"{landing[folder]}/{name}".removeprefix("./")] = checksum
    return files


def wheel_files(wheel: WheelFile, site_packages: str) -> dict[str, int]:
    """Return where the files of a wheel go, relative to the prefix, and their CRC-32.

    Raises SpecError when it is not a wheel, or has a file that would lie elsewhere.
    """
    try:
        with zipfile.ZipFile(wheel.path) as archive:
            return archived_files(archive, wheel_folders(wheel, site_packages))
    except WHEEL_ERRORS as error:
        name = PurePosixPath(wheel.path).name
        hint = "it is the file that was locked: lock another version, or ask its maintainers"
        msg = f"{name} is not a valid wheel: {error}"
        raise SpecError(msg, hint=hint) from error


def is_for_installer(path: str) -> bool:
    """Whether a file in a wheel is metadata, or goes elsewhere than to site-packages."""
    return path.partition("/")[0].endswith((".dist-info", ".data", ".egg-info", ".egg-link"))


def wheel_folders(wheel: WheelFile, site_packages: str) -> dict[str, str]:
    """Return where each scheme of a wheel goes; `purelib` is where all others do."""
    python = PurePosixPath(site_packages).parent.name
    headers = f"include/{python}/{canonicalize_name(wheel.name)}/"
    return {"scripts": "bin/", "data": "", "headers": headers, "purelib": f"{site_packages}/"}


def archived_files(archive: zipfile.ZipFile, folders: Mapping[str, str]) -> dict[str, int]:
    """Return where the files of an open wheel go; raise ValueError when they must not.

    Its empty folders are there, too: whoever takes the wheel away takes them.
    """
    usual = folders["purelib"]
    files, named = {}, []
    for member in archive.infolist():
        # By its parts: `./a` and `a//b` are written as `a` and `a/b`.
        parts = [part for part in member.filename.split("/") if part not in ("", ".")]
        if member.is_dir():
            named.append(parts)
            continue
        if member.filename.startswith("/") or ".." in parts or not parts:
            message = f"its file {member.filename} points outside the environment"
            raise ValueError(message)
        # Schemes of the wheel format: NAME.data/SCHEME/PATH.
        if parts[0].endswith(".data") and len(parts) > 2:
            place = folders.get(parts[1], usual) + "/".join(parts[2:])
        else:
            place = usual + "/".join(parts)
        if place.startswith(CONDA_META):
            message = f"its file {place} would be one of conda's own records"
            raise ValueError(message)
        files[place] = member.CRC
        if parts[-1] == "RECORD" and parts[0].endswith(".dist-info"):
            # Checksum 0 in every wheel: two of them never differ in these files.
            files |= {f"{usual}{parts[0]}/{name}": 0 for name in WRITTEN_BESIDE_RECORD}
        if parts[-1] == "entry_points.txt" and parts[0].endswith(".dist-info"):
            files |= entry_points(archive.read(member).decode(errors="replace"))
    return files | dict.fromkeys(_empty_folders(named, files, usual), 0)


def _empty_folders(
    named: Iterable[Sequence[str]], files: Iterable[str], usual: str
) -> Iterator[str]:
    """Yield the folders, of those that a wheel names, in which it has no file: `NAME.libs/`."""
    held = {parent for file in files for parent in PurePosixPath(file).parents} if named else set()
    for parts in named:
        is_ours = parts and ".." not in parts and not parts[0].endswith(".data")
        if is_ours and PurePosixPath(usual, *parts) not in held:
            yield usual + "/".join(parts)


def entry_points(text: str) -> dict[str, int]:
    """Return the scripts that are made of a wheel's entry points, with a sum of what they call."""
    try:
        return {f"bin/{name}": zlib.crc32(target.encode()) for name, target in read_scripts(text)}
    except ValueError:
        return {}


def describe_overlaps(overlaps: dict[str, list[WheelFile]]) -> Iterator[str]:
    """Yield one line for each group of wheels that have files in common."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for file, wheels in overlaps.items():
        groups.setdefault(tuple(wheel.name for wheel in wheels), []).append(file)
    for names, files in sorted(groups.items()):
        more = f" and {len(files) - 1} more" if files[1:] else ""
        yield f"{', '.join(names)} all have {min(files)}{more}: using that of {names[-1]}"


def describe_conda_overlaps(records: CondaRecords) -> Iterator[str]:
    """Yield one line for each conda package whose files another one has: rattler put them aside."""
    owners = records.owners()
    for record in records.records.values():
        top = f"{RATTLER_ASIDE}{record['name']}/"
        files = sorted(file.removeprefix(top) for file in record["files"] if file.startswith(top))
        if files:
            more = f" and {len(files) - 1} more" if files[1:] else ""
            other = owners.get(files[0], "another package")
            names = f"{record['name']} and {other}"
            yield f"{names} both have {files[0]}{more}: using that of {other}"
