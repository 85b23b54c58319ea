"""Runs inside the container: conda packages first, wheels after, byte code last."""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
import zlib
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from envferry import process
from envferry.base.json import decode_json
from envferry.base.site_packages import site_packages_folders
from envferry.build.inside.apart import (
    NotOnEarlierTree,
    fills_empty_folder,
    has_own_bytecode,
    is_only_theirs,
    mark_files,
)
from envferry.build.inside.clobbers import (
    describe_conda_overlaps,
    describe_overlaps,
    find_clobbers,
    find_overlaps,
    refuse_clobbers,
    written_files,
)
from envferry.build.inside.conda_apart import add_packages, files_of, why_tied
from envferry.build.inside.conda_meta import CondaRecords
from envferry.build.inside.link_scripts import describe_pre_link_scripts, run_link_scripts
from envferry.build.inside.network_attempts import network_tries
from envferry.build.inside.wheels import check_requirements, install_wheels, reinstall_wheel
from envferry.build.request import BuildAnswer, BuildRequest, LinkAnswer
from envferry.config import child_environ
from envferry.errors import HostError, PipelineError, SpecError, ToolFailed
from envferry.worker_process import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.build.inside.clobbers import Written

TOOLS = ("envferry", "py-rattler", "uv")
BUILD_LEFTOVERS = ("conda-meta/CACHEDIR.TAG", "CACHEDIR.TAG", ".lock")
FAULTS_SHOWN = 12
PANIC = re.compile(r"panicked at [^\n]*\n([^\n]+)")
PLACEHOLDER_TOO_SHORT = "target prefix cannot be longer than the placeholder"
DISK_FULL = ("No space left on device", "Disk quota exceeded", "os error 28", "os error 122")
"""What programs say of ENOSPC and EDQUOT."""


def main(request_path: str) -> None:
    """Carry out the request in a file; print the answer to stdout, also when the disk is full."""
    request = decode_json(Path(request_path).read_bytes(), BuildRequest)
    tools = {tool: metadata.version(tool) for tool in TOOLS}
    try:
        tree = build_prefix(request)
        answer = BuildAnswer(
            tools=tools,
            warnings=(*tree.conda_warnings, *tree.wheel_warnings),
            conda_warnings=tuple(tree.conda_warnings),
            is_plain=tree.is_plain,
            wheel_files=tree.wheel_files,
            conda_files=tree.conda_files,
            conda_tied=tree.conda_tied,
            data=tuple(tree.data),
        )
    except NotOnEarlierTree as reason:
        answer = BuildAnswer(tools=tools, from_nothing=str(reason))
    except PipelineError as error:
        answer = BuildAnswer(error=error.message, hint=error.hint, exit_code=error.exit_code)
    except OSError as error:
        answer = BuildAnswer(
            error=f"the build stopped: {error}",
            hint="run it again with -v to see how far it got",
            exit_code=HostError.exit_code,
        )
    if answer.error and any(words in answer.error for words in DISK_FULL):
        answer = BuildAnswer(
            error=f"no space left on the disk of the build ({request.prefix})",
            hint="free some space, or put the cache elsewhere with ENVFERRY_CACHE",
            exit_code=HostError.exit_code,
        )
    sys.stdout.write(msgspec.json.encode(answer).decode())


