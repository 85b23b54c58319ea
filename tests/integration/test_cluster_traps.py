"""What Dask does that a release must not suffer from: one test for each trap."""

from __future__ import annotations

import json
import signal
import socket
import sys
from pathlib import Path

import pytest

import envferry
from tests.support.dask_cluster import DaskCluster
from tests.support.tiny_specs import (
    HeldChannel,
    outcomes,
    published,
    start_release,
    tiny_specs,
)
from tests.support.waiting import HANG_SECONDS, wait_until

pytestmark = pytest.mark.container

DEADLY = 4
"""After so many workers that died during a job, Dask blames the job."""


def test_what_is_finished_does_not_run_again_when_its_worker_dies(
    held: HeldChannel, tmp_path: Path
) -> None:
    """A worker's memory holds what its tasks returned, for as long as somebody wants it."""
    held.holds = "libtwo"
    runner = tiny_specs(tmp_path, ("one", "two"), held.url)
    runner.run("keygen", "team")
    with DaskCluster(tmp_path, {"ENVFERRY_CACHE": str(tmp_path / "cache")}) as cluster:
        first = cluster.worker("first")
        to = ("--scheduler", cluster.address, "--sign-key", "team.key")
        release = start_release(runner, "one", "two", *to)
        assert held.asked.wait(HANG_SECONDS)
        wait_until((tmp_path / "registry/v1/tags/one/linux-64/latest").exists, "one is released")
        first.kill()
        first.wait()
        cluster.worker("second")
        held.open.set()
        stdout, stderr = release.communicate()
    assert release.returncode == 0, stderr
    assert {one["spec"]: one["worker"] for one in json.loads(stdout)} == {
        "one": "first",
        "two": "second",
    }
    assert "worker second" in stderr
    assert not [line for line in stderr.splitlines() if "one (" in line and "second" in line]
    assert published(runner) == ["one", "two"]


def test_workers_that_die_during_a_job_fail_that_job_alone(
    held: HeldChannel, tmp_path: Path
) -> None:
    held.holds = "libone"
    runner = tiny_specs(tmp_path, ("one", "two"), held.url)
    with DaskCluster(tmp_path, {"ENVFERRY_CACHE": str(tmp_path / "cache")}) as cluster:
        release = start_release(runner, "one", "two", "--scheduler", cluster.address)
        for number in range(DEADLY):
            worker = cluster.worker(f"worker{number}")
            asked = number + 1
            wait_until(
                lambda: sum("libone" in one for one in held.requests) >= asked,  # noqa: B023
                f"worker {number} builds",
            )
            worker.kill()
            worker.wait()
        cluster.worker("last")
        held.open.set()
        stdout, stderr = release.communicate()
    assert release.returncode == 4, stderr
    assert outcomes(stdout) == {"one": "failed", "two": "released"}
    one, _ = json.loads(stdout)
    assert f"{DEADLY} workers died during this job" in one["error"]["message"]
    assert "may not be the cause" in one["error"]["message"]


def test_envferry_is_not_shipped_to_workers(tiny_channel: Path, tmp_path: Path) -> None:
    """A worker without envferry is refused before anything is sent to it."""
    runner = tiny_specs(tmp_path, ("one",), str(tiny_channel))
    bare = tmp_path / "bare"
    bare.mkdir()
    (site,) = {path for path in sys.path if path.endswith("site-packages")}
    for path in Path(site).iterdir():
        if "envferry" not in path.name and path.suffix != ".pth":
            (bare / path.name).symlink_to(path)
    with DaskCluster(tmp_path) as cluster:
        cluster.worker("bare", site=bare)
        said = runner.run("release", "one", "--scheduler", cluster.address, expect=2)
    assert "has no envferry, expected" in said.stderr
    assert f'pip install "envferry[build,dask]=={envferry.__version__}"' in said.stderr
    assert published(runner) == []


def test_a_cluster_that_others_can_reach_without_tls(tiny_channel: Path, tmp_path: Path) -> None:
    """Its address here is on loopback, and anybody on the network can send it pickles."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no network")
        address = probe.getsockname()[0]
    runner = tiny_specs(tmp_path, ("one",), str(tiny_channel))
    with DaskCluster(tmp_path, host="0.0.0.0") as cluster:
        cluster.worker("local")
        port = cluster.address.rpartition(":")[2]
        to = ("--scheduler", f"tcp://127.0.0.1:{port}")
        said = runner.run("release", "one", *to, expect=2)
        assert "can be reached without TLS" in said.stderr
    with DaskCluster(tmp_path) as cluster:
        cluster.worker("open", host=address)
        said = runner.run("release", "one", "--scheduler", cluster.address, expect=2)
        assert f"the worker tcp://{address}:" in said.stderr
        assert "not reached by TLS" in said.stderr
    assert published(runner) == []


def test_an_interrupt_lets_workers_elsewhere_end_their_push(
    held: HeldChannel, tmp_path: Path
) -> None:
    held.holds = "libone"
    runner = tiny_specs(tmp_path, ("one", "two"), held.url)
    with DaskCluster(tmp_path, {"ENVFERRY_CACHE": str(tmp_path / "cache")}) as cluster:
        cluster.worker("first")
        release = start_release(runner, "one", "two", "--scheduler", cluster.address)
        assert held.asked.wait(HANG_SECONDS)
        release.send_signal(signal.SIGINT)
        stdout, stderr = release.communicate()
        assert release.returncode == 130, stderr
        assert outcomes(stdout) == {"one": "not begun", "two": "not begun"}
        held.open.set()
        wait_until(lambda: published(runner) == ["one"], "what ran is pushed")
        folder = tmp_path / "registry/v1/tags"
        assert not [path for path in folder.rglob("*") if path.is_file()]
        said = runner.run("release", "one", "two", "--scheduler", cluster.address, "--json")
    assert {one["spec"]: one["built"] for one in json.loads(said.stdout)} == {
        "one": False,
        "two": True,
    }
