"""Push and fetch against boto3's own transfer manager, on a SeaweedFS of this machine."""

from __future__ import annotations

import shutil
import statistics
import sys
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.comparing import Command, Result, Run, in_turn, put_aside, run_once, seconds_result
from demo.seaweed import S3Server, seaweed
from demo.walkthrough import ENVFERRY
from tests.support.fault_proxy import Plan, fault_proxy
from tests.support.packed import pack, random_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.environments import Environment

TRANSFER = """
import sys
import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
verb, path, bucket, key = sys.argv[1:]
mib = 1 << 20
transfer = TransferConfig(
    multipart_threshold=8 * mib, multipart_chunksize=16 * mib, max_concurrency=10, io_chunksize=mib
)
config = Config(s3={"addressing_style": "path"}, max_pool_connections=16)
client = boto3.client("s3", config=config)
if verb == "put":
    client.upload_file(path, bucket, key, Config=transfer)
else:
    client.download_file(bucket, key, path, Config=transfer)
"""
LIMIT_MB = 300
PACKAGE_BYTES = 12_000_000
SIGNATURE_SECONDS = 0.3


def results(environment: Environment) -> Iterator[Result]:
    """Yield the figures of the registry."""
    work = environment.home / "bench-registry"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with archive_and_server(environment, work) as (archive, server):
        bench = Bench(work, archive, server)
        yield from bench.push_results(environment.rounds)
        yield from bench.fetch_results(environment.rounds)
        yield from bench.install_results(environment)
        yield from bench.signature_results(environment.rounds)
        yield bench.known_result()
    shutil.rmtree(work)


@contextmanager
def archive_and_server(environment: Environment, work: Path) -> Iterator[tuple[Path, S3Server]]:
    """Pack the environment, and run a server beside it."""
    archive = environment.home / environment.envferry("pack", environment.name, "-q", "-o", work)
    with seaweed(work / "seaweed") as server:
        yield archive, server