@dataclass(slots=True)
class MadeTree:
    """What is to be said of a tree that was made."""

    conda_warnings: list[str] = field(default_factory=list)
    wheel_warnings: list[str] = field(default_factory=list)
    is_plain: bool = True
    """What each wheel and each data file has brought can go without a trace."""
    wheel_files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    conda_files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What each conda package has brought that was linked."""
    conda_tied: str = ""
    data: list[str] = field(default_factory=list)
    """Where the files landed that belong to no package, relative to the prefix."""


def build_prefix(request: BuildRequest) -> MadeTree:
    """Make the environment at its final prefix.

    Raises NotOnEarlierTree where that prefix was started, and has to be made from nothing.
    """
    prefix, made = Path(request.prefix), MadeTree()
    if request.is_started:
        records = add_to_conda_half(request, made)
    else:
        records = make_conda_half(request, made)
    add_wheel_half(request, records, made)
    urls = {file.name: file.url for file in request.conda}
    records.finish({name: urls[name] for name in made.conda_files})
    made.data = list(place_data(prefix, request, made))
    if request.variables:
        write_state(prefix, request.variables)
    tidy(prefix, Path(request.scratch))
    return made


def make_conda_half(request: BuildRequest, made: MadeTree) -> CondaRecords:
    """Link the conda packages and run their scripts; return their records."""
    say(f"linking {len(request.conda)} conda packages")
    linked = link_conda_packages(request)
    made.conda_warnings += linked.warnings
    records = CondaRecords.read(Path(request.prefix))
    made.conda_warnings += run_link_scripts(records, linked.linked, say)
    made.conda_warnings += describe_pre_link_scripts(records)
    made.conda_warnings += describe_conda_overlaps(records)
    made.conda_tied = why_tied(records)
    records.forget_aside()
    made.conda_files = files_of(records)
    return records


def add_to_conda_half(request: BuildRequest, made: MadeTree) -> CondaRecords:
    """Put the conda packages into a started prefix that it lacks; return all records.

    Raises NotOnEarlierTree for whatever a build from nothing may say or do in another way.
    """
    prefix = Path(request.prefix)
    if not request.changes_conda:
        return CondaRecords.read(prefix)
    say(f"linking {sum(bool(file.path) for file in request.conda)} conda packages")
    try:
        linked = link_conda_packages(request)
    except PipelineError as error:
        raise NotOnEarlierTree(error.message) from error
    made.conda_warnings += linked.warnings
    made.conda_files = add_packages(prefix, Path(request.added_prefix), request.wheel_files)
    return CondaRecords.read(prefix)


def add_wheel_half(request: BuildRequest, records: CondaRecords, made: MadeTree) -> None:
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
    if python.exists():
        check_requirements(request, python)
        say("compiling byte code")
        chosen = files | new if request.is_started else None
        compile_bytecode(prefix, python, Path(request.scratch), chosen)
        refuse_tries_at_start(prefix / records.site_packages, tries)
    # A `.pth` file may run anything, and did so each time that python was started.
    made.is_plain &= is_only_theirs(before, mark_files(prefix), files)


def judge_wheels(
    request: BuildRequest, records: CondaRecords, written: Written, made: MadeTree
) -> None:
    """Find out, before wheels are installed, whether their files can go without a trace.

    Raises NotOnEarlierTree where they cannot come into a started tree.
    """
    prefix = Path(request.prefix)
    if request.is_started:
        require_apart(written, request, records)
    else:  # a script may have made what a wheel replaces
        made.is_plain = not any(map(os.path.lexists, landing_places(prefix, written)))
    made.is_plain &= has_own_bytecode(written.values(), request.wheel_files)
    made.is_plain &= not any(fills_empty_folder(prefix, files) for files in written.values())
    made.wheel_files = {wheel.name: tuple(files) for wheel, files in written.items()}


def landing_places(prefix: Path, written: Written) -> Iterator[str]:
    """Yield where all files of some wheels go."""
    for files in written.values():
        yield from (f"{prefix}/{file}" for file in files)


def require_apart(written: Written, request: BuildRequest, records: CondaRecords) -> None:
    """Raise NotOnEarlierTree when new wheels have a file that something else has as well.

    Whose file stays is decided among all wheels; files that are the same in two of them are none
    of these.
    """
    overlaps = find_overlaps(written)
    overlaps |= {clobber.file: [clobber.wheel] for clobber in find_clobbers(written, records)}
    others = set(request.wheel_files)
    for wheel, files in written.items():
        for file, checksum in files.items():
            path = Path(request.prefix, file)
            if os.path.lexists(path) and (
                file not in others or file.startswith("bin/") or crc32_of(path) != checksum
            ):
                overlaps[file] = [wheel]
    if not has_own_bytecode(written.values(), request.wheel_files):
        msg = "byte code of a module comes from another wheel than the module"
        raise NotOnEarlierTree(msg)
    if overlaps:
        file, wheels = min(overlaps.items())
        msg = f"{wheels[0].name} and another package have {file}"
        raise NotOnEarlierTree(msg)


def crc32_of(path: Path) -> int:
    """Return the checksum that zip files have; -1 for what is not a file."""
    is_file = path.is_file() and not path.is_symlink()
    return zlib.crc32(path.read_bytes()) if is_file else -1


def place_data(prefix: Path, request: BuildRequest, made: MadeTree) -> Iterator[str]:
    """Put the files that belong to no package in their places; yield where they landed.

    A folder on the way may be a link of a package.

    Raises SpecError where a package has put something, or a link leads out of the environment.
    """
    for item in request.data:
        target = prefix / item.target
        if target.exists() or target.is_symlink():
            message = f"{item.target} of `envferry: data:` is there already: a package brings it"
            raise SpecError(message, hint="give it another `path:`")
        made.is_plain &= not fills_empty_folder(prefix, (item.target,))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            message = f"{item.target} of `envferry: data:` lies below a file of a package"
            raise SpecError(message, hint="give it another `path:`") from error
        if not target.parent.resolve().is_relative_to(prefix.resolve()):
            message = f"{item.target} of `envferry: data:` leads out of the environment"
            raise SpecError(message, hint="give it another `path:`")
        shutil.copyfile(item.path, target)
        target.chmod(0o644)
        yield str((target.parent.resolve() / target.name).relative_to(prefix.resolve()))


def write_state(prefix: Path, variables: dict[str, str]) -> None:
    """Note what activation sets where conda does: `conda-meta/state` (CEP 32)."""
    state = {"env_vars": variables}
    encoded = msgspec.json.encode(state, order="sorted")
    (prefix / "conda-meta/state").write_bytes(encoded + b"\n")


def say(text: str) -> None:
    """Report progress: the host shows our stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def link_conda_packages(request: BuildRequest) -> LinkAnswer:
    """Install the conda half with rattler; the answer has the packages, each after what it needs.

    The worker makes an HTTP client, without ever using it, and that one wants certificates to
    exist.
    """
    import certifi

    worker = Worker(
        module="envferry.build.inside.link_packages",
        scratch=Path(request.scratch),
        environ=child_environ(SSL_CERT_FILE=certifi.where()),
        explain=worker_failure,
    )
    answer = worker.ask(request, LinkAnswer)
    if answer.failure:
        raise link_failure(answer.failure, request.prefix)
    if answer.faults:
        more = [f"and {len(answer.faults) - FAULTS_SHOWN} more"]
        shown = [*answer.faults[:FAULTS_SHOWN], *(more if answer.faults[FAULTS_SHOWN:] else [])]
        raise SpecError(
            "\n  ".join(["the conda packages are incompatible:", *shown]),
            hint="lock again: `envferry lock` solves for compatible packages",
        )
    return answer


