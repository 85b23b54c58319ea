"""Releases on workers: how well two share the work of one, what dies, and five hundred on paper.

`python -m benchmarks.scale [--json FILE] [PART]…`; parts: `efficiency`, `kills`, `scheduler`,
`simulation`.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from envferry.names import current_platform
from tests.support.cli_runner import CliRunner
from tests.support.dask_cluster import DaskCluster
from tests.support.tiny_specs import make_tiny_channel, tiny_specs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SPECS = 40
TURNS = (1, 2, 2, 1)
"""How many workers each release of `efficiency` has."""
KILLS, SCHEDULER_KILLS, KILL_SPECS = 20, 5, 4
STORE_ERROR = 9
SIMULATED_SPECS, SIMULATED_WORKERS = 500, 50
LARGE_TASK = 68.8 + 23.2 + 26.1
"""Seconds of the 10 GB environment: build with downloads, pack, push (docs/reference-run.md)."""
SMALL_TASK = 2.0
"""Seconds of the smallest, where `efficiency` did not measure it."""


@dataclass(frozen=True, kw_only=True)
class ReleaseRun:
    """One release of all specs."""

    seconds: float
    """From start to end."""
    before: float
    """From the start to the first job: locks and registry are checked, workers start."""
    after: float
    """From the last answer to the end."""
    tasks: tuple[float, ...]
    """The seconds of each task, as the release says."""


def efficiency(folder: Path, count: int) -> dict[str, Any]:
    """Release the same specs on one worker and on two, each time into an empty registry and cache.

    Twice each, and so that a load that grows or shrinks counts for both.
    """
    names = [f"spec{number:02}" for number in range(count)]
    locked = lock_once(folder / "locked", names)
    runs: dict[int, list[ReleaseRun]] = {1: [], 2: []}
    for number, workers in enumerate(TURNS):
        runner = another(locked, folder / f"home{number}")
        runs[workers].append(release(runner, names, workers))
    # What the registry has is checked, accepted and tagged, and no worker starts.
    started = time.monotonic()
    runner.run("release", *names, "--workers", "1")
    client = time.monotonic() - started
    one, two = (sum(run.seconds for run in runs[workers]) / 2 for workers in (1, 2))
    serial = statistics.mean(run.before + run.after for run in runs[2])
    return {
        "specs": count,
        "seconds_1": [run.seconds for run in runs[1]],
        "seconds_2": [run.seconds for run in runs[2]],
        "efficiency": one / (2 * two),
        "before_seconds": statistics.mean(run.before for run in runs[2]),
        "after_seconds": statistics.mean(run.after for run in runs[2]),
        "serial_seconds": serial,
        "client_seconds_a_spec": client / count,
        "task_seconds": (one - serial) / count,
        "shown_task_seconds": statistics.median(runs[1][0].tasks),
    }


def lock_once(home: Path, names: Sequence[str]) -> CliRunner:
    """Make a channel and specs, and lock these."""
    home.mkdir()
    channel = make_tiny_channel(home / "channel", names)
    return tiny_specs(home, names, str(channel))


def another(locked: CliRunner, home: Path) -> CliRunner:
    """Return the same specs and locks with an empty registry and an empty cache."""
    home.mkdir()
    shutil.copytree(locked.home / "specs", home / "specs")
    environ = {"ENVFERRY_REGISTRY": str(home / "registry")}
    return CliRunner(home=home, cache=home / "cache", environ=environ)


def release(runner: CliRunner, names: Sequence[str], workers: int) -> ReleaseRun:
    """Release on workers of this machine."""
    argv, environ = runner.command("release", *names, "--workers", str(workers), "--json")
    pipe, moments = subprocess.PIPE, [time.monotonic()]
    with subprocess.Popen(
        argv, cwd=runner.home, env=environ, stdout=pipe, stderr=pipe, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        moments += [time.monotonic() for _ in process.stderr]
        found = json.loads(process.stdout.read())
    ended = time.monotonic()
    assert {one["outcome"] for one in found} == {"released"}
    return ReleaseRun(
        seconds=ended - moments[0],
        before=moments[1] - moments[0],
        after=ended - moments[-1],
        tasks=tuple(one["seconds"] for one in found),
    )


def kills(folder: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Kill a worker at a random moment of a release; say what was lost, doubled or half tagged."""
    names = [f"spec{number}" for number in range(KILL_SPECS)]
    locked = lock_once(folder / "to-kill", names)
    span = watched_release(another(locked, folder / "undisturbed"), names).seconds
    found = {"lost": 0, "twice": 0, "half_tagged": 0, "failed": 0, "done_before": 0}
    for seed in seeds:
        runner, moment = another(locked, folder / f"kill{seed}"), random.Random(seed).random()
        run = watched_release(runner, names, victim="first", moment=moment * span)
        ids, tags = published(runner, names)
        one = {
            "failed": int(run.code != 0),
            "lost": sum(not ids[name] for name in names),
            "twice": sum(len(ids[name]) > 1 for name in names),
            "half_tagged": int(len(tags) not in (0, 2 * len(names))),
            "done_before": int(not run.killed),
        }
        found = {name: count + one[name] for name, count in found.items()}
        tell(seed, run, one)
    return {"runs": len(seeds), "undisturbed_seconds": span, **found}


