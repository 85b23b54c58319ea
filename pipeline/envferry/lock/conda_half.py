"""The conda half of a lock: solved by rattler, or by a conda of the user's through conda-lock.

This is the only module that calls conda-lock's functions, for its content hash and for other
solvers. They are no interface, so conda-lock's version is pinned and everything about them is
here. They run in a worker process, `python -m envferry.lock.conda_half REQUEST ANSWER`, because
conda-lock changes the environment variables of its process and prints as it likes.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
from blake3 import blake3
from packaging.utils import canonicalize_name

from envferry.base.workers import Workers
from envferry.config import child_environ
from envferry.errors import SpecError, ToolFailed
from envferry.lock.command_line_credentials import write_netrc
from envferry.lock.locked_records import locked_record
from envferry.lock.repodata import extract
from envferry.lock.solver_output import (
    NOT_CACHED,
    UNREACHABLE,
    not_cached,
    tidy,
    unreachable_channel,
)
from envferry.lock.solving import SolveRequest, solve
from envferry.lock.spec_lines import Wanted, wanted_line
from envferry.lock.virtual_packages import virtual_packages
from envferry.models import (
    ChannelPriority,
    LockedPackage,
    SystemRequirements,
    build_string,
    without_credentials,
)
from envferry.process import CalledProcessError
from envferry.specs.conda_lines import conda_name
from envferry.worker_process import Worker, answer_request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envferry.errors import PipelineError
    from envferry.lock.repodata import ChannelIndexes

log = logging.getLogger(__name__)

NAMES_PATH = Path(__file__).with_name("pypi_names.json")

NO_CHANNEL = re.compile(r"is not a supported scheme|could not parse url|[Ii]nvalid channel")
NO_PACKAGE = re.compile(r"No candidates were found for ([\w.-]+)")
NO_JSON = re.compile(r"Failed to parse json")
NO_LINE = re.compile(r"Failed to turn `(.*)` into a MatchSpec \((?:Invalid spec '.*?': )?(.*)\)")
NO_NAME = re.compile(r"invalid package name '(.*?)': (.*)")
CONDA_LOCK_FAULTS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(NotImplementedError, RuntimeError, TypeError, ValueError),
)
"""What conda-lock raises for lines that it cannot read: it has no errors of its own."""


class CondaRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to solve, for every platform at once."""

    spec_path: str
    platforms: tuple[str, ...]
    channels: tuple[str, ...]
    """The channels to solve with; they win over those of the spec."""
    channels_as_written: tuple[str, ...]
    """The same channels as people wrote them: what conda-lock's content hash is made of."""
    conda: dict[str, tuple[str, ...]]
    """The match specs to solve, by platform."""
    has_pip: bool
    system: SystemRequirements = SystemRequirements()
    solver: str | None = None
    """A conda, mamba or micromamba to use instead of our solver."""
    kept: tuple[LockedPackage, ...] = ()
    """What an earlier lock has: stays, as far as the specs allow it."""
    updated: tuple[str, ...] = ()
    """Names that alone may move; when there are any, all else of `kept` must stay."""
    exclude_newer: str | None = None
    """A date: what a channel got later does not exist."""
    known_hashes: dict[str, str] = {}
    """conda-lock's content hashes that need not be computed, by platform."""
    priority: ChannelPriority = "strict"
    """Whether a package may come from a channel behind the first that has its name."""
    offline: bool = False
    """Whether only the solver's cache of repodata is read."""


class CondaAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker found; `error` is the solver's own explanation when it found nothing."""

    packages: tuple[LockedPackage, ...] = ()
    content_hashes: dict[str, str] = {}
    error: str = ""
    platform: str = ""
    """The platform that could not be solved."""
    bad_line: str = ""
    """The line that is not a valid match spec, if `error` is about one."""
    elsewhere: tuple[str, ...] = ()
    """`CHANNEL::NAME` of what a solution would take from channels that priority hides."""


def solve_conda_half(request: CondaRequest, indexes: ChannelIndexes) -> CondaAnswer:
    """Solve the conda half of a spec.

    Raises SpecError when it has no solution, StoreError when a channel cannot be reached.
    """
    if request.solver:
        answer = _ask_conda_lock(request)
        if answer.error:
            raise explain(answer, request)
        return answer
    with Workers(1, "hash") as thread:
        hashes = thread.submit(_content_hashes, request)
        packages: list[LockedPackage] = []
        for platform in request.platforms:
            answer = solve_platform(request, platform, indexes)
            if answer.error:
                raise explain(answer, request)
            packages += answer.packages
        return CondaAnswer(packages=tuple(packages), content_hashes=hashes.result())


