"""Push and fetch against the better of s5cmd, AWS's CRT client and boto3, on a SeaweedFS here."""

from __future__ import annotations

import shutil
import statistics
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.comparing import Command, Result, Run, in_turn, put_aside, run_once, seconds_result
from demo.seaweed import S3Server, seaweed
from demo.walkthrough import ENVFERRY
from tests.support.fault_proxy import Plan, fault_proxy
from tests.support.packed import pack, random_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.environments import Environment

BOTO3 = """
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
CRT = """
import os
import sys
import botocore.session
from botocore.config import Config
from s3transfer import crt
verb, path, bucket, key = sys.argv[1:]
session = botocore.session.Session()
region, config = os.environ["AWS_DEFAULT_REGION"], Config(s3={"addressing_style": "path"})
login = crt.BotocoreCRTCredentialsWrapper(session.get_credentials())
client = crt.create_s3_crt_client(
    region, login.to_crt_credentials_provider(), use_ssl=False, part_size=16 << 20
)
where = {
    "region_name": region, "endpoint_url": os.environ["AWS_ENDPOINT_URL_S3"], "config": config
}
with crt.CRTTransferManager(client, crt.BotocoreCRTRequestSerializer(session, where)) as manager:
    if verb == "put":
        manager.upload(path, bucket, key).result()
    else:
        manager.download(bucket, key, path).result()
