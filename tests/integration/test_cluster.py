"""Releases on workers: what dies, fails or lies there, and what becomes of the release."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

import psutil
import pytest
from distributed import Client, Security

from tests.support.dask_cluster import DaskCluster
from tests.support.tiny_specs import (
    HeldChannel,
    outcomes,
    published,
    start_release,
    tiny_specs,
)
from tests.support.waiting import HANG_SECONDS, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.cli_runner import CliRunner

pytestmark = pytest.mark.container


def tags(runner: CliRunner) -> list[str]:
    folder = runner.home / "registry/v1/tags"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def jobs_below(pid: int) -> list[psutil.Process]:
    """Return the programs of jobs that run below a process."""
    below = psutil.Process(pid).children(recursive=True)
    return [one for one in below if "envferry.cluster.job" in one.cmdline()]


def test_a_failing_spec_hides_no_other_and_holds_back_an_atomic_release(
    tiny_channel: Path, tmp_path: Path
) -> None:
    runner = tiny_specs(tmp_path, ("one", "two"), str(tiny_channel), bad="two")
    said = runner.run("release", "one", "two", "--workers", "2", "--atomic", "--json", expect=4)
    assert outcomes(said.stdout) == {"one": "held back", "two": "failed"}
    assert "one (linux-64): pushed" in said.stderr, "it is not released"
    assert published(runner) == ["one"]
    assert tags(runner) == []
    said = runner.run("release", "one", "two", "--workers", "1", "--json", expect=4)
    one, two = json.loads(said.stdout)
    assert (one["outcome"], one["built"]) == ("released", False), "it was in the registry"
    assert two["error"]["exit_code"] == 4
    assert tags(runner) == ["one/linux-64/latest"]


def test_fail_fast_begins_nothing_more(held: HeldChannel, tmp_path: Path) -> None:
    runner = tiny_specs(tmp_path, ("one", "two"), held.url, bad="one")
    held.open.set()
    arguments = ("--workers", "1", "--fail-fast", "--json")
    said = runner.run("release", "one", "two", *arguments, expect=4)
    assert outcomes(said.stdout) == {"one": "failed", "two": "not begun"}
    assert published(runner) == []


def test_a_worker_that_dies_loses_nothing(held: HeldChannel, tmp_path: Path) -> None:
    runner = tiny_specs(tmp_path, ("one",), held.url)
    runner.run("keygen", "team")
    environ = {"ENVFERRY_CACHE": str(tmp_path / "cache")}
    with DaskCluster(tmp_path, environ) as cluster:
        first = cluster.worker("first")
        arguments = ("one", "--scheduler", cluster.address, "--sign-key", "team.key")
        release = start_release(runner, *arguments)
        assert held.asked.wait(HANG_SECONDS)
        with Client(cluster.address) as client:
            assert client.run(os.getpid) == {client_worker(client): first.pid}, "its loop is free"
        (job,) = jobs_below(first.pid)
        first.kill()
        first.wait()
        wait_until(lambda: not job.is_running(), "the job ends with its worker")
        assert tags(runner) == []
        cluster.worker("second")
        held.open.set()
        stdout, stderr = release.communicate()
    assert release.returncode == 0, stderr
    (one,) = json.loads(stdout)
    assert (one["outcome"], one["worker"]) == ("released", "second")
    assert published(runner) == ["one"]
    assert tags(runner) == ["one/linux-64/latest"]
    runner.run("verify", "one@latest", "--trusted-key", "team.pub")


def client_worker(client: Client) -> str:
    (address,) = client.scheduler_info()["workers"]
    return str(address)


def test_a_scheduler_that_dies_is_named_and_a_second_run_completes(
    held: HeldChannel, tmp_path: Path
) -> None:
    runner = tiny_specs(tmp_path, ("one",), held.url)
    environ = {"ENVFERRY_CACHE": str(tmp_path / "cache")}
    with DaskCluster(tmp_path, environ) as cluster:
        cluster.worker("first")
        release = start_release(runner, "one", "--scheduler", cluster.address)
        assert held.asked.wait(HANG_SECONDS)
        cluster.scheduler.kill()
        stdout, stderr = release.communicate()
    assert release.returncode == 9, stderr
    assert f"the scheduler {cluster.address} is gone" in stderr
    assert outcomes(stdout) == {"one": "not begun"}
    assert tags(runner) == []
    held.open.set()
    runner.run("release", "one", "--workers", "1")
    assert published(runner) == ["one"]


def test_an_interrupt_leaves_nothing_running(held: HeldChannel, tmp_path: Path) -> None:
    runner = tiny_specs(tmp_path, ("one", "two"), held.url)
    release = start_release(runner, "one", "two", "--workers", "1")
    assert held.asked.wait(HANG_SECONDS)
    below = psutil.Process(release.pid).children(recursive=True)
    release.send_signal(signal.SIGINT)
    stdout, stderr = release.communicate()
    assert release.returncode == 130, stderr
    assert outcomes(stdout) == {"one": "not begun", "two": "not begun"}
    wait_until(lambda: not any(one.is_running() for one in below), "all programs have ended")
    assert tags(runner) == []


def test_a_job_that_is_killed_runs_again(held: HeldChannel, tmp_path: Path) -> None:
    runner = tiny_specs(tmp_path, ("one",), held.url)
    release = start_release(runner, "one", "--workers", "1")
    assert held.asked.wait(HANG_SECONDS)
    (job,) = jobs_below(release.pid)
    job.kill()
    wait_until(lambda: len(held.requests) > 1, "it runs again")
    held.open.set()
    stdout, stderr = release.communicate()
    assert release.returncode == 0, stderr
    assert outcomes(stdout) == {"one": "released"}


def test_a_cluster_with_tls_and_a_worker_of_another_version(
    tiny_channel: Path, tmp_path: Path
) -> None:
    runner = tiny_specs(tmp_path, ("one",), str(tiny_channel))
    names = ("ca-file", "client.cert", "client.key", "scheduler.cert", "scheduler.key")
    environ = tls_files(tmp_path, (*names, "worker.cert", "worker.key"))
    metadata = tmp_path / "old/envferry-0.0.1.dist-info/METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: envferry\nVersion: 0.0.1\n")
    environ["ENVFERRY_CACHE"] = str(tmp_path / "cache")
    with DaskCluster(tmp_path, environ, protocol="tls") as cluster:
        arguments = ("release", "one", "--scheduler", cluster.address)
        said = runner.run(*arguments, expect=2)
        assert "no TLS files" in said.stderr
        client = replace(runner, environ={**runner.environ, **environ})
        old = cluster.worker("old", PYTHONPATH=str(tmp_path / "old"))
        said = client.run(*arguments, expect=2)
        assert "has envferry 0.0.1, expected" in said.stderr
        assert published(runner) == []
        old.kill()
        old.wait()
        cluster.worker("new")
        client.run(*arguments)
    assert tags(runner) == ["one/linux-64/latest"]


def tls_files(home: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Write keys and certificates; return the variables by which Dask finds them."""
    security, environ = Security.temporary(), {}
    for name in names:
        path = home / f"{name}.pem"
        path.write_text(getattr(security, f"tls_{name.replace('-', '_').replace('.', '_')}"))
        variable = name.upper().replace("-", "_").replace(".", "__")
        environ[f"DASK_DISTRIBUTED__COMM__TLS__{variable}"] = str(path)
    return environ


def test_a_platform_without_workers_is_named(tiny_channel: Path, tmp_path: Path) -> None:
    runner = tiny_specs(tmp_path, ("one",), str(tiny_channel))
    with DaskCluster(tmp_path) as cluster:
        arguments = ("--scheduler", cluster.address, "--worker-timeout", "1")
        said = runner.run("release", "one", *arguments, expect=11)
    assert "no worker has the resources `build=1 linux-64=1`" in said.stderr
