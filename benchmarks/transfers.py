"""Deltas and mirrors: what is carried, and how long it takes beside plain copies.

The environment is made for it: packages of bytes that compress by half, one of 5 MB that changes.
`--env small` makes 120 MB of it, `--env reference` a gigabyte.
"""

from __future__ import annotations

import compileall
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.comparing import Command, Result, Run, in_turn, run_once, seconds_result
from benchmarks.registry import LIMIT_MB
from demo.seaweed import S3Server, seaweed
from demo.walkthrough import ENVFERRY, PROJECT
from envferry.models import Artifact
from envferry.names import Ref, current_platform
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.push import push_artifact
from tests.support.packed import pack

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.environments import Environment

PACKAGES = {"small": 5, "reference": 44}
"""Of 23 MB each."""
PACKAGE_BYTES = 23_000_000
CHANGED_BYTES = 5_000_000
DELTA_LIMIT_MB = 8

COPY = """
import os
import sys
from concurrent.futures import ThreadPoolExecutor
import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
mode, source, target, bucket = sys.argv[1:]
mib = 1 << 20
transfer = TransferConfig(
    multipart_threshold=16 * mib, multipart_chunksize=16 * mib, max_concurrency=10
)
config = Config(s3={"addressing_style": "path"}, max_pool_connections=16)
client = boto3.client("s3", config=config)
def send(path, key):
    client.upload_file(path, bucket, key, Config=transfer)
def copy(key):
    path = os.path.join(source, key.replace("/", "_"))
    client.download_file(bucket, key, path, Config=transfer)
    send(path, key.replace(mode, target, 1))
    os.unlink(path)
if mode == "put":
    jobs = [
        (os.path.join(folder, name), f"{target}/{os.path.relpath(folder, source)}/{name}")
        for folder, _, names in os.walk(source) for name in names if not name.startswith(".")
    ]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda job: send(*job), jobs))
else:
    found = client.list_objects_v2(Bucket=bucket, Prefix=f"{mode}/")["Contents"]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda one: copy(one["Key"]), found))
"""


def results(environment: Environment) -> Iterator[Result]:
    """Yield the figures of transfers."""
    work = environment.home / "bench-transfers"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    # As installed packages are: without, each start compiles what was edited.
    compileall.compile_dir(PROJECT / "pipeline", quiet=1)
    kind = "small" if environment.name == "demo" else "reference"
    bench = Bench(work, environment.rounds)
    first, second = (bench.make(seed, PACKAGES[kind]) for seed in (1, 2))
    yield bench.delta_bytes(first)
    yield from bench.apply_results(second)
    with seaweed(work / "seaweed") as server:
        yield from bench.mirror_results(server)
    shutil.rmtree(work)


