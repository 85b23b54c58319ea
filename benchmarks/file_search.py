"""Finding files in a registry of many artifacts of 50,000 files each, by the index in the cache.

The index is filled by the code that fills it, from lists of files that are made up: 6,000 different
packages of 200 files, of which each artifact holds 250. What makes it large is what differs: an
artifact of packages that others hold costs 250 rows. A thousand artifacts by default, ten
thousand with `--env reference`.
"""

from __future__ import annotations

import random
import shutil
import statistics
import time
from contextlib import closing
from typing import TYPE_CHECKING

import xxhash

from benchmarks.comparing import Result
from envferry.base.text import human_bytes
from envferry.index.database import Database
from envferry.index.file_queries import FileContent, FilePattern, find_files, module_patterns
from envferry.index.file_rows import FileList, write_files
from envferry.index.rows import PUT_ARTIFACT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.environments import Environment
    from envferry.index.database import Connection

LARGE, SMALL = 10_000, 1_000
PACKAGES, VERSIONS = 1_500, 4
HELD, FILES = 250, 200
ROUNDS = 5
BATCH = 100
PLATFORM = "linux-64"


def digest(path: str) -> str:
    """Return the content that a file has here: another one for each path."""
    return xxhash.xxh3_128_hexdigest(path.encode())


QUESTIONS: dict[str, tuple[FilePattern | FileContent, ...]] = {
    "exact": (FilePattern.parse("libpkg7.so.1"),),
    "pattern": (FilePattern.parse("libpkg7.so*"),),
    "inside": (FilePattern.parse("*kg77.so*"),),
    "folder": (FilePattern.parse("pkg7/part3/__init__.py"),),
    "import": module_patterns("pkg7.part3"),
    "nothing": (FilePattern.parse("libcudnn.so.9"),),
    "content": (FileContent(digest("lib/libpkg7.so.1")),),
}


def results(environment: Environment) -> Iterator[Result]:
    """Yield the figures: the slowest kind of question counts."""
    count = LARGE if environment.name != "demo" else SMALL
    work = environment.home / "bench-file-search"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    path = work / "index.sqlite"
    started = time.monotonic()
    with closing(Database(path)) as database:
        fill(database, count)
    filled = time.monotonic() - started
    note = f"filled in {filled:.0f} s, {human_bytes(path.stat().st_size)}"
    for name, patterns in QUESTIONS.items():
        runs = [ask_seconds(path, patterns) for _ in range(ROUNDS)]
        found = runs[0][1]
        yield Result(
            name=f"find_file_{name}_{count}",
            ours=statistics.median(seconds for seconds, _ in runs),
            other=1,
            goal=0.5,
            unit="s",
            note=f"{found} found; {note}",
        )
    shutil.rmtree(work)


def fill(database: Database, count: int) -> None:
    """Write artifacts, each with its own choice of packages."""
    choice = random.Random(1)
    packages = [package(name, version) for name in range(PACKAGES) for version in range(VERSIONS)]
    for start in range(0, count, BATCH):

        def write(connection: Connection, start: int = start) -> None:
            for number in range(start, start + BATCH):
                place = (f"env-{number % 100:03}", PLATFORM, f"{number:012x}")
                sizes = ("published", None, "1", 1, 1, HELD)
                seen = (float(number), 0, "", 0.0, 0.0, "")
                connection.execute(PUT_ARTIFACT, (*place, *sizes, *seen))
                write_files(connection, place, choice.sample(packages, HELD))

        database.write(write)


def package(name: int, version: int) -> FileList:
    """Return the files of a package: modules in ten folders, and a library."""
    top = f"lib/python3.11/site-packages/pkg{name}"
    modules = (
        f"{top}/part{number % 10}/{'__init__' if number < 10 else f'module{name}_{number}'}.py"
        for number in range(FILES - 1)
    )
    library = f"lib/libpkg{name}.so.{version}"
    paths = (*modules, library)
    return FileList(f"pkg{name}", str(version), paths, tuple(map(digest, paths)))


def ask_seconds(path: Path, wanted: tuple[FilePattern | FileContent, ...]) -> tuple[float, int]:
    """Return how long a question takes with the index just opened, and how much it finds."""
    started = time.monotonic()
    with closing(Database(path)) as database:
        found = len(database.run(find_files(wanted)))
    return time.monotonic() - started, found
