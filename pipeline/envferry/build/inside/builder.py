"""Runs inside the container: conda packages first, wheels after, byte code last."""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
from importlib import metadata
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from envferry import process
from envferry.base.json import decode_json
from envferry.base.site_packages import site_packages_folders
from envferry.build.inside.built_tree import BuiltTree, NotIncremental, NotSeparable, say
from envferry.build.inside.clobbers import describe_conda_overlaps
from envferry.build.inside.conda_meta import STATE, CondaRecords
from envferry.build.inside.incremental import fills_empty_folder
from envferry.build.inside.incremental_conda import add_packages, files_of, why_not_incremental
from envferry.build.inside.link_scripts import describe_pre_link_scripts, run_link_scripts
from envferry.build.inside.wheel_half import add_wheel_half
from envferry.build.request import BuildAnswer, BuildRequest, LinkAnswer
from envferry.config import child_environ
from envferry.errors import HostError, PipelineError, SpecError, ToolFailed
from envferry.worker_process import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

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
            why_not_reusable=tree.why_not_reusable,
            wheel_warnings=tuple(tree.wheel_warnings),
            contested=tree.contested,
            wheel_files=tree.wheel_files,
            conda_files=tree.conda_files,
            conda_tied=tree.conda_tied,
            data=tuple(tree.data),
            site_packages=tree.site_packages,
        )
    except NotSeparable as reason:
        answer = BuildAnswer(tools=tools, why_whole=str(reason))
    # Not an error: the host starts over, with an empty prefix.
    except NotIncremental as reason:
        answer = BuildAnswer(tools=tools, why_from_scratch=str(reason))
    except PipelineError as error:
        answer = BuildAnswer(error=error.message, hint=error.hint, exit_code=error.exit_code)
    except OSError as error:
        answer = BuildAnswer(
            error=f"the build stopped: {error}",
            hint="run it again with -v to see how far it got",
            exit_code=HostError.exit_code,
        )
    # By words, since rattler and uv report ENOSPC as text and not as an OSError.
    if answer.error and any(words in answer.error for words in DISK_FULL):
        answer = BuildAnswer(
            error=f"no space left on the disk of the build ({request.prefix})",
            hint="free some space, or put the cache elsewhere with ENVFERRY_CACHE",
            exit_code=HostError.exit_code,
        )
    sys.stdout.write(msgspec.json.encode(answer).decode())


def build_prefix(request: BuildRequest) -> BuiltTree:
    """Make the environment at its final prefix.

    Raises NotIncremental where that prefix was started, and has to be made from scratch.
    """
    prefix, made = Path(request.prefix), BuiltTree()
    if request.is_started:
        records = add_to_conda_half(request, made)
    else:
        records = make_conda_half(request, made)
    made.site_packages = records.site_packages
    add_wheel_half(request, records, made)
    # Records last: they list the byte code that was compiled for the wheel half, too.
    urls = {file.name: file.url for file in request.conda}
    records.finish({name: urls[name] for name in made.conda_files})
    made.data = list(place_data(prefix, request, made))
    # A package may have brought one: the next build leaves it out, as if it were ours.
    if os.path.lexists(prefix / STATE):
        made.forbid_reuse(f"a package brought {STATE}")
    if request.variables:
        write_state(prefix, request.variables)
    tidy(prefix, Path(request.scratch))
    return made


def make_conda_half(request: BuildRequest, made: BuiltTree) -> CondaRecords:
    """Link the conda packages and run their scripts; return their records."""
    say(f"linking {len(request.conda)} conda packages")
    linked = link_conda_packages(request)
    made.conda_warnings += linked.warnings
    records = CondaRecords.read(Path(request.prefix))
    # Before the wheels: scripts expect the packages of conda alone, as at conda's own install.
    made.conda_warnings += run_link_scripts(records, linked.linked, say)
    made.conda_warnings += describe_pre_link_scripts(records)
    made.conda_warnings += describe_conda_overlaps(records)
    # Before what rattler put aside is forgotten: that is one of the reasons.
    made.conda_tied = why_not_incremental(records)
    records.forget_aside()
    made.conda_files = files_of(records)
    return records


def add_to_conda_half(request: BuildRequest, made: BuiltTree) -> CondaRecords:
    """Put the conda packages into a started prefix that it lacks; return all records.

    Raises NotIncremental for whatever a build from scratch may say or do in another way.
    """
    prefix = Path(request.prefix)
    if not request.changes_conda:
        return CondaRecords.read(prefix)
    say(f"linking {sum(bool(file.path) for file in request.conda)} conda packages")
    try:
        linked = link_conda_packages(request)
    except PipelineError as error:
        raise NotIncremental(error.message) from error
    made.conda_warnings += linked.warnings
    made.conda_files = add_packages(prefix, Path(request.added_prefix), request.wheel_files)
    return CondaRecords.read(prefix)


def place_data(prefix: Path, request: BuildRequest, made: BuiltTree) -> Iterator[str]:
    """Put the files that belong to no package in their places; yield where they landed.

    A folder on the way may be a link of a package.

    Raises SpecError where a package has put something, or a link leads out of the environment.
    """
    # Some of these are linked into the tree later.
    brought = {*chain.from_iterable(made.wheel_files.values()), *request.wheel_files}
    for item in request.data:
        target = prefix / item.target
        # A link that leads nowhere does not exist, and would be written through.
        if target.exists() or target.is_symlink() or item.target in brought:
            message = f"{item.target} of `envferry: data:` already exists: a package brings it"
            raise SpecError(message, hint="give it another `path:`")
        if fills_empty_folder(prefix, (item.target,)):
            made.forbid_reuse(f"{item.target} of `envferry: data:` is in a folder that was empty")
        try:
            if any(str(parent) in brought for parent in PurePosixPath(item.target).parents):
                raise NotADirectoryError
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            message = f"{item.target} of `envferry: data:` lies below a file of a package"
            raise SpecError(message, hint="give it another `path:`") from error
        if not target.parent.resolve().is_relative_to(prefix.resolve()):
            message = f"{item.target} of `envferry: data:` leads out of the environment"
            raise SpecError(message, hint="give it another `path:`")
        shutil.copyfile(item.path, target)
        # copyfile makes a file by the umask, which must not show.
        target.chmod(0o644)
        yield str((target.parent.resolve() / target.name).relative_to(prefix.resolve()))


def write_state(prefix: Path, variables: dict[str, str]) -> None:
    """Note what activation sets where conda does (CEP 32)."""
    state = {"env_vars": variables}
    encoded = msgspec.json.encode(state, order="sorted")
    (prefix / STATE).write_bytes(encoded + b"\n")


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
            hint="lock again: `envferry lock` solves for compatible packages; where a file of one "
            "is a folder of another, keep one of the two",
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
    # Before the look beside the prefix: the scratch folder lies there.
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
        # os.walk lists links to folders among `folders`; it does not enter them. As text: a Path
        # for each of 70,000 files costs more than to look at them.
        for path in (directory, *(f"{directory}/{name}" for name in (*folders, *names))):
            found = os.lstat(path).st_mode
            if stat.S_ISLNK(found):
                continue
            wanted = 0o755 if stat.S_ISDIR(found) or found & 0o111 else 0o644
            if stat.S_IMODE(found) != wanted:
                os.chmod(path, wanted)  # noqa: PTH101


if __name__ == "__main__":
    main(*sys.argv[1:])
