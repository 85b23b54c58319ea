"""What each stage costs by the environment's size and by cores, the first time and the second.

`python -m benchmarks.scaling [GB…]` prints a table in Markdown; 0.2, 1 and 3 GB by default. An
environment is the demo's and as many packages of 5 MB as its size needs, of base64, which takes
zstd less time than libraries do. The second time one of them has changed. `taskset` takes cores
away.
"""

from __future__ import annotations

import base64
import os
import random
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from benchmarks.archive import link_file
from benchmarks.comparing import Command, Run, put_aside, run_once
from benchmarks.environments import HOME, small
from demo.seaweed import S3Server, seaweed
from demo.walkthrough import ENVFERRY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.environments import Environment

GIGABYTES = (0.2, 1.0, 3.0)
PACKAGE_BYTES, FILES = 5_000_000, 20
STAGES = ("pack", "push", "install", "verify")
NAME = "scaled"


@dataclass(frozen=True)
class Row:
    """One size on so many cores: the runs of each stage, the first time and the second."""

    gigabytes: float
    cores: int
    first: dict[str, Run]
    second: dict[str, Run]

    @property
    def line(self) -> str:
        """The row of the table: seconds, and CPU seconds in brackets."""
        cells = [f"{self.gigabytes:g} GB", str(self.cores)]
        for runs in (self.first, self.second):
            cells += [f"{runs[one].seconds:.1f} ({runs[one].cpu_seconds:.1f})" for one in STAGES]
        return f"| {' | '.join(cells)} |"


class Scaled:
    """An environment of one size, on a server and on a host of its own."""

    def __init__(self, environment: Environment, work: Path, server: S3Server, cores: int) -> None:
        self.environment, self.work, self.server, self.cores = environment, work, server, cores
        self.site = next(Path(environment.built.tree).glob("lib/python3*/site-packages"))
        self.tree = work / "tree"

    def grow(self, gigabytes: float) -> None:
        """Make the tree: the demo's by hard links, and packages up to that size."""
        source = Path(self.environment.built.tree)
        shutil.copytree(source, self.tree, symlinks=True, copy_function=link_file)
        there = sum(path.lstat().st_size for path in self.tree.rglob("*") if path.is_file())
        for number in range(max(1, int((gigabytes * 1e9 - there) / PACKAGE_BYTES))):
            self.write_package(number, seed=number)

    def write_package(self, number: int, seed: int) -> None:
        """Write a package of 5 MB as pip would install it."""
        site = self.tree / self.site.relative_to(self.environment.built.tree)
        folder, info = site / f"scaled{number}", site / f"scaled{number}-1.0.dist-info"
        for place in (folder, info):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
        generator = random.Random(seed)
        for index in range(FILES):
            data = base64.b64encode(generator.randbytes(PACKAGE_BYTES // FILES * 3 // 4))
            (folder / f"part{index}.txt").write_bytes(data)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: scaled{number}\nVersion: 1.0\n"
        )
        (info / "INSTALLER").write_text("pip\n")
        names = [f"{folder.name}/part{index}.txt,," for index in range(FILES)]
        own = [f"{info.name}/{name},," for name in ("METADATA", "INSTALLER", "RECORD")]
        (info / "RECORD").write_text("\n".join([*names, *own]) + "\n")

    def stages(self) -> dict[str, Run]:
        """Run all stages once, on these cores."""
        url, dist, prefix = f"s3://{self.server.bucket}/{NAME}", self.work / "dist", "/opt/conda/x"
        host = ("--envs-dir", self.work / "envs")
        install = ("install", NAME, "--no-check", "--registry", url, "--prefix", prefix, *host)
        pack = ("pack", self.tree, "--name", NAME, "--prefix", prefix, "-o", dist)
        runs = {"pack": self.run(*pack)}
        archive = max(dist.glob("*.tar.zst"), key=lambda path: path.stat().st_mtime_ns)
        runs["push"] = self.run("push", archive, "--registry", url)
        runs["install"] = self.run(*install)
        runs["verify"] = self.run("verify", NAME, *host)
        return runs

    def run(self, *words: str | Path) -> Run:
        """Run a command on so many cores."""
        environ = {
            **self.server.environ,
            "ENVFERRY_CACHE": str(self.work / "cache"),
            "ENVFERRY_TRUSTED_DIR": os.devnull,
        }
        argv = ("taskset", "-c", f"0-{self.cores - 1}", ENVFERRY, *words, "-q")
        return run_once(Command(argv=tuple(map(str, argv)), environ=tuple(environ.items())))


def rows(sizes: tuple[float, ...]) -> Iterator[Row]:
    """Yield a row for each size and number of cores."""
    environment, every = small(), len(os.sched_getaffinity(0))
    for gigabytes in sizes:
        for cores in sorted({every, max(1, every // 2), 1}, reverse=True):
            with TemporaryDirectory(dir=HOME) as folder, seaweed(Path(folder) / "s3") as server:
                scaled = Scaled(environment, Path(folder), server, cores)
                scaled.grow(gigabytes)
                first = scaled.stages()
                scaled.write_package(0, seed=-1)
                second = scaled.stages()
                put_aside(scaled.work / "envs")
                yield Row(gigabytes, cores, first, second)


def main() -> None:
    """Print the table, a row when it is there."""
    sizes = tuple(map(float, sys.argv[1:])) or GIGABYTES
    heads = [f"{one}, {when}" for when in ("first", "second") for one in STAGES]
    sys.stdout.write(f"| size | cores | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 2)}\n")
    for row in rows(sizes):
        sys.stdout.write(f"{row.line}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