class Bench:
    """Two versions of an environment in a registry."""

    def __init__(self, work: Path, rounds: int) -> None:
        self.work, self.rounds = work, rounds
        self.home = str(work / "home")

    def make(self, seed: int, packages: int) -> Artifact:
        """Push a version, from a process of its own: its memory would be taken for a command's."""
        words = (sys.executable, "-m", "benchmarks.transfers", self.work, str(seed), str(packages))
        run_once(Command.of(*words))
        registry = Registry.open(self.home)
        id_ = registry.resolve(Ref.parse(f"demo@v{seed}"), current_platform())
        manifest = registry.manifest("demo", current_platform(), id_)
        return Artifact(directory=self.work / "packed", manifest=manifest)

    def delta_bytes(self, first: Artifact) -> Result:
        """Export the second version for who has the first, and weigh the folder."""
        run_once(self.envferry("export", "demo@v2", "delta", "--since", "demo@v1"))
        paths = (self.work / "delta").rglob("*")
        megabytes = sum(path.stat().st_size for path in paths if path.is_file()) / 1e6
        size = first.manifest.archive.size / 1e6
        note = f"of an archive of {size:.0f} MB; all files of the folder"
        return Result(
            name="delta_export_bytes", ours=megabytes, other=1, goal=DELTA_LIMIT_MB, unit="MB",
            note=note,
        )  # fmt: skip

    def apply_results(self, second: Artifact) -> Iterator[Result]:
        """Rebuild from a site's first version and the delta, against a copy of the archive."""
        site, copy = self.work / "site", self.work / "copy"
        run_once(self.envferry("mirror", self.home, site, "--tag", "v1"))
        new = site / f"v1/envs/demo/{second.manifest.platform}/{second.manifest.id}"
        apply = self.envferry("apply", "delta", "--registry", site)
        plain = Command.of(
            "cp", second.archive_path, copy, prepare=lambda: copy.unlink(missing_ok=True)
        )
        ours = replace(apply, prepare=lambda: shutil.rmtree(new, ignore_errors=True))
        runs = in_turn(ours, plain, self.rounds)
        yield seconds_result("apply_vs_cp", runs, 1.5, "ours hashes all bytes and flushes them")
        yield peak("apply_rss", runs[0])

    def mirror_results(self, server: S3Server) -> Iterator[Result]:
        """Mirror to new prefixes each time, as boto3 copies to new keys."""
        environ = tuple(server.environ.items())

        def turn(ours: Sequence[str], other: Sequence[str]) -> tuple[Run, Run]:
            own = self.envferry(*ours)
            command = replace(own, environ=(*own.environ, *environ))
            plain = Command.of(sys.executable, "-c", COPY, *other, server.bucket)
            return run_once(command), run_once(replace(plain, environ=environ))

        url, scratch = f"s3://{server.bucket}", self.work / "scratch"
        scratch.mkdir()
        ups, overs = [], []
        for number in range(self.rounds + 1):
            up = turn(("mirror", self.home, f"{url}/m{number}"), ("put", self.home, f"p{number}"))
            over = turn(
                ("mirror", f"{url}/m{number}", f"{url}/o{number}"),
                (f"m{number}", str(scratch), f"q{number}"),
            )
            ups.append(up)
            overs.append(over)
        for name, pairs in (("mirror_vs_boto3", ups), ("mirror_s3_s3_vs_boto3", overs)):
            runs = [ours for ours, _ in pairs[1:]], [other for _, other in pairs[1:]]
            yield seconds_result(name, runs, 1.1)
            yield peak(f"{name.partition('_vs')[0]}_rss", runs[0])

    def envferry(self, *words: str | Path) -> Command:
        """Return a command that works in our folder."""
        words = tuple(self.work / word if word == "delta" else word for word in words)
        environ = {
            "ENVFERRY_REGISTRY": self.home,
            "ENVFERRY_CACHE": str(self.work / "cache"),
            "ENVFERRY_TRUSTED_DIR": "/dev/null",
        }
        command = Command.of(ENVFERRY, *words, "-q")
        return replace(command, environ=tuple(environ.items()))


def make_version(work: Path, seed: int, packages: int) -> None:
    """Push a version; its seed decides the package that changes."""
    contents = {
        f"package{number}": half_random(number, PACKAGE_BYTES) for number in range(packages)
    }
    contents["tool"] = half_random(1000 + seed, CHANGED_BYTES)
    artifact = pack(work / "packed", contents)
    registry = Registry.open(str(work / "home"))
    push_artifact(artifact, registry=registry, tags=(f"v{seed}",), progress=Silent())


def half_random(seed: int, size: int) -> bytes:
    """Return bytes that compress by half, as libraries do."""
    source = random.Random(seed)
    block = 4096
    return b"".join(source.randbytes(block) + bytes(block) for _ in range(size // (2 * block) + 1))[
        :size
    ]


def peak(name: str, runs: Sequence[Run]) -> Result:
    """Return the largest memory of some runs."""
    megabytes = max(run.peak_bytes for run in runs) / 1e6
    return Result(name=name, ours=megabytes, other=1, goal=LIMIT_MB, unit="MB")


if __name__ == "__main__":
    make_version(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
