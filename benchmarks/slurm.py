"""An environment on each node's own disk before a job runs: the prolog, and `sbcast` with `tar`.

`python -m benchmarks slurm`, as root, with Slurm: a controller and three nodes of this machine.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.comparing import Command, Result, in_turn, put_aside, run_once, seconds_result
from demo.walkthrough import ENVFERRY
from tests.support.slurm import SlurmCluster, site_prolog

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
    registry = work / "registry"
    run_once(Command.of(ENVFERRY, "push", archive, "-q", "--registry", registry))
    envs = environment.built.prefix.rpartition("/")[0]
    cluster = SlurmCluster(folder=work, nodes=NODES)
    with cluster.running(site_prolog(work, envs)):
        ours, other = commands(cluster, environment, archive)

        def empty() -> None:
            for node in NODES:
                for tree in cluster.node_folder(node).iterdir():
                    put_aside(tree)

        runs = in_turn(
            replace(ours, prepare=empty), replace(other, prepare=empty), environment.rounds
        )
        yield seconds_result("slurm_first_vs_sbcast", runs, 1.0, "three nodes, empty disks")
        empty()
        run_once(ours)
        later = in_turn(ours, other, environment.rounds)
        yield seconds_result("slurm_later_vs_sbcast", later, 0.2, "what is there is not sent again")
        empty()
    shutil.rmtree(work)


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
