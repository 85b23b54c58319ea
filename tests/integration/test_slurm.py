"""The prolog of docs/slurm: as a script, and in a Slurm cluster of three nodes on this machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envferry.models import Checks
from envferry.names import current_platform
from envferry.progress import Silent
from envferry.registry import Registry
from tests.conftest import require
from tests.support.artifacts import installable_artifact
from tests.support.slurm import SlurmCluster, has_slurm, set_checks, site_prolog
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


def publish(folder: Path, *checks: str) -> str:
    """Publish demo@stable with these commands as its checks; return the id."""
    contents = {"bin/tool": b"#!/bin/sh\necho from the environment\n"}
    artifact = installable_artifact(folder / "dist", contents, checks=Checks(commands=checks))
    registry = Registry.open(str(folder / "registry"))
    registry.publish(artifact, progress=Silent())
    registry.move_tag("demo", current_platform(), "stable", artifact.manifest.id)
    return artifact.manifest.id


def prolog(path: Path, comment: str | None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the prolog as slurmd does, for a job with this comment."""
    environ = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_USER": "somebody",
        "HOME": "/nonexistent",
        **variables,
    }
    if comment is not None:
        environ["SLURM_JOB_COMMENT"] = comment
    return subprocess.run([path], env=environ, capture_output=True, text=True, check=False)


def test_what_a_job_asks_for_is_installed(tmp_path: Path) -> None:
    id_ = publish(tmp_path)
    envs = tmp_path / "envs"
    envs.mkdir()
    path = site_prolog(tmp_path, envs)
    for comment in (None, "", "for the paper", "envferry:"):
        assert prolog(path, comment).returncode == 0
        assert not (envs / "demo").exists()
    found = prolog(path, "envferry:none@stable,demo@stable")
    assert found.returncode == 0
    assert "none@stable: exit code 7" in found.stdout
    assert (envs / "demo").resolve().name == id_


def test_checks_run_where_the_site_says_so(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    id_ = publish(tmp_path, f"echo ran >> {ran}")
    envs = tmp_path / "envs"
    envs.mkdir()
    path = site_prolog(tmp_path, envs)
    # No variable of a job turns them on: only the site's file does.
    for variables in ({}, {"checks": "yes", "no_check": ""}):
        assert prolog(path, "envferry:demo@stable", **variables).returncode == 0
        assert (envs / "demo").resolve().name == id_
        assert not ran.exists()
    set_checks(path, run=True)
    for variables in ({}, {"checks": "no", "no_check": "--no-check"}):
        assert prolog(path, "envferry:demo@stable", **variables).returncode == 0
        assert ran.read_text() == "ran\n", "in the first job that asks for them, once"


def test_what_failed_on_a_node_does_not_become_current_without_checks(tmp_path: Path) -> None:
    """Slurm's node is a host like others: another program may have run the checks there."""
    mended = tmp_path / "mended"
    id_ = publish(tmp_path, f"test -e {mended}")
    envs = tmp_path / "envs"
    envs.mkdir()
    path = site_prolog(tmp_path, envs)
    for run in (True, False):
        set_checks(path, run=run)
        found = prolog(path, "envferry:demo@stable")
        assert found.returncode == 0, "a check of one environment drains no node"
        assert "demo@stable: exit code 4" in found.stdout
        assert not (envs / "demo").exists()
    mended.touch()
    assert prolog(path, "envferry:demo@stable").stdout == ""
    assert (envs / "demo").resolve().name == id_


@pytest.mark.parametrize(
    "comment",
    [
        "--force",
        "demo --envs-dir=/tmp",
        "../demo",
        "/tmp/x.tar.zst",
        "$(touch x)",
        "*",
        "a@b@c",
        "@x",
    ],
)
def test_a_job_can_name_nothing_but_a_ref(tmp_path: Path, comment: str) -> None:
    path = site_prolog(tmp_path, tmp_path / "envs", envferry=f"touch {tmp_path}/was-called")
    found = prolog(path, f"envferry:{comment}")
    assert found.returncode == 0
    assert "not a valid ref" in found.stdout
    assert not (tmp_path / "was-called").exists()


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (7, 0), (8, 0), (9, 0), (11, 1), (1, 0)])
def test_only_a_node_that_is_unfit_is_drained(tmp_path: Path, code: int, expected: int) -> None:
    path = site_prolog(tmp_path, tmp_path / "envs", envferry=f"echo error >&2; exit {code}")
    assert prolog(path, "envferry:demo@stable").returncode == expected


def test_it_waits_for_another_jobs_installation(tmp_path: Path) -> None:
    busy = f"test -e {tmp_path}/free && exit 0; echo x >> {tmp_path}/tries; exit 10"
    path = site_prolog(tmp_path, tmp_path / "envs", envferry=busy)
    environ = {"SLURM_JOB_COMMENT": "envferry:demo@stable"}
    process = subprocess.Popen([path], env=environ)
    tries = tmp_path / "tries"
    wait_until(lambda: tries.exists() and len(tries.read_text()) > 4, "it tried again")
    (tmp_path / "free").touch()
    assert process.wait() == 0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[SlurmCluster]:
    """A cluster of three nodes, and demo@stable in the registry."""
    require("slurm", has_slurm())
    publish(tmp_path, "echo ran >> /opt/conda/checks")
    path = site_prolog(tmp_path, Path("/opt/conda/envs"))
    made = SlurmCluster(folder=tmp_path, nodes=("n1", "n2", "n3"))
    with made.running(path):
        yield made


def test_every_node_has_the_environment_before_the_job_starts(cluster: SlurmCluster) -> None:
    tool = "/opt/conda/envs/demo/bin/tool"
    # The first two of three nodes, then all: what is there is not installed again.
    found = cluster.run("srun", "-N", "2", "--comment", "envferry:demo@stable", tool)
    assert found.stdout == "from the environment\n" * 2, found.stderr
    inodes = {node: os.stat(cluster.node_folder(node) / "envs/demo/bin/tool").st_ino  # noqa: PTH116
              for node in ("n1", "n2")}  # fmt: skip
    found = cluster.run("srun", "-N", "3", "--comment", "envferry:demo@stable", tool)
    assert found.stdout == "from the environment\n" * 3, found.stderr
    for node, inode in inodes.items():
        assert (cluster.node_folder(node) / "envs/demo/bin/tool").stat().st_ino == inode
    assert not any((cluster.node_folder(node) / "checks").exists() for node in cluster.nodes)
    # The site turns the checks on: each node runs them once, before the next job.
    set_checks(cluster.folder / "prolog.sh", run=True)
    for _ in range(2):
        found = cluster.run("srun", "-N", "3", "--comment", "envferry:demo@stable", tool)
        assert found.stdout == "from the environment\n" * 3, found.stderr
        ran = [(cluster.node_folder(node) / "checks").read_text() for node in cluster.nodes]
        assert ran == ["ran\n"] * 3
    # What does not exist keeps no job from starting, and no node from the next.
    found = cluster.run("srun", "-N", "3", "--comment", "envferry:none@stable", "true")
    assert found.returncode == 0, found.stderr
    wait_until(lambda: set(cluster.states().values()) == {"idle"}, "all nodes are idle again")