def solve_platform(request: CondaRequest, platform: str, indexes: ChannelIndexes) -> CondaAnswer:
    """Have rattler solve what the channels have for one platform."""
    lines = [*request.conda[platform]]
    wanted = [wanted_line(line, request.channels) for line in lines]
    if request.has_pip and not any(item.name == "pip" for item in wanted):
        wanted.append(Wanted(line="pip", spec="pip", name="pip"))
    # As conda does: a line may name a channel that the list does not have.
    own = {item.channel for item in wanted if item.channel} - {*request.channels}
    with tempfile.TemporaryDirectory(prefix="envferry-index-") as directory:
        names = [item.name for item in wanted if item.name]
        channels = (*request.channels, *sorted(own))
        answer = solve(
            SolveRequest(
                wanted=tuple(wanted),
                tiers=extract(indexes, channels, platform, names, Path(directory)),
                virtual_packages=virtual_packages(request.system, platform),
                kept=tuple(item.url for item in request.kept if item.platform == platform),
                updated=request.updated,
                exclude_newer=request.exclude_newer,
                priority=request.priority,
            )
        )
    packages = tuple(locked_record(record, platform) for record in answer.records)
    return CondaAnswer(
        packages=packages,
        error=answer.error,
        platform=platform,
        bad_line=answer.bad_line,
        elsewhere=answer.elsewhere,
    )


def _content_hashes(request: CondaRequest) -> dict[str, str]:
    """Return conda-lock's hash of the spec by platform; one of ours where it cannot read it.

    Nothing is decided by it: it is what `conda-lock lock --check-input-hash` compares.
    """
    if not {*request.platforms} - request.known_hashes.keys():
        return {platform: request.known_hashes[platform] for platform in request.platforms}
    try:
        return _ask_conda_lock(request).content_hashes
    except ToolFailed as error:
        log.info("conda-lock cannot read %s: %s", request.spec_path, error)
        text = Path(request.spec_path).read_bytes()
        return {
            platform: blake3(text + platform.encode()).hexdigest() for platform in request.platforms
        }


def _ask_conda_lock(request: CondaRequest) -> CondaAnswer:
    """Run the worker."""
    with tempfile.TemporaryDirectory(prefix="envferry-conda-") as directory:
        scratch = Path(directory)
        environ = child_environ(TMPDIR=directory)
        if request.solver:
            if request.offline:  # conda and mamba, micromamba
                environ |= {"CONDA_OFFLINE": "true", "MAMBA_OFFLINE": "true"}
            environ["NETRC"] = str(write_netrc(scratch / "netrc", request.channels))
        worker = Worker(module="envferry.lock.conda_half", scratch=scratch, environ=environ)
        return worker.ask(request, CondaAnswer)


def pypi_name(conda_name: str) -> str:
    """Return the name that a conda package's python distribution has."""
    return _pypi_names().get(conda_name.lower(), conda_name)


def explain(answer: CondaAnswer, request: CondaRequest) -> PipelineError:
    """Turn the solver's words into an error."""
    words = tidy(answer.error).removeprefix("Cannot solve the request because of: ")
    channels = without_credentials(", ".join(request.channels))
    if request.solver and request.offline and NOT_CACHED.search(words):
        return not_cached(words)
    if UNREACHABLE.search(words):
        return unreachable_channel(words, request.channels)
    if NO_CHANNEL.search(words):
        message = f"one of the channels is not valid ({channels}): {words}"
        return SpecError(
            message, hint="a channel is a name, an https:// or file:// URL, or a folder"
        )
    if request.solver and NO_JSON.search(words):
        message = f"{request.solver} does not answer as conda does: {words}"
        return ToolFailed(message, hint="leave out `--solver`: envferry has its own solver")
    if answer.bad_line:
        message = f"{request.spec_path}: `{answer.bad_line}` is not a valid conda package: {words}"
        return SpecError(message, hint="write it as `name >=1.2,<2` or `name=1.2=build`")
    if line := NO_LINE.search(words) or NO_NAME.search(words):
        message = f"{request.spec_path}: `{line[1]}` is not a valid conda package: {line[2]}"
        return SpecError(message, hint="write it as `name >=1.2,<2` or `name=1.2=build`")
    return _unsolvable(answer, request, words)


