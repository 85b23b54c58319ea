"""Looking into a registry of many artifacts on a SeaweedFS of this machine: ls, a refresh, pages.

A thousand artifacts by default, ten thousand with `--env reference`.
"""

from __future__ import annotations

import http.client
import json
import shutil
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from blake3 import blake3

from benchmarks.comparing import Command, Result, run_once
from demo.seaweed import S3Server, seaweed
from demo.walkthrough import ENVFERRY
from envferry.base.json import to_json
from envferry.config import child_environ
from envferry.models import ArchiveFacts, Manifest, PackageFacts, TagRecord

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.environments import Environment

ENVIRONMENTS = 100
LARGE, SMALL = 10_000, 1_000
PACKAGES = 60
"""Of an artifact: a third of what is usual, so that the filling takes less."""
NEW = 10
ROUNDS = 5
VISITS = 15
WRITERS = 4
PLATFORM = "linux-64"
PREFIX = "browse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """A registry full of artifacts."""

    server: S3Server
    work: Path
    count: int

    @property
    def url(self) -> str:
        """The registry."""
        return f"s3://{self.server.bucket}/{PREFIX}"

    @property
    def environ(self) -> dict[str, str]:
        """What envferry needs to get there, with an index of its own."""
        return {**self.server.environ, "ENVFERRY_CACHE": str(self.work / "cache")}

    def command(self, *words: str) -> Command:
        """Return a command line about the registry."""
        argv = (str(ENVFERRY), *words, "-q", "--registry", self.url)
        return Command(argv=argv, environ=tuple(self.environ.items()))


def results(environment: Environment) -> Iterator[Result]:
    """Yield the figures."""
    count = LARGE if environment.name != "demo" else SMALL
    work = environment.home / "bench-browse"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with seaweed(work / "seaweed") as server:
        filled = Filled(server=server, work=work, count=count)
        put_all(filled, range(count // ENVIRONMENTS))
        cold = run_once(filled.command("ls")).seconds
        full = run_once(filled.command("ls", "--refresh")).seconds
        note = f"the first index of all: {cold:.1f} s; with every key listed: {full:.1f} s"
        warm = [run_once(filled.command("ls")).seconds for _ in range(ROUNDS)]
        yield figure(f"ls_{count}_s3", statistics.median(warm), 1.0, note)
        yield figure(f"index_refresh_{count}", refresh_seconds(filled), 2.0, f"{NEW} are new")
        slowest, path = slowest_page(filled)
        yield figure(f"page_{count}", slowest, 0.2, f"the slowest page: {path}")
    shutil.rmtree(work)


def figure(name: str, seconds: float, goal: float, note: str) -> Result:
    """Return seconds that stand for themselves."""
    return Result(name=name, ours=seconds, other=1, goal=goal, unit="s", note=note)


def refresh_seconds(filled: Filled) -> float:
    """Return how long `ls` takes when ten artifacts are new, the whole process."""
    runs = []
    for number in range(ROUNDS):
        release = filled.count // ENVIRONMENTS + number
        with bucket(filled) as put:
            for environment in range(NEW):
                put_artifact(put, environment, release)
        runs.append(run_once(filled.command("ls")).seconds)
    return statistics.median(runs)


def slowest_page(filled: Filled) -> tuple[float, str]:
    """Return the median of the slowest kind of page, and which it is."""
    argv = [str(ENVFERRY), "serve", "--port", "0", "--json", "--registry", filled.url]
    environ = child_environ(**filled.environ)
    id_ = id_of("env-007", 3)
    paths = (
        *("/", "/envs/env-007/", f"/envs/env-007/{PLATFORM}/{id_}/", "/tags/"),
        *("/find/?q=package-3%3E1", "/find/?q=package-3&tagged=1", "/index.json"),
    )
    with subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        document = ""
        while not document.endswith("}\n") and (line := child.stdout.readline()):
            document += line
        address = urlsplit(json.loads(document)["url"])
        medians = [(visit_seconds(str(address.netloc), path), path) for path in paths]
        child.terminate()
    return max(medians)


def visit_seconds(place: str, path: str) -> float:
    """Return the median of some visits."""
    seconds = []
    for _ in range(VISITS):
        started = time.monotonic()
        connection = http.client.HTTPConnection(place)
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        assert answer.status == 200, f"{path}: {answer.status}"
        seconds.append(time.monotonic() - started)
    return statistics.median(seconds)


def put_all(filled: Filled, releases: range) -> None:
    """Write all artifacts and tags, past S3: that takes a fraction of the time."""

    def put_environment(environment: int) -> None:
        with bucket(filled) as put:
            for release in releases:
                put_artifact(put, environment, release)
            name = f"env-{environment:03}"
            for tag, release in (("latest", releases[-1]), ("stable", releases[0])):
                record = TagRecord(id=id_of(name, release), counter=release + 1)
                put.file(f"v1/tags/{name}/{PLATFORM}/{tag}", to_json(record))

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(put_environment, range(ENVIRONMENTS)))


@dataclass(frozen=True, slots=True)
class Put:
    """Writes files into the bucket over one connection."""

    connection: http.client.HTTPConnection
    path: str

    def file(self, key: str, data: bytes) -> None:
        """Write one."""
        self.connection.request("PUT", self.path + quote(f"{PREFIX}/{key}"), body=data)
        answer = self.connection.getresponse()
        answer.read()
        assert answer.status < 300, f"{key}: {answer.status}"


@contextmanager
def bucket(filled: Filled) -> Iterator[Put]:
    """Open the bucket behind S3's back."""
    address = urlsplit(filled.server.bucket_url)
    connection = http.client.HTTPConnection(str(address.netloc))
    yield Put(connection, address.path)
    connection.close()


def put_artifact(put: Put, environment: int, release: int) -> None:
    """Write the six files of an artifact; of its archive only as much as a listing sees."""
    name = f"env-{environment:03}"
    manifest = manifest_of(name, release)
    folder = f"v1/envs/{name}/{PLATFORM}/{manifest.id}/"
    for file in ("conda-lock.yml", "sbom.cdx.json", "attestation.json", f"{manifest.stem}.xxh128"):
        put.file(folder + file, b"{}")
    put.file(folder + manifest.archive.file, b"archive")
    put.file(f"{folder}manifest.json", to_json(manifest))


def id_of(name: str, release: int) -> str:
    """Return the id of a release."""
    return blake3(f"{name} {release}".encode()).hexdigest()[:12]


def manifest_of(name: str, release: int) -> Manifest:
    """Return a manifest; every tenth release has other versions."""
    id_ = id_of(name, release)
    file = f"{name}-{PLATFORM}-{id_}.tar.zst"
    packages = tuple(
        PackageFacts(
            name=f"package-{number}",
            version=f"1.{number}.{release // 10}",
            kind="pypi" if number % 3 else "conda",
            license="MIT",
            size=number * 10_000,
        )
        for number in range(PACKAGES)
    )
    facts = ArchiveFacts(
        file=file, size=7, xxh128="", blake3="", tar_size=7, index_offset=0, index_size=0,
        index_blake3="",
    )  # fmt: skip
    return Manifest(
        name=name,
        platform=PLATFORM,
        id=id_,
        prefix=f"/opt/conda/envs/{name}",
        version=f"{release}.0",
        archive=facts,
        lock_digest="",
        content_hash="",
        packages=packages,
    )
