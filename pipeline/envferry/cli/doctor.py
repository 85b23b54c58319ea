"""The command `envferry doctor`: what this machine can do."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

from envferry import __version__, process
from envferry.base.text import human_bytes, plural
from envferry.cli.shared.command import command, option
from envferry.cli.shared.shared_options import EnvsDirOptions, RegistryOptions
from envferry.cli.shared.terminal import styled
from envferry.config import child_environ, settings, started_file
from envferry.engines.selection import REAL_ENGINES, Engine, open_sandbox
from envferry.errors import HostError, PipelineError, SpecError
from envferry.install.host.host_check import glibc_version
from envferry.names import current_platform
from envferry.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envferry.cli.shared.console import Console
    from envferry.config import Settings

LIBRARIES = (
    "conda-lock",
    "conda-pack",
    "py-rattler",
    "uv",
    "zstandard",
    "xxhash",
    "blake3",
    "boto3",
)


class DoctorOptions(RegistryOptions, EnvsDirOptions):
    """What to look at."""

    name: str | None = option(
        "--for",
        metavar="NAME",
        help="Instead show whether the installed environment NAME can run here (driver, GPUs,"
        " glibc) and what it compiles with; the exit code is 11 if anything is lacking.",
    )


@command(DoctorOptions)
def doctor(console: Console, options: DoctorOptions) -> int:
    """Show what this machine supports: sandbox engines, versions, disk space, the registry.

    The exit code is 11 if something is broken: a GPU driver or a registry that does not answer,
    no place for the cache, a build machine without a sandbox engine that works. With --json,
    `problems` names these.
    """
    if options.name:
        show_fit(console, options.name, options.envs_dir)
        return 0
    here = settings()
    findings = {
        "envferry": f"{__version__}, Python {sys.version.split()[0]}",
        "platform": f"{current_platform()}, glibc {glibc_version() or 'none'}",
        **{f"sandbox {engine.value}": engine_state(engine) for engine in REAL_ENGINES},
        **{library: library_version(library) for library in LIBRARIES},
        "cache": cache_state(here),
        "envs": space_at(here.envs_dir),
        "registry": registry_state(options.registry),
        "GPU driver": driver_version(),
    }
    broken = problems(findings, options.registry)
    console.result({**findings, "problems": broken}, lambda: lines_of(findings))
    if broken:
        message = f"this machine has {plural(len(broken), 'problem')}: {'; '.join(broken)}"
        raise HostError(message, hint="fix them, then run `envferry doctor` again")
    return 0


def problems(findings: dict[str, str], registry: str) -> list[str]:
    """Return what is broken here, in the words of the findings.

    What a machine merely lacks is no problem: a training host has no sandbox engine, and a registry
    in a directory is made by the first push.
    """
    engines = [text for label, text in findings.items() if label.startswith("sandbox ")]
    found = []
    # A machine that can lock is a build machine, which needs a sandbox engine.
    if not findings["conda-lock"].startswith("not ") and not any(
        text.startswith("works") for text in engines
    ):
        reason = findings["sandbox bwrap"].removeprefix("no: ")
        found.append(f"it can lock, but no sandbox engine works here: {reason}")
    if findings["cache"].startswith("no: "):
        found.append(findings["cache"].removeprefix("no: "))
    if findings["GPU driver"] == "does not answer":
        found.append("the GPU driver does not answer")
    if "://" in registry and not findings["registry"].endswith(("artifact", "artifacts")):
        found.append(findings["registry"])
    return found


def show_fit(console: Console, name: str, envs_dir: Path) -> None:
    """Show whether an environment can run here now, and what it finds of what it compiles with.

    Raises HostError when the host lacks something: a driver may have changed since the install.
    """
    from envferry.base.run_time_compilers import TOOLS
    from envferry.install.host.host_check import installed_findings
    from envferry.install.host.host_compilers import find_compilers
    from envferry.install.records.env_home import EnvHome
    from envferry.install.records.installed import chosen_id

    home = EnvHome.of(envs_dir, name)
    id_ = chosen_id(home, None)
    faults = [f"{finding}: {text}" for finding, text in installed_findings(home, id_)]
    compilers = find_compilers(home, id_)
    lines = [
        *faults,
        *(
            f"{one.package}  {one.when}: {TOOLS[tool]}: {state}"
            for one in compilers
            for tool in one.needs
            for state in ("lacking" if tool in one.lacks else "here",)
        ),
    ]
    nothing = f"{name}@{id_}: this host has all that it needs"
    console.result({"host": faults, "compilers": compilers}, lambda: lines or [nothing])
    if faults:
        message = f"this host cannot run {name}@{id_}"
        raise HostError(message, hint="fix what is named above, or install an older version")
    lacking = sorted({TOOLS[tool] for one in compilers for tool in one.lacks})
    if lacking:
        message = f"this host lacks what {name}@{id_} compiles with: {', '.join(lacking)}"
        raise HostError(message, hint="install it here, or add it to the environment's spec")


def lines_of(findings: dict[str, str]) -> Iterator[str]:
    """Yield one line for each finding."""
    width = max(len(label) for label in findings)
    for label, text in findings.items():
        yield f"{styled(label.ljust(width), bold=True)}  {text}"


def engine_state(engine: Engine) -> str:
    """Say whether a sandbox engine works, and why not."""
    try:
        sandbox = open_sandbox(engine)
    except PipelineError as error:
        return f"no: {error.message}" + (f" ({error.hint})" if error.hint else "")
    return "works" + (f", image {sandbox.image[:19]}" if sandbox.image else "")


def library_version(name: str) -> str:
    """Return the version of a library, or which extra brings it."""
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        if started_file():
            return "not in this file, which is for training hosts"
        extra = "s3" if name == "boto3" else "build"
        return f'not installed (run: pip install "envferry[{extra}]")'


def cache_state(here: Settings) -> str:
    """Say where the cache is, or why there is no place for it."""
    try:
        return space_at(here.cache_dir)
    except SpecError as error:
        return f"no: {error.message} ({error.hint})"


def space_at(path: Path) -> str:
    """Return a directory and the space that is free there."""
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    free = human_bytes(shutil.disk_usage(existing).free)
    return f"{path}, {free} free" + ("" if existing == path else ", not created yet")


def registry_state(url: str) -> str:
    """Say whether the registry answers."""
    try:
        entries = Registry.open(url).environments()
    except PipelineError as error:
        return f"{url}: {error.message}"
    return f"{url}: {plural(len(entries), 'artifact')}"


def driver_version() -> str:
    """Return the version of the NVIDIA driver."""
    if process.find_program("nvidia-smi") is None:
        return "none"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    finished = process.run(query, env=child_environ(), check=False)
    return (
        finished.stdout.strip().splitlines()[0] if finished.returncode == 0 else "does not answer"
    )
