"""The second time: one package of 5 MB changed, from its pin to a host that runs it.

Every stage is timed where the version before is in place: its build, its archive, its artifact in
an S3 server on this machine, its installation on a host; and again, for the same version, where
none of that is there. Downloads are in the cache both times. Of the reference environment, which
the disk does not hold so many times, the first time is the one of the version before.
"""

from __future__ import annotations

import base64
import os
import shutil
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.comparing import Command, Result, Run, run_once
from demo.seaweed import S3Server, seaweed
from demo.walkthrough import ENVFERRY
from tests.support.fault_proxy import Plan, fault_proxy
from tests.support.packed import random_bytes
from tests.support.wheels import make_wheel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.environments import Environment

NAME = "lead"
PAYLOAD_BYTES = 5_000_000
LEAD_SECONDS, LEAD_RATIO = 20, 0.15
REBUILD_SECONDS, REPACK_RATIO, REPUSH_BYTES = 6, 0.15, 10_000_000
UPDATE_SECONDS, COLD_SECONDS = 1.0, 1.5
SERVER_COPY_RATIO = 1.2
# What a push of known bytes leaves to the server, and nothing else: its newest archive, copied.
SERVER_COPY = """
import sys
import boto3
from boto3.s3.transfer import TransferConfig
bucket, prefix = sys.argv[1:]
mib = 1 << 20
client = boto3.client("s3")
listed = client.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]
archives = [one for one in listed if one["Key"].endswith(".tar.zst")]
newest = max(archives, key=lambda one: one["LastModified"])
source = {"Bucket": bucket, "Key": newest["Key"]}
transfer = TransferConfig(multipart_chunksize=64 * mib, max_concurrency=4)
client.copy(source, bucket, "server-copy", Config=transfer)
"""
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def results(environment: Environment) -> Iterator[Result]:
    """Yield the figures of the second time; none where the environment's channel is not here."""
    if not (environment.home / "channel").is_dir():
        return
    work = environment.home / "bench-lead-time"
    shutil.rmtree(work, ignore_errors=True)
    (work / "specs").mkdir(parents=True)
    os.chdir(work)  # where specs are found by name; this process is for these figures alone
    with seaweed(work / "seaweed") as server:
        benchmark = LeadTime(environment, work, server)
        benchmark.make_wheels(versions=environment.rounds + 3)
        if environment.fits_disk_once:
            yield from benchmark.results_of_one_change()
        else:
            yield from benchmark.results(environment.rounds)
    os.chdir(environment.home)
    shutil.rmtree(work)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where artifacts go: a folder, a registry and a host."""

    dist: Path
    registry: str
    envs: Path


class LeadTime:
    """An environment and one package more, of which the version is what changes."""

    def __init__(self, environment: Environment, work: Path, server: S3Server) -> None:
        self.environment, self.work, self.server = environment, work, server
        self.spec_text = (environment.home / f"specs/{environment.name}.yml").read_text()
        self.prefix = environment.built.prefix
        self.lasting = self.place("lasting")

    def place(self, name: str) -> Place:
        """Return a place of this name, where nothing is at first."""
        registry = f"s3://{self.server.bucket}/{name}"
        return Place(
            dist=self.work / f"dist-{name}", registry=registry, envs=self.work / f"envs-{name}"
        )

    def make_wheels(self, versions: int) -> None:
        """Make a wheel of each version of the package."""
        (self.work / "wheels").mkdir()
        for version in range(versions):
            data = base64.b64encode(random_bytes(version, PAYLOAD_BYTES * 3 // 4)).decode()
            stem = f"payload-{version}.0-py3-none-any"
            make_wheel(self.work / "wheels", stem, files={"payload_data/data.txt": data})

    def command(self, *words: str | Path, endpoint: str = "") -> Command:
        """Return a command with the cache and the server of these figures."""
        environ = {
            **self.server.environ,
            "ENVFERRY_CACHE": str(self.work / "cache"),
            "ENVFERRY_TRUSTED_DIR": "/dev/null",
            # As where it is a setting: what only images need is left out for S3.
            "ENVFERRY_REGISTRY": self.lasting.registry,
            **({"AWS_ENDPOINT_URL_S3": endpoint} if endpoint else {}),
        }
        return Command(argv=(str(ENVFERRY), *map(str, words)), environ=tuple(environ.items()))

    def pin(self, version: int) -> None:
        """Write the version into the spec: the line that is changed."""
        text = self.spec_text.replace(f"name: {self.environment.name}", f"name: {NAME}", 1)
        lines = f"      - --find-links {self.work / 'wheels'}\n      - payload=={version}.0\n"
        pinned = text.replace("  - pip:\n", f"  - pip:\n{lines}", 1)
        (self.work / f"specs/{NAME}.yml").write_text(pinned)

    def lock_and_build(self, version: int, *options: str) -> dict[str, Run]:
        """Lock and build a version."""
        self.pin(version)
        channel = self.environment.home / "channel"
        lock = self.command("lock", NAME, "-q", "--channel", channel, "--relax", "all")
        build = self.command("build", NAME, "-q", *options)
        return {"lock": run_once(lock), "build": run_once(build)}

    def deploy(self, place: Place, endpoint: str = "") -> dict[str, Run]:
        """Pack, push and install what was built."""
        runs = {"pack": run_once(self.command("pack", NAME, "-q", "-o", place.dist))}
        *older, newest = sorted(place.dist.glob("*.tar.zst"), key=modified)
        for archive in older:
            archive.unlink()
        push = self.command("push", newest, "-q", "--registry", place.registry, endpoint=endpoint)
        runs["push"] = run_once(push)
        runs["update"] = run_once(self.install(place.registry, place.envs))
        return runs

    def install(self, registry: str, envs: Path) -> Command:
        """Return the install of the newest version."""
        return self.command(
            "install", NAME, "-q", "--no-check", "--force", "cuda", "--registry", registry,
            "--envs-dir", envs, "--prefix", self.prefix,
        )  # fmt: skip

    def first_time(self, version: int) -> dict[str, Run]:
        """Lock, build and deploy a version where nothing of this environment is."""
        lock, notes = self.work / f"specs/{NAME}.conda-lock.yml", self.work / "cache/packs"
        lock.unlink()
        notes.rename(notes.with_name("packs-aside"))
        runs = {
            **self.lock_and_build(version, "--from-scratch"),
            **self.deploy(self.place(f"first-{version}")),
        }
        shutil.rmtree(notes)
        notes.with_name("packs-aside").rename(notes)
        return runs

    def server_copy_result(self, second: Sequence[dict[str, Run]]) -> Result:
        """Hold a second push against what the server alone takes to copy that archive."""
        bucket, _, prefix = self.lasting.registry.removeprefix("s3://").partition("/")
        script = (sys.executable, "-c", SERVER_COPY, bucket, prefix)
        copy = run_once(Command(argv=script, environ=tuple(self.server.environ.items())))
        pushed = median_of([runs["push"] for runs in second])
        return Result(
            name="repush_vs_server_copy", ours=pushed, other=copy.seconds, goal=SERVER_COPY_RATIO,
            unit="s",
        )  # fmt: skip

    def results(self, rounds: int) -> Iterator[Result]:
        """Yield all figures; the version before is there from the first one on."""
        cold_envs = self.work / "envs-cold"
        self.lock_and_build(0)
        self.deploy(self.lasting)
        run_once(self.install(self.lasting.registry, cold_envs))
        second, first, cold = [], [], []
        for version in range(1, rounds + 2):
            second.append({**self.lock_and_build(version), **self.deploy(self.lasting)})
            if DROP_CACHES.exists() and os.access(DROP_CACHES, os.W_OK):
                install = self.install(self.lasting.registry, cold_envs)
                cold.append(run_once(replace(install, prepare=drop_caches)))
            first.append(self.first_time(version))
        yield from lead_results(second[1:], first[1:])
        if cold:
            yield absolute("update_cold_seconds", median_of(cold[1:]), COLD_SECONDS, "s")
        yield absolute("repush_bytes", self.sent_bytes(rounds + 2), REPUSH_BYTES, "bytes")
        yield self.server_copy_result(second[1:])

    def results_of_one_change(self) -> Iterator[Result]:
        """Yield the figures of one version and the next, with room for one of each thing."""
        downloads = self.work / "cache/downloads"
        shutil.copytree(
            self.environment.cache / "downloads",
            downloads,
            copy_function=os.link,
            # Extracted ones: the first time is one where nothing is warm.
            ignore=shutil.ignore_patterns("wheels"),
        )
        first = {**self.lock_and_build(0), **self.deploy(self.lasting)}
        second = {**self.lock_and_build(1), **self.deploy(self.lasting)}
        yield from lead_results([second], [first])
        yield absolute("repush_bytes", self.sent_bytes(2), REPUSH_BYTES, "bytes")
        yield self.server_copy_result([second])

    def sent_bytes(self, version: int) -> int:
        """Return what the push of one more version sends, all requests together."""
        self.lock_and_build(version)
        plan = Plan(upstream=self.server.endpoint_url)
        with fault_proxy(plan) as proxy:
            self.deploy(self.lasting, endpoint=proxy)
        return plan.sent_bytes


def modified(path: Path) -> int:
    """Return when a file was last written to, in nanoseconds."""
    return path.stat().st_mtime_ns


def drop_caches() -> None:
    """Have the kernel forget what it has of files, as after a boot."""
    os.sync()
    DROP_CACHES.write_text("3\n")


def lead_results(
    second: Sequence[dict[str, Run]], first: Sequence[dict[str, Run]]
) -> Iterator[Result]:
    """Yield what the second time takes, and as a part of the first."""
    again = {stage: median_of([runs[stage] for runs in second]) for stage in second[0]}
    once = {stage: median_of([runs[stage] for runs in first]) for stage in first[0]}
    whole = sum(again.values())
    shown = ", ".join(f"{stage} {again[stage]:.2f} of {once[stage]:.2f} s" for stage in again)
    yield replace(absolute("lead_time", whole, LEAD_SECONDS, "s"), note=shown)
    yield Result(
        name="lead_time_vs_first", ours=whole, other=sum(once.values()), goal=LEAD_RATIO, unit="s"
    )
    yield absolute("rebuild_seconds", again["build"], REBUILD_SECONDS, "s")
    yield Result(
        name="repack_vs_pack", ours=again["pack"], other=once["pack"], goal=REPACK_RATIO, unit="s",
        note=f"CPU: {cpu_of(second, 'pack'):.2f} of {cpu_of(first, 'pack'):.2f} s",
    )  # fmt: skip
    yield replace(
        absolute("update_seconds", again["update"], UPDATE_SECONDS, "s"),
        note=f"CPU: {cpu_of(second, 'update'):.2f} of {cpu_of(first, 'update'):.2f} s",
    )


def absolute(name: str, figure: float, goal: float, unit: str) -> Result:
    """Return a figure that stands for itself."""
    return Result(name=name, ours=figure, other=1, goal=goal, unit=unit)


def median_of(runs: Sequence[Run]) -> float:
    """Return the median of the seconds."""
    return statistics.median(run.seconds for run in runs)


def cpu_of(rounds: Sequence[dict[str, Run]], stage: str) -> float:
    """Return the median of a stage's CPU seconds."""
    return statistics.median(runs[stage].cpu_seconds for runs in rounds)