def _unsolvable(answer: CondaAnswer, request: CondaRequest, words: str) -> SpecError:
    """Return the error for a request without a solution, with what would give one."""
    channels = without_credentials(", ".join(request.channels))
    if request.updated:
        message = (
            f"{', '.join(request.updated)} cannot be updated alone on {answer.platform}: {words}"
        )
        return SpecError(
            message, hint="name the packages to update with it, or run `envferry lock --upgrade`"
        )
    message = f"the conda half has no solution for {answer.platform} from {channels}: {words}"
    hint = "change the pins that it names, or let `--relax build` drop build strings"
    if answer.elsewhere:
        others = ", ".join(answer.elsewhere)
        message = f"{message}\nthere is one with {others}, but an earlier channel has the name too"
        hint = (
            f"ask for it by its channel (`{answer.elsewhere[0]}`), or let every package come from "
            "there: `envferry: {channel_priority: flexible}`"
        )
        return SpecError(message, hint=hint)
    if (unknown := NO_PACKAGE.search(words)) and unknown[1] != canonicalize_name(unknown[1]):
        hint = f"channels made of wheels call it `{canonicalize_name(unknown[1])}`"
    lacking = re.search(r"__(glibc|cuda_arch|cuda|archspec) \D*([\w.]+)", words)
    if lacking:
        # The solver never looks at this machine, the lock is for others.
        offer = f"{lacking[1]}: '{lacking[2].rstrip('.')}'"
        hint = f"if the hosts offer it, declare it: `envferry: {{system: {{{offer}}}}}`"
    return SpecError(message, hint=hint)


@cache
def _pypi_names() -> dict[str, str]:
    """Return the conda packages whose python distribution has another name, with that name."""
    entries = json.loads(NAMES_PATH.read_bytes())
    return {entry["conda_name"]: entry["pypi_name"] for entry in entries.values()}


def _work(request: CondaRequest, scratch: Path) -> CondaAnswer:
    """Hash every platform, and solve it where another solver is to: the body of the worker."""
    packages: list[LockedPackage] = []
    hashes: dict[str, str] = {}
    for platform in request.platforms:
        try:
            if request.solver:
                packages += _solve_by_conda(request, platform, request.solver, scratch)
        except CalledProcessError as error:
            return CondaAnswer(error=_solver_message(error.stdout or ""), platform=platform)
        except (RuntimeError, ValueError) as error:  # a match spec that conda-lock cannot read
            return CondaAnswer(error=f"{error} ({error.__cause__})", platform=platform)
        hashes[platform] = _content_hash(request, platform, scratch)
    return CondaAnswer(packages=tuple(packages), content_hashes=hashes)


def _solve_by_conda(
    request: CondaRequest, platform: str, solver: str, scratch: Path
) -> list[LockedPackage]:
    """Have conda-lock call a conda, mamba or micromamba."""
    from conda_lock.conda_solver import solve_conda

    # What conda-lock knows, it says on command lines, which all users of the machine can read.
    channels = tuple(without_credentials(channel) for channel in request.channels)
    dependencies: list[Any] = [without_credentials(line) for line in request.conda[platform]]
    if not request.solver:  # ours gets the lines themselves: conda-lock drops their brackets
        dependencies = list(dict.fromkeys(map(conda_name, dependencies)))
    if request.has_pip:
        dependencies.append({"pip": []})  # conda-lock then asks conda for pip itself
    content = {"channels": [*channels], "dependencies": dependencies}
    spec = _parse(content, channels, platform, scratch)
    held = _held(request, platform, scratch) if request.updated else {}
    offered = _virtual_packages(request.system, platform, scratch)
    with offered, offered.conda_virtual_package_overrides(platform):
        solved = solve_conda(
            solver,
            specs={item.name: item for item in spec.dependencies[platform]} | held,
            locked={},
            update=[],
            platform=platform,
            channels=[*spec.channels, offered.channel],
            mapping_url=str(NAMES_PATH),
        )
    return [
        LockedPackage(
            manager="conda",
            name=item.name,
            version=item.version,
            platform=platform,
            url=item.url,
            sha256=item.hash.sha256,
            md5=item.hash.md5,
            build=build_string(item.url.rsplit("/", 1)[-1]),
            dependencies=item.dependencies,
        )
        for item in solved.values()
        if not item.name.startswith("__")
    ]


def _held(request: CondaRequest, platform: str, scratch: Path) -> dict[str, Any]:
    """Return exact pins of all that must stay, for a solver that takes nothing but specs."""
    pins = [
        f"{package.name}={package.version}={package.build}"
        for package in request.kept
        if package.platform == platform and package.name not in request.updated
    ]
    if not pins:
        return {}
    channels = tuple(without_credentials(channel) for channel in request.channels)
    content = {"channels": [*channels], "dependencies": pins}
    spec = _parse(content, channels, platform, scratch)
    return {item.name: item for item in spec.dependencies[platform]}