class Bench:
    """One archive and one server."""

    def __init__(self, work: Path, archive: Path, server: S3Server) -> None:
        self.work, self.archive, self.server = work, archive, server
        self.number = 0
        self.run(ENVFERRY, "keygen", work / "key")

    def run(self, *words: str | Path) -> Run:
        """Run a command once."""
        return run_once(self.command(*words))

    def command(self, *words: str | Path) -> Command:
        """Return a command that finds the server."""
        environ = {**self.server.environ, "ENVFERRY_TRUSTED_DIR": "/dev/null"}
        return Command(argv=tuple(map(str, words)), environ=tuple(environ.items()))

    def push_results(self, rounds: int) -> Iterator[Result]:
        """Push to an empty registry each time, as boto3 uploads to a new key."""
        pairs = []
        for number in range(rounds + 1):
            url = f"s3://{self.server.bucket}/push-{number}"
            ours = self.run(ENVFERRY, "push", self.archive, "-q", "--registry", url)
            other = self.run(*self.transfer("put", self.archive, f"other-{number}"))
            pairs.append((ours, other))
        runs = [a for a, _ in pairs[1:]], [b for _, b in pairs[1:]]
        yield seconds_result("push_vs_boto3", runs, 1.1, "ours reads the archive twice: it checks")
        yield peak("push_rss", runs[0])

    def install_results(self, environment: Environment) -> Iterator[Result]:
        """Install straight from S3 each time, against a download of the archive alone."""
        envs, other = self.work / "envs", self.work / "other.tar.zst"
        url = f"s3://{self.server.bucket}/push-0"
        install = self.command(
            ENVFERRY, "install", environment.name, "-q", "--no-check", "--force", "cuda",
            "--envs-dir", envs, "--prefix", environment.built.prefix, "--registry", url,
        )  # fmt: skip
        download = self.command(*self.transfer("get", other, "other-0"))
        runs = in_turn(
            replace(install, prepare=lambda: put_aside(envs)),
            replace(download, prepare=lambda: other.unlink(missing_ok=True)),
            environment.rounds,
        )
        yield seconds_result("install_s3_vs_download", runs, 1.3, "the files, too, are written")
        yield peak("install_s3_rss", runs[0])
        put_aside(envs)

    def fetch_results(self, rounds: int) -> Iterator[Result]:
        """Fetch into an empty directory each time."""
        out = self.work / "out"
        url = f"s3://{self.server.bucket}/push-0"

        def empty() -> None:
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()

        name = self.archive.name.split("-")[0]
        fetch = self.command(ENVFERRY, "fetch", name, "-q", "-o", out, "--registry", url)
        other = self.command(*self.transfer("get", out / "other", "other-0"))
        ours = Command(argv=fetch.argv, environ=fetch.environ, prepare=empty)
        theirs = Command(argv=other.argv, environ=other.environ, prepare=empty)
        runs = in_turn(ours, theirs, rounds)
        yield seconds_result("fetch_vs_boto3", runs, 1.1)
        yield peak("fetch_rss", runs[0])
        empty()

    def signature_results(self, rounds: int) -> Iterator[Result]:
        """Push what is there with and without a key; verify with and without reading."""
        url, name = str(self.work / "directory"), self.archive.name.split("-")[0]
        self.run(ENVFERRY, "push", self.archive, "-q", "--registry", url)
        push = (ENVFERRY, "push", self.archive, "-q", "--registry", url, "--tag")
        plain, signed = [], []
        for number in range(rounds):
            plain.append(self.run(*push, f"plain-{number}"))
        for number in range(rounds):
            signed.append(self.run(*push, f"signed-{number}", "--sign-key", self.work / "key.key"))
        yield beyond("sign_seconds", signed, plain)
        check = (ENVFERRY, "verify", f"{name}@latest", "-q", "--registry", url)
        trusted = ("--trusted-key", self.work / "key.pub")
        program = (
            "import sys\nfrom blake3 import blake3\ndigest = blake3()\n"
            "with open(sys.argv[1], 'rb') as stream:\n"
            "    while data := stream.read(8 << 20):\n        digest.update(data)\n"
        )
        verified = [self.run(*check, *trusted) for _ in range(rounds)]
        read = [self.run(sys.executable, "-c", program, self.archive) for _ in range(rounds)]
        yield beyond("verify_ref_seconds", verified, read)

    def known_result(self) -> Result:
        """Push an archive of which 19 of 20 packages are in the registry; count what is sent."""
        url, sent = f"s3://{self.server.bucket}/known", 0
        kept = {f"p{number:02}": random_bytes(number, PACKAGE_BYTES) for number in range(19)}
        for version in range(2):
            changed = {"p09x": random_bytes(100 + version, PACKAGE_BYTES)}
            artifact = pack(self.work / "known", {**kept, **changed}, name="known")
            plan = Plan(upstream=self.server.endpoint_url)
            with fault_proxy(plan) as proxy:
                command = self.command(ENVFERRY, "push", artifact.archive_path, "--registry", url)
                environ = (*command.environ, ("AWS_ENDPOINT_URL_S3", proxy))
                run_once(replace(command, environ=environ))
            sent = plan.sent_bytes
        size = artifact.archive_path.stat().st_size
        return Result(
            name="push_known_bytes", ours=sent, other=size, goal=0.1, unit="bytes",
            note="19 of 20 packages are there, of 12 MB each",
        )  # fmt: skip

    def transfer(self, verb: str, path: Path, key: str) -> tuple[str | Path, ...]:
        """Return the command line of boto3's transfer manager."""
        return (sys.executable, "-c", TRANSFER, verb, path, self.server.bucket, key)


def peak(name: str, runs: list[Run]) -> Result:
    """Return the largest memory of some runs."""
    megabytes = max(run.peak_bytes for run in runs) / 1e6
    return Result(name=name, ours=megabytes, other=1, goal=LIMIT_MB, unit="MB")


def beyond(name: str, runs: list[Run], base: list[Run]) -> Result:
    """Return what some runs take longer than others, in seconds."""
    ours, other = (statistics.median(run.seconds for run in side) for side in (runs, base))
    return Result(name=name, ours=ours - other, other=1, goal=SIGNATURE_SECONDS, unit="s")
