"""An environment on each node's own disk before a job runs: the prolog, and `sbcast` with `tar`.

The first job on empty nodes, without the environment's checks (as the prolog is) and with them, and
a later job. `python -m benchmarks slurm`, as root, with Slurm: a controller and three nodes of this
machine.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.comparing import (
    ASIDE,
    Command,
    Result,
    in_turn,
    put_aside,
    run_once,
    seconds_result,
)
from demo.walkthrough import ENVFERRY
from tests.support.slurm import SlurmCluster, set_checks, site_prolog

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.environments import Environment

NODES = ("n1", "n2", "n3")


def results(environment: Environment) -> Iterator[Result]:
    """Yield the figures of the first job on empty nodes, and of the second one."""
    work = environment.home / "bench-slurm"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    archive = environment.home / environment.envferry("pack", environment.name, "-q", "-o", work)
    run_once(Command.of(ENVFERRY, "push", archive, "-q", "--registry", work / "registry"))
    prolog = site_prolog(work, environment.built.prefix.rpartition("/")[0])
    cluster = SlurmCluster(folder=work, nodes=NODES)
    with cluster.running(prolog):
        ours, other = commands(cluster, environment, archive)
        yield from first_jobs(cluster, prolog, (ours, other), environment.rounds)
        empty(cluster)
        set_checks(prolog, run=False)
        run_once(ours)
        later = in_turn(ours, other, environment.rounds)
        yield seconds_result("slurm_later_vs_sbcast", later, 0.2, "what is there is not sent again")
        empty(cluster)
    shutil.rmtree(work)


def first_jobs(
    cluster: SlurmCluster, prolog: Path, commands: tuple[Command, Command], rounds: int
) -> Iterator[Result]:
    """Yield the figures of the first job: without checks, with them, and by `sbcast`, in turn."""
    ours, other = commands

    def on_empty_nodes(command: Command, *, checks: bool = False) -> Command:
        def prepare() -> None:
            empty(cluster)
            set_checks(prolog, run=checks)

        return replace(command, prepare=prepare)

    in_each = (on_empty_nodes(ours), on_empty_nodes(ours, checks=True), on_empty_nodes(other))
    # The first round does not count.
    runs = [tuple(map(run_once, in_each)) for _ in range(rounds + 1)][1:]
    plain, checked, sent = zip(*runs, strict=True)
    where = "three nodes, empty disks"
    yield seconds_result("slurm_first_vs_sbcast", (plain, sent), 1.0, where)
    yield seconds_result(
        "slurm_first_checked_vs_sbcast", (checked, sent), 1.5, f"{where}; with `checks=yes`"
    )


def empty(cluster: SlurmCluster) -> None:
    """Take what the nodes have away."""
    for node in cluster.nodes:
        for tree in list(cluster.node_folder(node).iterdir()):
            # What was put aside before is out of the way: each time its name would grow.
            if not tree.name.startswith(ASIDE):
                put_aside(tree)


def commands(
    cluster: SlurmCluster, environment: Environment, archive: Path
) -> tuple[Command, Command]:
    """Return the same job on all nodes: by the prolog, and by what jobs do without it."""
    environ = (("SLURM_CONF", str(cluster.folder / "slurm.conf")),)
    prefix, count = environment.built.prefix, str(len(NODES))
    python = (f"{prefix}/bin/python", "-c", "pass")
    comment = f"envferry:{environment.name}"
    ours = Command.of("srun", "-N", count, "--comment", comment, *python)
    there = "/opt/conda/sent.tar.zst"
    unpack = f"mkdir -p {prefix} && tar --zstd -xf {there} -C {prefix} && exec {' '.join(python)}"
    script = f"sbcast -f {archive} {there} && srun sh -c '{unpack}'"
    other = Command.of("salloc", "-Q", "-N", count, "sh", "-c", script)
    return replace(ours, environ=environ), replace(other, environ=environ)