"""
RIVALS = Path(sys.prefix) / "rivals/bin"
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
        yield from bench.push_results(environment)
        yield from bench.fetch_results(environment)
        if not environment.fits_disk_once:
            one_core = Bench(work, archive, server, cores=1)
            yield from one_core.push_results(environment)
            yield from one_core.fetch_results(environment)
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
    """One archive and one server; clients may have fewer cores than the server."""

    def __init__(
        self, work: Path, archive: Path, server: S3Server, cores: int | None = None
    ) -> None:
        self.work, self.archive, self.server = work, archive, server
        self.label = f"_{cores}_core" if cores else ""
        self.runner = ("taskset", "--cpu-list", f"0-{cores - 1}") if cores else ()
        self.number = 0

    def run(self, *words: str | Path) -> Run:
        """Run a command once."""
        return run_once(self.command(*words))

    def run_with_cached_archive(self, *words: str | Path) -> Run:
        """Run a command once, with the archive in the page cache: the first would have to read it.

        Of 24 GB, what a server is sent may take its place in between.
        """

        def read_archive() -> None:
            run_once(Command.of("sh", "-c", f"cat {self.archive} > /dev/null"))

        return run_once(replace(self.command(*words), prepare=read_archive))

    def command(self, *words: str | Path) -> Command:
        """Return a command that finds the server."""
        environ = {**self.server.environ, "ENVFERRY_TRUSTED_DIR": "/dev/null"}
        argv = (*self.runner, *map(str, words))
        return Command(argv=argv, environ=tuple(environ.items()))

    def push_results(self, environment: Environment) -> Iterator[Result]:
        """Push to an empty registry each time, as boto3 uploads to a new key."""
        ours, others = list[Run](), list[dict[str, Run]]()
        for number in range(environment.warm_ups + environment.copies):
            url = f"s3://{self.server.bucket}/push{self.label}-{number}"
            words = (ENVFERRY, "push", self.archive, "-q", "--registry", url)
            ours.append(self.run_with_cached_archive(*words))
            rivals = self.rivals("put", self.archive, f"other{self.label}-{number}")
            others.append(
                {name: self.run_with_cached_archive(*words) for name, words in rivals.items()}
            )
        yield against_best(
            f"push{self.label}_vs_best",
            ours[environment.warm_ups :],
            others[environment.warm_ups :],
        )
        yield peak(f"push{self.label}_rss", ours)

    def install_results(self, environment: Environment) -> Iterator[Result]:
        """Install straight from S3 each time, against a download of the archive alone."""
        envs, other = self.work / "envs", self.work / "other.tar.zst"
        url = f"s3://{self.server.bucket}/push-0"
        install = self.command(
            ENVFERRY, "install", environment.name, "-q", "--no-check", "--force", "cuda",
            "--envs-dir", envs, "--prefix", environment.built.prefix, "--registry", url,
        )  # fmt: skip
        download = self.command(*self.rivals("get", other, "other-0")["boto3"])
        runs = in_turn(
            replace(install, prepare=lambda: put_aside(envs)),
            replace(download, prepare=lambda: other.unlink(missing_ok=True)),
            environment.rounds,
        )
        yield seconds_result("install_s3_vs_download", runs, 1.3, "the files, too, are written")
        yield peak("install_s3_rss", runs[0])
        put_aside(envs)

    def fetch_results(self, environment: Environment) -> Iterator[Result]:
        """Fetch into an empty directory each time."""
        out = self.work / "out"
        url = f"s3://{self.server.bucket}/push-0"

        def empty() -> None:
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()

        name = self.archive.name.split("-")[0]
        fetch = self.command(ENVFERRY, "fetch", name, "-q", "-o", out, "--registry", url)
        ours, others = list[Run](), list[dict[str, Run]]()
        for _ in range(environment.warm_ups + environment.rounds):
            ours.append(run_once(replace(fetch, prepare=empty)))
            rivals = self.rivals("get", out / "other", "other-0")
            commands = {name: self.command(*words) for name, words in rivals.items()}
            others.append(
                {name: run_once(replace(one, prepare=empty)) for name, one in commands.items()}
            )
        yield against_best(
            f"fetch{self.label}_vs_best",
            ours[environment.warm_ups :],
            others[environment.warm_ups :],
        )
        yield peak(f"fetch{self.label}_rss", ours)
        empty()

    def signature_results(self, rounds: int) -> Iterator[Result]:
        """Push what is there with and without a key; verify with and without reading."""
        url, name = str(self.work / "directory"), self.archive.name.split("-")[0]
        self.run(ENVFERRY, "keygen", self.work / "key")
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

    def rivals(self, verb: str, path: Path, key: str) -> dict[str, tuple[str | Path, ...]]:
        """Return the command lines that put or get an object, by the name of the program."""
        python, bucket = RIVALS / "python", self.server.bucket
        local, remote = str(path), f"s3://{bucket}/{key}"
        ends = (local, remote) if verb == "put" else (remote, local)
        s5cmd = (RIVALS / "s5cmd", "--endpoint-url", self.server.endpoint_url, "cp")
        return {
            "boto3": (python, "-c", BOTO3, verb, path, bucket, key),
            "AWS CRT": (python, "-c", CRT, verb, path, bucket, key),
            "s5cmd": (*s5cmd, "--part-size", "16", "--concurrency", "10", *ends),
        }


def against_best(name: str, ours: list[Run], others: list[dict[str, Run]]) -> Result:
    """Return the medians of ours and of the fastest of the others; the note has all of these."""
    medians = {
        rival: statistics.median(runs[rival].seconds for runs in others) for rival in others[0]
    }
    rivals = {rival: [runs[rival] for runs in others] for rival in medians}
    shown = ", ".join(
        f"{rival} {medians[rival]:.2f} s ({cpu_of(runs):.2f})" for rival, runs in rivals.items()
    )
    seconds = statistics.median(run.seconds for run in ours)
    note = f"{shown}; CPU in brackets, ours {cpu_of(ours):.2f}"
    return Result(
        name=name, ours=seconds, other=min(medians.values()), goal=1.1, unit="s", note=note
    )


def cpu_of(runs: list[Run]) -> float:
    """Return the median of the CPU seconds."""
    return statistics.median(run.cpu_seconds for run in runs)


def peak(name: str, runs: list[Run]) -> Result:
    """Return the largest memory of some runs."""
    megabytes = max(run.peak_bytes for run in runs) / 1e6
    return Result(name=name, ours=megabytes, other=1, goal=LIMIT_MB, unit="MB")


def beyond(name: str, runs: list[Run], base: list[Run]) -> Result:
    """Return what some runs take longer than others, in seconds."""
    ours, other = (statistics.median(run.seconds for run in side) for side in (runs, base))
    return Result(name=name, ours=ours - other, other=1, goal=SIGNATURE_SECONDS, unit="s")
