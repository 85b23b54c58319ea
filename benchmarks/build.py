"""Build and download, held against uv, compileall and curl on the same files."""

from __future__ import annotations

import shutil
import statistics
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.comparing import (
    ASIDE,
    Command,
    Result,
    in_turn,
    put_aside,
    run_once,
    seconds_result,
)
from demo.walkthrough import ENVFERRY
from envferry import process
from envferry.engines.port import Job
from envferry.engines.selection import Engine, choose_sandbox
from envferry.models import LockedPackage
from envferry.specs.locks import read_lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.environments import Environment

FILE_MEGABYTES = (
    *(141, 112, 94, 70, 51, 46, 45, 42, 31, 25, 19, 14, 11, 10, 9, 7),
    *[1] * 48,
)
"""A sixth of what the wheels of a CUDA environment have, and small ones."""
ROUNDS = 9
UV_AND_COMPILEALL = """\
set -e
UV_CACHE_DIR="$1" "$2" pip install -q --offline --no-deps --no-index --no-config \
  --link-mode hardlink --break-system-packages --python "$3/bin/python" $4
"$3/bin/python" -m compileall -q -j0 "$3"/lib/python3.* || true
"""
"""compileall fails for templates and for tests of what must not compile."""
FETCH = """\
import sys
from pathlib import Path
import msgspec
from envferry.build.downloads import DownloadCache
from envferry.models import LockedPackage
from envferry.progress import Silent
packages = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=list[LockedPackage])
DownloadCache(Path(sys.argv[2])).fetch_all(packages, progress=Silent())
"""


def results(environment: Environment) -> Iterator[Result]:
    """Yield the figures of build and download."""
    work = environment.home / "bench-build"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    yield from build_results(environment, work)
    yield sandbox_result()
    yield download_result(environment.rounds, work)
    shutil.rmtree(work)


def build_results(environment: Environment, work: Path) -> Iterator[Result]:
    """Build, conda half and all, against the pip half alone by uv, then compileall of it all.

    Both start from wheel files, with an empty cache of uv and nothing extracted, and no environment
    of before is there to be replaced. The other's environment has its conda packages already; ours
    links them first. Then once more where the wheels are extracted, as for a second environment.
    """
    tree, other = Path(environment.built.tree), work / "other"
    bare = work / "bare"
    process.run(["cp", "-a", tree, bare])
    # What is removed now keeps a name and so its inode: see `put_aside`.
    process.run(["cp", "-al", bare, work / "kept"])
    uv = Path(sys.executable).with_name("uv")
    packages = read_lock(Path(environment.built.lock_path)).for_platform(environment.built.platform)
    wheels = [item for item in packages if item.manager == "pip"]
    names = [item.name for item in wheels]
    python = bare / "bin/python"
    process.run([uv, "pip", "uninstall", "-q", "--break-system-packages", "-p", python, *names])
    for cached in list(bare.rglob("__pycache__")):
        shutil.rmtree(cached)
    downloads = environment.cache / "downloads"
    paths = [next(downloads.glob(f"sha256/??/{item.sha256}/*.whl")) for item in wheels]

    def fresh() -> None:
        put_aside(other)
        other.mkdir()
        process.run(["cp", "-a", bare, other / "env"])

    store = downloads / "wheels"

    def forget_build() -> None:
        put_aside(tree.parents[1])
        put_aside(store)

    def keep_store() -> None:
        # Not truncated: the store has the same files.
        tree.parents[1].rename(environment.cache / f"builds/{ASIDE}{time.monotonic_ns()}")

    # Named, as in `sandbox_result`: how long others take to say that they do not work is theirs.
    engine = ("--sandbox", choose_sandbox(Engine.AUTO).name)
    build = (ENVFERRY, "build", environment.name, "-q", "--offline", "--no-check", *engine)
    ours = Command(
        argv=("sh", "-c", 'cd "$0" && exec "$@"', str(environment.home), *map(str, build)),
        environ=(("ENVFERRY_CACHE", str(environment.cache)),),
        prepare=forget_build,
    )
    words = " ".join(map(str, paths))
    script = ("sh", "-c", UV_AND_COMPILEALL, "sh", other / "uv", uv, other / "env", words)
    runs = in_turn(ours, Command.of(*script, prepare=fresh), environment.rounds)
    again = replace(ours, prepare=keep_store)
    stored = [run_once(again) for _ in range(environment.rounds + 1)][1:]
    for aside in (*environment.cache.glob("builds/.aside-*"), *downloads.glob(".aside-*")):
        shutil.rmtree(aside)
    note = "ours also links the conda packages, checks every hash and lists what it made"
    yield seconds_result("build_vs_uv", runs, 1.3, note)
    yield seconds_result("stored_build_vs_uv", (stored, runs[1]), 1, "wheels are extracted already")
    peak = max(run.peak_bytes for run in runs[0]) / 1e6
    yield Result(name="build_rss", ours=peak, other=1, goal=500, unit="MB")


def sandbox_result() -> Result:
    """Return what a container adds: one that does nothing, without choosing the engine."""
    sandbox = choose_sandbox(Engine.AUTO)
    seconds = []
    for _ in range(ROUNDS):
        started = time.monotonic()
        sandbox.run(Job(argv=("true",)))
        seconds.append(time.monotonic() - started)
    median = statistics.median(seconds)
    return Result(name="sandbox_seconds", ours=median, other=1, goal=2, unit="s", note=sandbox.name)


def download_result(rounds: int, work: Path) -> Result:
    """Download and verify files against `curl --parallel` of the same, from the same server."""
    served, fetched = work / "served", work / "fetched"
    served.mkdir()
    packages = []
    with serve(served) as url:
        for number, megabytes in enumerate(FILE_MEGABYTES):
            file = served / f"file{number}-1-0.conda"
            process.run(["dd", "if=/dev/urandom", f"of={file}", "bs=1M", f"count={megabytes}"])
            digest = process.run(["sha256sum", file]).stdout.split()[0]
            packages.append(
                LockedPackage(
                    manager="conda",
                    name=f"file{number}",
                    version="1",
                    platform="linux-64",
                    url=f"{url}/{file.name}",
                    sha256=digest,
                )
            )
        request = work / "packages.json"
        request.write_bytes(encode(packages))

        def fresh() -> None:
            put_aside(fetched)
            fetched.mkdir()

        ours = Command.of(sys.executable, "-c", FETCH, request, fetched, prepare=fresh)
        words = ("curl", "-sf", "--parallel", "--parallel-max", "8", "--output-dir", fetched)
        curl = Command.of(
            *words, "--remote-name-all", *(item.url for item in packages), prepare=fresh
        )
        runs = in_turn(ours, curl, rounds)
    note = f"{sum(FILE_MEGABYTES)} MiB; ours hashes every file"
    return seconds_result("download_vs_curl", runs, 1.1, note)


def encode(packages: list[LockedPackage]) -> bytes:
    """Return packages as JSON, for another process."""
    import msgspec

    return msgspec.json.encode(packages)


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP while the block runs; yield the URL."""
    handler = partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (its base's name)
        """Say nothing."""