@dataclass(frozen=True, kw_only=True)
class WatchedRelease:
    """An atomic release on a scheduler and two workers, one of which may have been killed."""

    seconds: float
    """From the first stage on a worker to the end."""
    code: int
    said: tuple[str, ...]
    """Its lines on stderr."""
    killed: str = ""
    """What the release had said last when something was killed; empty if it was over before."""


def watched_release(
    runner: CliRunner, names: Sequence[str], *, victim: str = "", moment: float = math.inf
) -> WatchedRelease:
    """Release on two workers; kill the `victim` so many seconds after the first stage began."""
    environ = {**runner.environ, "ENVFERRY_CACHE": str(runner.cache)}
    with DaskCluster(home=runner.home, environ=environ) as cluster:
        programs = {name: cluster.worker(name) for name in ("first", "other")}
        programs["scheduler"] = cluster.scheduler
        argv, environ = runner.command(
            "release", *names, "--scheduler", cluster.address, "--atomic", "--tag", "stable"
        )
        said: list[str] = []
        killed, began = "", 0.0
        with subprocess.Popen(
            argv,
            cwd=runner.home,
            env=environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            begun = threading.Event()

            def listen(lines: Iterable[str]) -> None:
                for line in lines:
                    said.append(line.rstrip())
                    if ", worker " in line:
                        begun.set()
                begun.set()

            listener = threading.Thread(target=listen, args=(process.stderr,))
            listener.start()
            begun.wait()
            began = time.monotonic()
            try:
                process.wait(moment if victim else None)
            except subprocess.TimeoutExpired:
                killed = said[-1]
                programs[victim].kill()
            code = process.wait()
            seconds = time.monotonic() - began
            listener.join()
    return WatchedRelease(seconds=seconds, code=code, said=tuple(said), killed=killed)


def tell(seed: int, run: WatchedRelease, counts: Mapping[str, int]) -> None:
    """Say what became of one seed."""
    where = run.killed or "when it was over"
    sys.stderr.write(f"seed {seed}, killed after: {where}: {dict(counts)}\n")


def published(runner: CliRunner, names: Sequence[str]) -> tuple[dict[str, set[str]], list[str]]:
    """Return the ids of each spec in the registry, and all tags."""
    registry = runner.home / "registry/v1"
    folders = {name: registry / "envs" / name / current_platform() for name in names}
    ids = {name: {path.parent.name for path in at.glob("*/manifest.json")}
           for name, at in folders.items()}  # fmt: skip
    return ids, [str(path) for path in (registry / "tags").rglob("*") if path.is_file()]


def scheduler_kills(folder: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Kill the scheduler at a random moment; count what the client said and a second run did."""
    names = [f"spec{number}" for number in range(KILL_SPECS)]
    locked = lock_once(folder / "to-kill-scheduler", names)
    span = watched_release(another(locked, folder / "not-killed"), names).seconds
    found = {"said": 0, "done_before": 0, "half_tagged": 0, "completed": 0, "twice": 0}
    for seed in seeds:
        runner, moment = another(locked, folder / f"scheduler{seed}"), random.Random(seed).random()
        run = watched_release(runner, names, victim="scheduler", moment=moment * span)
        _, tags = published(runner, names)
        again = runner.run("release", *names, "--workers", "2", "--atomic", "--tag", "stable")
        ids, _ = published(runner, names)
        is_said = any("the scheduler tcp://" in line and "is gone" in line for line in run.said)
        one = {
            "said": int(run.code == STORE_ERROR and is_said),
            "done_before": int(run.code == 0),
            "half_tagged": int(len(tags) not in (0, 2 * len(names))),
            "completed": int(again.returncode == 0 and all(ids.values())),
            "twice": sum(len(ids[name]) > 1 for name in names),
        }
        found = {name: count + one[name] for name, count in found.items()}
        tell(seed, run, one)
    return {"runs": len(seeds), **found}


def simulation(small: float, client_seconds: float) -> dict[str, Any]:
    """Return how long a release of many specs takes on many workers, each of one build at a time.

    As Dask does: the next task goes to the first worker that is free. Between the two tasks that
    were measured lie those of 500 specs, most of them nearer to the smaller: a task is larger than
    the smallest by the square of a random part of the difference. The client then checks, signs and
    tags each artifact, one after the other.
    """
    chance = random.Random(1)
    tasks = [small + (LARGE_TASK - small) * chance.random() ** 2 for _ in range(SIMULATED_SPECS)]
    as_given, longest_first = (makespan(order) for order in (tasks, sorted(tasks, reverse=True)))
    ideal = sum(tasks) / SIMULATED_WORKERS
    serial = client_seconds * SIMULATED_SPECS
    return {
        "one_worker_hours": sum(tasks) / 3600,
        "ideal_minutes": ideal / 60,
        "minutes": as_given / 60,
        "minutes_longest_first": longest_first / 60,
        "efficiency": ideal / as_given,
        "small_task_seconds": small,
        "large_task_seconds": LARGE_TASK,
        "client_minutes": serial / 60,
    }


def makespan(tasks: Sequence[float]) -> float:
    """Return when the last worker is done."""
    free = [0.0] * SIMULATED_WORKERS
    for task in tasks:
        heapq.heapreplace(free, free[0] + task)
    return max(free)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="benchmarks.scale", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--specs", type=int, default=SPECS)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seed", type=int, default=0, help="of the first kill")
    arguments = parser.parse_args()
    parts = arguments.parts or ["efficiency", "kills", "scheduler", "simulation"]
    found: dict[str, Any] = {}
    with TemporaryDirectory() as scratch:
        if "efficiency" in parts:
            found["efficiency"] = efficiency(Path(scratch), arguments.specs)
        if "kills" in parts:
            first = arguments.seed
            found["kills"] = kills(Path(scratch), range(first, first + arguments.kills))
        if "scheduler" in parts:
            seeds = range(arguments.seed, arguments.seed + SCHEDULER_KILLS)
            found["scheduler"] = scheduler_kills(Path(scratch), seeds)
        if "simulation" in parts:
            measured = found.get("efficiency", {})
            serial = measured.get("client_seconds_a_spec", 0.0)
            task = measured.get("task_seconds", SMALL_TASK)
            found["simulation"] = simulation(task, serial)
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    if arguments.json:
        arguments.json.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
