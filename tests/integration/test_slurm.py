"""The prolog of docs/slurm: as a script, and in a Slurm cluster of three nodes on this machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envferry.names import current_platform
from envferry.progress import Silent
from envferry.registry import Registry
from tests.conftest import require
from tests.support.artifacts import installable_artifact
from tests.support.slurm import SlurmCluster, has_slurm, site_prolog
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


def publish(folder: Path) -> str:
    """Publish demo@stable; return the id."""
    contents = {"bin/tool": b"#!/bin/sh\necho from the environment\n"}
    artifact = installable_artifact(folder / "dist", contents)
    registry = Registry.open(str(folder / "registry"))
    registry.publish(artifact, progress=Silent())
    registry.move_tag("demo", current_platform(), "stable", artifact.manifest.id)
    return artifact.manifest.id


def prolog(path: Path, comment: str | None) -> subprocess.CompletedProcess[str]:
    """Run the prolog as slurmd does, for a job with this comment."""
    environ = {"SLURM_JOB_ID": "7", "SLURM_JOB_USER": "somebody", "HOME": "/nonexistent"}
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
    publish(tmp_path)
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
    # What does not exist keeps no job from starting, and no node from the next.
    found = cluster.run("srun", "-N", "3", "--comment", "envferry:none@stable", "true")
    assert found.returncode == 0, found.stderr
    wait_until(lambda: set(cluster.states().values()) == {"idle"}, "all nodes are idle again")
