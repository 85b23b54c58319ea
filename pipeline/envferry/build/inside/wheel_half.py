"""The wheels of a build, on top of its conda half: installed, judged and compiled."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from envferry import process
from envferry.build.inside.built_tree import NotIncremental, NotSeparable, say
from envferry.build.inside.clobbers import (
    describe_overlaps,
    find_clobbers,
    find_overlaps,
    is_for_installer,
    refuse_clobbers,
    written_files,
)
from envferry.build.inside.incremental import (
    changed_beside,
    fills_empty_folder,
    has_own_bytecode,
    mark_files,
)
from envferry.build.inside.network_attempts import network_tries
from envferry.build.inside.wheel_records import complete_record
from envferry.build.inside.wheels import check_requirements, install_wheels, reinstall_wheel
from envferry.config import child_environ
from envferry.errors import SpecError, ToolFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from envferry.build.inside.built_tree import BuiltTree
    from envferry.build.inside.clobbers import Clobber, Written
    from envferry.build.inside.conda_meta import CondaRecords
    from envferry.build.request import BuildRequest, WheelFile


def add_wheel_half(request: BuildRequest, records: CondaRecords, made: BuiltTree) -> None:
    """Install the wheels, and compile all modules; in a started tree those of the wheels."""
    prefix, tries = Path(request.prefix), network_tries()
    python = prefix / "bin" / "python"
    before, files = mark_files(prefix), set[str]()
    new = {file for theirs in made.conda_files.values() for file in theirs}
    if request.wheels:
        if not python.exists():
            msg = "the spec has a pip half but the environment has no python"
            raise SpecError(
                msg,
                hint="add `python` to the conda half, lock and build again",
            )
        say(f"installing {len(request.wheels)} wheels")
        written = {wheel: written_files(wheel, records) for wheel in request.wheels}
        files = {file for theirs in written.values() for file in theirs}
        judge_wheels(request, records, written, made)
        add_wheels(request, python, records, written, made)
    if python.exists() and request.compiles:
        check_requirements(request, python)
        say("compiling byte code")
        # What was linked from the earlier build has its byte code.
        chosen = files | new if request.is_started else None
        compile_bytecode(prefix, python, Path(request.scratch), chosen)
        refuse_tries_at_start(prefix / records.site_packages, tries)
    # A `.pth` file may run anything, and did so each time that python was started.
    if extra := changed_beside(before, mark_files(prefix), files):
        made.forbid_reuse(f"{extra} was made or changed and belongs to no wheel")


def judge_wheels(
    request: BuildRequest, records: CondaRecords, written: Written, made: BuiltTree
) -> None:
    """Find out, before wheels are installed, whether their files can go without a trace.

    Raises NotIncremental where they cannot come into a started tree.
    """
    prefix = Path(request.prefix)
    if request.is_started:
        require_apart(written, request, records)
    else:  # a script may have made what a wheel replaces
        for place in filter(os.path.lexists, landing_places(prefix, written)):
            made.forbid_reuse(f"a wheel replaced {place}")
    if not has_own_bytecode(written.values(), request.wheel_files):
        message = "a wheel has byte code of a module that another wheel has"
        if any(wheel.small_path for wheel in request.wheels):
            raise NotSeparable(message)
        made.forbid_reuse(message)
    if any(fills_empty_folder(prefix, files) for files in written.values()):
        made.forbid_reuse("a wheel has a file in a folder that was empty")
    made.wheel_files = {wheel.name: tuple(files) for wheel, files in written.items()}


def landing_places(prefix: Path, written: Written) -> Iterator[str]:
    """Yield where all files of some wheels go."""
    for files in written.values():
        yield from (f"{prefix}/{file}" for file in files)


def require_apart(written: Written, request: BuildRequest, records: CondaRecords) -> None:
    """Raise NotIncremental when new wheels have a file that something else has as well.

    Whose file stays is decided among all wheels; files that are the same in two of them are none
    of these.
    """
    overlaps = find_overlaps(written)
    overlaps |= {clobber.file: [clobber.wheel] for clobber in find_clobbers(written, records)}
    others = set(request.wheel_files)
    for wheel, files in written.items():
        for file, checksum in files.items():
            path = Path(request.prefix, file)
            if is_linked_later(wheel, file, records):
                continue  # whoever links it looks at what is there then
            if file in others and not os.path.lexists(path):
                overlaps[file] = [wheel]  # of a wheel that is linked later
            elif os.path.lexists(path) and (
                # Scripts are written by the installer: their checksum is not that in the archive.
                file not in others or file.startswith("bin/") or crc32_of(path) != checksum
            ):
                overlaps[file] = [wheel]
    if not has_own_bytecode(written.values(), request.wheel_files):
        msg = "byte code of a module comes from another wheel than the module"
        raise NotIncremental(msg)
    if overlaps:
        file, wheels = min(overlaps.items())
        msg = f"{wheels[0].name} and another package have {file}"
        raise NotIncremental(msg)


def is_linked_later(wheel: WheelFile, file: str, records: CondaRecords) -> bool:
    """Whether a file of a wheel comes from the store, when the container has ended."""
    top = f"{records.site_packages}/"
    return (
        bool(wheel.small_path)
        and file.startswith(top)
        and (not is_for_installer(file.removeprefix(top)))
    )


def crc32_of(path: Path) -> int:
    """Return the checksum that zip files have; -1 for what is not a file."""
    is_file = path.is_file() and not path.is_symlink()
    return zlib.crc32(path.read_bytes()) if is_file else -1


def add_wheels(
    request: BuildRequest, python: Path, records: CondaRecords, written: Written, made: BuiltTree
) -> None:
    """Install wheels on top of the conda half; what several packages have goes by rules."""
    clobbers = find_clobbers(written, records)
    refuse_clobbers(clobbers, request.allow_clobber)
    overlaps = find_overlaps(written)
    require_separable(request, records, clobbers, overlaps)
    install_wheels(request, python)
    again = {
        wheel.name: wheel
        for file, wheels in overlaps.items()
        for wheel in wheels[1:]
        if not is_linked_later(wheel, file, records)
    }
    # In the order of names, so that the last one's files stay: uv installs in parallel.
    for _, wheel in sorted(again.items()):
        reinstall_wheel(request, python, wheel)
    for wheel in request.wheels:
        if wheel.small_path:
            complete_record(Path(wheel.small_path), Path(request.prefix, records.site_packages))
    made.wheel_warnings += describe_overlaps(overlaps)
    made.contested = tuple(sorted(overlaps))
    if clobbers:
        made.forbid_reuse("wheels replaced files of conda packages")
        taken = {file for files in written.values() for file in files}
        records.forget({clobber.owner for clobber in clobbers}, taken)
        for owner in sorted({clobber.owner for clobber in clobbers}):
            wheels = sorted({item.wheel.name for item in clobbers if item.owner == owner})
            words = f"{', '.join(wheels)} (pip) overwrote files of {owner} (conda), as allowed"
            made.wheel_warnings.append(words)


def require_separable(
    request: BuildRequest,
    records: CondaRecords,
    clobbers: Sequence[Clobber],
    overlaps: Mapping[str, Sequence[WheelFile]],
) -> None:
    """Raise NotSeparable when some files of wheels cannot be linked after all others are there."""
    if clobbers and any(wheel.small_path for wheel in request.wheels):
        message = f"{clobbers[0].wheel.name} replaces files of conda packages"
        raise NotSeparable(message)
    for file, wheels in overlaps.items():
        if len({is_linked_later(wheel, file, records) for wheel in wheels}) > 1:
            message = f"{wheels[0].name} and {wheels[-1].name} both have {file}"
            raise NotSeparable(message)


def compile_bytecode(prefix: Path, python: Path, scratch: Path, files: set[str] | None) -> None:
    """Compile all modules, or those among files, with the environment's own python.

    What cannot be compiled is said.
    """
    script = Path(__file__).with_name("compile_bytecode.py")
    # -I: no variables and no packages of a user. -B: modules that this python imports get no byte
    # code but the script's. -W: the packages' own code is theirs to warn of.
    words: list[str | Path] = [python, "-I", "-B", "-W", "ignore", script, prefix]
    if files is not None:
        chosen = scratch / "modules"
        chosen.write_bytes(b"\0".join(sorted(file.encode() for file in files)))
        words += [prefix, chosen]
    finished = process.run(words, env=child_environ())
    if finished.stderr:
        say(finished.stderr.rstrip())


def refuse_tries_at_start(site_packages: Path, tries_before: int) -> None:
    """Raise ToolFailed when python, just by being started, wanted another machine."""
    if network_tries() == tries_before:
        return
    names = (*site_packages.glob("*.pth"), *site_packages.glob("*customize.py"))
    ran = ", ".join(sorted(path.name for path in names))
    msg = f"python tried to use the network when it started, which a build does not have: {ran}"
    raise ToolFailed(
        msg,
        hint="leave out the package that has that file: python runs it at each start",
    )
