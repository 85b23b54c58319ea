"""Lock, cold and warm, held against conda-lock's own pip solver on the same list."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import socket
import statistics
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from platform import libc_ver
from typing import TYPE_CHECKING

from conda_lock._vendor.poetry.repositories.pypi_repository import PyPiRepository

from benchmarks.comparing import Command, Result, in_turn, run_once, seconds_result
from benchmarks.full_channel import ASKED, RECORDS, make_full_channel
from demo.background import background
from demo.walkthrough import ENVFERRY, PROJECT
from envferry.lock.pypi_names import NAMES_PATH
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
SOLVER = '#!/bin/sh\nexec {python} -m envferry.lock.conda.conda_solver "$@"\n'


def results(environment: Environment) -> Iterator[Result]:
    """Yield the figures of locking."""
    work = environment.home / "bench-lock"
    shutil.rmtree(work, ignore_errors=True)
    (work / "specs").mkdir(parents=True)
    channel = environment.home / "channel"
    yield cold_result(work, channel)
    yield from warm_results(environment, work)
    yield from full_size_results(work)
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
    names = work / "names.json"
    names.write_text(json.dumps(names_for_conda_lock()))
    output = ("--lockfile", work / "other-lock.yml", "--pypi_to_conda_lookup_file", names)
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


def names_for_conda_lock() -> dict[str, dict[str, str]]:
    """Return our table of names as conda-lock reads one: an entry for each name on indexes."""
    table: dict[str, list[str]] = json.loads(NAMES_PATH.read_text())
    return {
        pypi: {"conda_name": conda, "conda_forge": conda, "pypi_name": pypi}
        for conda, names in table.items()
        for pypi in names
    }


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


def full_size_results(work: Path) -> Iterator[Result]:
    """Lock from a channel of conda-forge's size: as files, behind http, and in shards."""
    channel, whole, spec = work / "full", work / "whole", work / "specs/full.yml"
    make_full_channel(channel)
    for subdir in RECORDS:
        (whole / subdir).mkdir(parents=True)
        for name in ("repodata.json", "repodata.json.zst"):
            (channel / subdir / name).rename(whole / subdir / name)
    size = sum(path.stat().st_size for path in whole.glob("*/repodata.json"))
    note = f"{sum(RECORDS.values()):,} records, {size / 1e6:.0f} MB of JSON"
    cache = work / "full-cache"
    ours = full_lock(spec, str(whole), cache)
    other = Command.of(sys.executable, "-m", "benchmarks.sparse_solve", whole, *ASKED)
    first = run_once(ours)
    runs = in_turn(ours, other, rounds=3)
    yield seconds_result("lock_full_repodata", runs, 1.2, note)
    note = (
        "the first lock of a spec, from an index that is new: read through, hashed for conda-lock"
    )
    reader = statistics.median(run.seconds for run in runs[1])
    yield Result(
        name="lock_full_first", ours=first.seconds, other=reader, goal=2, unit="s", note=note
    )
    peaks = [run.peak_bytes for run in (first, *runs[0])]
    with serving(work) as url:
        overs = [run_once(full_lock(spec, f"{url}/whole", cache)) for _ in range(4)]
        shards = [run_once(full_lock(spec, f"{url}/full", cache)) for _ in range(4)]
    peaks += [run.peak_bytes for run in (*overs, *shards)]
    for name, runs_of in (("http", overs), ("shards", shards)):
        cold, *warm = (run.seconds for run in runs_of)
        note = f"{cold:.1f} s with nothing fetched"
        seconds = statistics.median(warm)
        result = Result(name=f"lock_full_{name}_warm", ours=seconds, other=1, goal=5, unit="s")
        yield dataclasses.replace(result, note=note)
    yield Result(name="lock_full_rss", ours=max(peaks) / 1e6, other=1, goal=500, unit="MB")
    fetched = sum(path.stat().st_size for path in (cache / "repodata/shards").rglob("*.zst"))
    packed = sum(path.stat().st_size for path in whole.glob("*/repodata.json.zst"))
    note = "bytes of the shards that were fetched, held against the whole index, compressed"
    yield Result(
        name="lock_full_shards_bytes",
        ours=fetched / 1e6,
        other=packed / 1e6,
        goal=0.1,
        unit="MB",
        note=note,
    )


def full_lock(spec: Path, channel: str, cache: Path) -> Command:
    """Return the command that locks from a channel, anew."""
    lines = ["name: full", f"channels: ['{channel}']", "dependencies:"]
    text = "\n".join([*lines, *(f"  - {item}" for item in ASKED), ""])
    return Command(
        argv=(str(ENVFERRY), "lock", str(spec), "--upgrade", "-q"),
        prepare=lambda: write_text(spec, text),
        environ=(("ENVFERRY_CACHE", str(cache)),),
    )


def write_text(path: Path, text: str) -> None:
    """Write a file."""
    path.write_text(text)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder by a process of its own; yield the URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = (sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "-d", folder)
    with background([*map(str, words)], log_path=folder / "server.log"):
        while True:
            with socket.socket() as asking:
                if asking.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
