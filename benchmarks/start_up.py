"""How long a command takes that does almost nothing."""

from __future__ import annotations

import shutil
import statistics
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from benchmarks.comparing import Command, Result, run_once
from demo.walkthrough import ENVFERRY
from envferry.artifacts import write_companions
from envferry.models import Artifact, PackageFacts
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.push import push_artifact
from tests.support.artifacts import make_artifact

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.environments import Environment

ROUNDS = 9
ARTIFACTS = 100
PACKAGES = tuple(
    PackageFacts(name=f"package-{number}", version="1.26.4", kind="pypi", license="BSD-3-Clause")
    for number in range(300)
)
"""As many as the reference environment has: `ls` reads the manifests."""
HOST_COMMANDS = ("install", "verify", "rollback", "remove", "list", "status", "history", "run")
HOST_SECONDS = 0.1


def results(environment: Environment) -> Iterator[Result]:
    """Yield the seconds of `--help`, of starting a host's command, and of `ls` on a local registry.

    Of the host's commands it is the slowest one's; `--help` ends them when all is imported that
    the command needs to begin.
    """
    yield seconds("help_seconds", Command.of(ENVFERRY, "--help"), 0.15)
    starts = [
        (seconds("host_start_seconds", Command.of(ENVFERRY, name, "--help"), HOST_SECONDS), name)
        for name in HOST_COMMANDS
    ]
    slowest, name = max(starts, key=lambda start: start[0].ours)
    yield replace(slowest, note=f"of {name}; the others: {', '.join(HOST_COMMANDS)}")
    work = environment.home / "bench-start-up"
    shutil.rmtree(work, ignore_errors=True)
    fill_registry(work)
    yield seconds("ls_seconds", Command.of(ENVFERRY, "ls", "--registry", work / "registry"), 0.3)
    shutil.rmtree(work)


def seconds(name: str, command: Command, goal: float) -> Result:
    """Return the median of some runs of a command."""
    runs = [run_once(command).seconds for _ in range(ROUNDS)]
    return Result(name=name, ours=statistics.median(runs), other=1, goal=goal, unit="s")


def fill_registry(work: Path) -> None:
    """Push versions of one environment, each with a tag, into a new registry in a directory."""
    (work / "registry").mkdir(parents=True)
    registry = Registry.open(str(work / "registry"))
    for number in range(ARTIFACTS):
        small = make_artifact(work, seed=number)
        manifest = msgspec.structs.replace(small.manifest, packages=PACKAGES)
        artifact = Artifact(directory=work, manifest=manifest)
        write_companions(artifact, small.lock_path.read_bytes())
        push_artifact(artifact, registry=registry, tags=(f"v{number}",), progress=Silent())