def _content_hash(request: CondaRequest, platform: str, scratch: Path) -> str:
    """Return what `conda-lock lock --check-input-hash` computes for the spec as written."""
    import yaml
    from conda_lock.content_hash import compute_content_hashes
    from conda_lock.src_parser.selectors import filter_platform_selectors

    text = Path(request.spec_path).read_text(encoding="utf-8")
    content = yaml.safe_load("\n".join(filter_platform_selectors(text, platform=platform)))
    content["dependencies"] = [
        {**item, "pip": _requirements_only(item.get("pip"), platform)}
        if isinstance(item, dict)
        else _readable(str(item))
        for item in content["dependencies"] or []
    ]
    spec = _parse(content, request.channels_as_written, platform, scratch)
    hashes = compute_content_hashes(spec, _virtual_packages(request.system, platform, scratch))
    return str(hashes[platform])


def _requirements_only(lines: list[str] | None, platform: str) -> list[str] | None:
    """Return the lines of a pip section that conda-lock knows, in a form that it can read.

    It knows no option lines and no bare paths and URLs, and not every marker: without its marker
    a line can be read, and the hash is only metadata.
    """
    known = []
    for line in map(str, lines or ()):
        bare = line.partition(";")[0].strip()
        form = next((form for form in (line, bare) if _reads_requirement(form, platform)), None)
        known += [form] if form else []
    return None if lines is None else known


def _reads_requirement(line: str, platform: str) -> bool:
    from conda_lock.src_parser.markers import evaluate_marker
    from conda_lock.src_parser.pyproject_toml import parse_python_requirement
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        Requirement(line)
        parsed = parse_python_requirement(line, manager="pip", mapping_url=str(NAMES_PATH))
        evaluate_marker(parsed.markers, platform)
    except (InvalidRequirement, *CONDA_LOCK_FAULTS):
        return False
    return True


def _readable(line: str) -> str:
    """Return a conda line in a form that conda-lock can read: the bare name if need be."""
    from conda_lock.src_parser.conda_common import conda_spec_to_versioned_dep

    try:
        conda_spec_to_versioned_dep(line, "main")
    except CONDA_LOCK_FAULTS:
        return conda_name(line)
    return line


def _parse(
    content: Mapping[str, Any], channels: tuple[str, ...], platform: str, scratch: Path
) -> Any:  # noqa: ANN401  (a LockSpecification: conda-lock's types are not imported here)
    """Let conda-lock parse a spec for one platform."""
    import yaml
    from conda_lock.src_parser import make_lock_spec

    path = scratch / "environment.yml"
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False), encoding="utf-8")
    return make_lock_spec(
        src_files=[path],
        channel_overrides=list(channels),
        platform_overrides=[platform],
        mapping_url=str(NAMES_PATH),
    )


def _virtual_packages(system: SystemRequirements, platform: str, scratch: Path) -> Any:  # noqa: ANN401  (a FakeRepoData)
    """Return conda-lock's virtual packages, changed where the spec says what hosts offer."""
    import yaml
    from conda_lock.virtual_package import (
        DEFAULT_VIRTUAL_PACKAGES_YAML_PATH,
        default_virtual_package_repodata,
        virtual_package_repo_from_specification,
    )

    if not (system.glibc or system.archspec or system.cuda_arch):
        return default_virtual_package_repodata(cuda_version=system.cuda or "default")
    content = yaml.safe_load(DEFAULT_VIRTUAL_PACKAGES_YAML_PATH.read_text(encoding="utf-8"))
    changes = {
        "__glibc": system.glibc,
        "__cuda": system.cuda,
        "__archspec": system.archspec and f"1 {system.archspec}",
    }
    packages = content["subdirs"][platform]["packages"]
    packages.update({name: text for name, text in changes.items() if text and name in packages})
    if system.cuda_arch and "__cuda" in packages:  # CEP 46: it exists only with `__cuda`
        packages["__cuda_arch"] = f"{system.cuda_arch} 0"
    path = scratch / "virtual-packages.yml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return virtual_package_repo_from_specification(path)


def _solver_message(stdout: str) -> str:
    """Return the explanation in a solver's JSON answer, or all of it when it is not JSON."""
    try:
        return str(json.loads(stdout[stdout.index("{") :])["message"])
    except (ValueError, KeyError, TypeError):
        return stdout.strip() or "the solver gave no reason"


def main() -> NoReturn:
    """Answer one request file: what the worker process runs."""
    logging.basicConfig(level=logging.ERROR)
    # Raised where conda-lock waits for the solver, which is then killed.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    answer_request(CondaRequest, _work)


if __name__ == "__main__":
    main()