def worker_failure(finished: process.Finished) -> ToolFailed:
    """Describe a worker that left no answer: by what rattler said when it broke down, if it did."""
    found = PANIC.search(finished.stderr)
    said = found[1] if found else finished.stderr
    return process.failure(["linking the conda packages"], finished.returncode, "", said)


def link_failure(reason: str, prefix: str) -> SpecError:
    """Describe a package that cannot be read or linked."""
    hint = "lock another version or build of the package that is named, or ask its maintainers"
    if PLACEHOLDER_TOO_SHORT in reason:
        hint = f"that package has no room for {prefix}: give the environment a shorter name"
    lines = "\n  ".join(reason.splitlines())
    return SpecError(f"the conda packages cannot be linked:\n  {lines}", hint=hint)


def add_wheels(
    request: BuildRequest, python: Path, records: CondaRecords, written: Written, made: MadeTree
) -> None:
    """Install wheels on top of the conda half; what several packages have goes by rules."""
    clobbers = find_clobbers(written, records)
    refuse_clobbers(clobbers, request.allow_clobber)
    install_wheels(request, python)
    overlaps = find_overlaps(written)
    again = {wheel.name: wheel for wheels in overlaps.values() for wheel in wheels[1:]}
    for _, wheel in sorted(again.items()):
        reinstall_wheel(request, python, wheel)
    made.wheel_warnings += describe_overlaps(overlaps)
    made.is_plain &= not (clobbers or overlaps)
    if clobbers:
        taken = {file for files in written.values() for file in files}
        records.forget({clobber.owner for clobber in clobbers}, taken)
        for owner in sorted({clobber.owner for clobber in clobbers}):
            wheels = sorted({item.wheel.name for item in clobbers if item.owner == owner})
            words = f"{', '.join(wheels)} (pip) overwrote files of {owner} (conda), as allowed"
            made.wheel_warnings.append(words)


def compile_bytecode(prefix: Path, python: Path, scratch: Path, files: set[str] | None) -> None:
    """Compile all modules, or those among files, with the environment's own python.

    What cannot be compiled is said.
    """
    script = Path(__file__).with_name("compile_bytecode.py")
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


def forget_file(path: Path) -> None:
    """Remove a file of a dist-info directory from the tree and from its RECORD.

    uv notes there when the wheel file was last changed: true for this build only.
    """
    record = path.with_name("RECORD")
    line = f"{path.parent.name}/{path.name},"
    rows = record.read_text(encoding="utf-8").splitlines(keepends=True)
    record.unlink()  # it may be a hard link into uv's cache
    record.write_text("".join(row for row in rows if not row.startswith(line)), encoding="utf-8")
    path.unlink()


def tidy(prefix: Path, scratch: Path) -> None:
    """Remove what only the build needed; raise when something was written beside the prefix."""
    for name in BUILD_LEFTOVERS:
        (prefix / name).unlink(missing_ok=True)
    for folder in site_packages_folders(prefix):
        for path in folder.glob("*.dist-info/uv_cache.json"):
            forget_file(path)
    shutil.rmtree(scratch)
    set_modes(prefix)
    if not prefix.is_dir() or not any(prefix.iterdir()):
        msg = f"the build left nothing at {prefix}"
        raise ToolFailed(msg)
    if strangers := sorted(repr(str(path)) for path in prefix.parent.iterdir() if path != prefix):
        msg = f"a package wrote outside of {prefix}: {', '.join(strangers[:FAULTS_SHOWN])}"
        raise ToolFailed(
            msg,
            hint="only its post-link script can do that: leave the package out",
        )


def set_modes(prefix: Path) -> None:
    """Give every file and directory the mode that it has in an archive, whatever the umask was."""
    for directory, folders, names in os.walk(prefix):
        for path in (Path(directory), *(Path(directory, name) for name in (*folders, *names))):
            found = path.lstat().st_mode
            if stat.S_ISLNK(found):
                continue
            wanted = 0o755 if stat.S_ISDIR(found) or found & 0o111 else 0o644
            if stat.S_IMODE(found) != wanted:
                path.chmod(wanted)


if __name__ == "__main__":
    main(*sys.argv[1:])
