"""Lock, cold and warm, held against conda-lock's own pip solver on the same list."""

from __future__ import annotations

import re
import shutil
import statistics
import sys
from pathlib import Path
from platform import libc_ver
from typing import TYPE_CHECKING

from conda_lock._vendor.poetry.repositories.pypi_repository import PyPiRepository

from benchmarks.comparing import Command, Result, in_turn, run_once, seconds_result
from demo.voyage import ENVFERRY, PROJECT
from envferry.lock.conda_half import NAMES_PATH
from envferry.specs.reading import read_spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.environments import Environment

USERS_SPEC = PROJECT / "specs/transformer_env.yml"
# What people ask for of the reference environment, with what needs no CUDA.
LIST = Path(__file__).with_name("lock_list.txt")
GLIBC = libc_ver()[1]
SYSTEM = f'envferry:\n  system: {{glibc: "{GLIBC}"}}\n'
VIRTUAL = (
    f'subdirs: {{linux-64: {{packages: {{__glibc: "{GLIBC}", __unix: "0", __linux: "5.10"}}}}}}\n'
)
TOOLS = ("pip==25.2", "setuptools==80.9.0", "wheel==0.45.1")
SOLVER = '#!/bin/sh\nexec {python} -m envferry.lock.conda_solver "$@"\n'


def results(environment: Environment) -> Iterator[Result]:
    """Yield the figures of locking."""
    work = environment.home / "bench-lock"
    shutil.rmtree(work, ignore_errors=True)
    (work / "specs").mkdir(parents=True)
    channel = environment.home / "channel"
    yield cold_result(work, channel)
    yield from warm_results(environment, work)
    shutil.rmtree(work)


def cold_result(work: Path, channel: Path) -> Result:
    """Lock a list of pins with empty caches, ours and conda-lock's, in turn."""
    spec, other_spec, solver = work / "specs/list.yml", work / "other.yml", work / "conda"
    pins = listed_pins()
    lines = ["name: list", f"channels: ['{channel}']", "dependencies:", "  - python", "  - pip"]
    spec.write_text("\n".join([*lines, "  - pip:", *(f"      - '{pin}'" for pin in pins), SYSTEM]))
    # Asked as a repository of one's own, an index need not speak its own JSON.
    index = (
        f"pip-repositories: ['{PyPiRepository()._base_url}simple/']\nallow-pypi-requests: false\n"
    )
    other_spec.write_text(spec.read_text().replace(SYSTEM, index))
    solver.write_text(SOLVER.format(python=sys.executable))
    solver.chmod(0o755)
    virtual, cache = work / "virtual.yml", work / "cache"
    virtual.write_text(VIRTUAL)

    def empty() -> None:
        shutil.rmtree(cache, ignore_errors=True)
        for lock in spec.parent.glob("*lock.yml"):
            lock.unlink()

    environ = tuple(
        (name, str(cache / name)) for name in ("XDG_CACHE_HOME", "UV_CACHE_DIR", "PIP_CACHE_DIR")
    )
    ours = Command(argv=(str(ENVFERRY), "lock", str(spec), "-q"), prepare=empty, environ=environ)
    words = ("lock", "-f", other_spec, "-p", "linux-64", "--conda", solver)
    hosts = ("--virtual-package-spec", virtual)
    output = ("--lockfile", work / "other-lock.yml", "--pypi_to_conda_lookup_file", NAMES_PATH)
    executable = Path(sys.executable).with_name("conda-lock")
    argv = tuple(map(str, (executable, *words, *hosts, *output)))
    other = Command(argv=argv, prepare=empty, environ=environ)
    runs = in_turn(ours, other, rounds=1)
    note = f"{len(pins)} pins, {packages_in(spec.with_name('list.conda-lock.yml'), ours)} packages"
    return seconds_result("lock_vs_conda_lock_cold", runs, 0.25, note)


def listed_pins() -> list[str]:
    """Return the reference environment's pins of what is asked for."""
    wanted = {*LIST.read_text().split()}
    return [line for line in read_spec(USERS_SPEC).pip if re.split("[=\\[]", line)[0] in wanted]


def packages_in(lock: Path, command: Command) -> int:
    """Return how many packages our lock has, made again because the last round removed it."""
    if not lock.exists():
        run_once(command)
    return lock.read_text().count("\n- name:")


def warm_results(environment: Environment, work: Path) -> Iterator[Result]:
    """Lock the users' 204 pins with warm caches: seconds, and bytes of the largest process."""
    # What conda brings must not contradict the users' pins: no newer wheel, which needs packaging.
    channel, spec = work / "channel", work / "specs/transformer_env.yml"
    environment.envferry("channel", "create", channel, "-q", *TOOLS)
    spec.write_text(USERS_SPEC.read_text() + SYSTEM)
    relaxed = ("--relax", "all", "--channel", str(channel), "--upgrade", "-q")
    command = Command.of(ENVFERRY, "lock", spec, *relaxed)
    runs = [run_once(command) for _ in range(4)][1:]
    seconds = statistics.median(run.seconds for run in runs)
    yield Result(name="lock_reference_warm", ours=seconds, other=1, goal=5, unit="s")
    peak = max(run.peak_bytes for run in runs) / 1e6
    yield Result(name="lock_rss", ours=peak, other=1, goal=500, unit="MB")
