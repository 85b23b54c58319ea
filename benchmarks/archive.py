"""Pack and install, held against tar, zstd and cp on the same tree."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from benchmarks.comparing import Command, Result, in_turn, seconds_result
from demo.voyage import ENVFERRY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.environments import Environment


def results(environment: Environment) -> Iterator[Result]:
    """Yield the figures of the archive."""
    work = environment.home / "bench"
    shutil.rmtree(work, ignore_errors=True)
    (work / "ours").mkdir(parents=True)
    yield from pack_results(environment)
    yield from install_results(environment)
    shutil.rmtree(work)


def pack_results(environment: Environment) -> Iterator[Result]:
    """Pack against `tar | zstd -T0 -3`: seconds and bytes."""
    work, tree = environment.home / "bench", environment.built.tree
    other = work / "other.tar.zst"
    ours = Command(
        argv=(str(ENVFERRY), "pack", environment.name, "-q", "-o", str(work / "ours")),
        environ=(("ENVFERRY_CACHE", str(environment.cache)),),
    )
    pipe = f"tar -C {tree} -cf - . | zstd -q -f -T0 -3 -o {other}"
    runs = in_turn(ours, Command.of("sh", "-c", pipe), environment.rounds)
    yield seconds_result("pack_vs_tar_zstd", runs, 0.8)
    (packed,) = (work / "ours").glob("*.tar.zst")
    sizes = packed.stat().st_size, other.stat().st_size
    yield Result(
        name="pack_size_vs_tar_zstd", ours=sizes[0], other=sizes[1], goal=1.0, unit="bytes"
    )
    peak = max(run.peak_bytes for run in runs[0]) / 1e6
    yield Result(name="rss_pack", ours=peak, other=1, goal=400, unit="MB")
    other.unlink()


def install_results(environment: Environment) -> Iterator[Result]:
    """Install from a local file against `cp -a` of the installed tree."""
    work = environment.home / "bench"
    (packed,) = (work / "ours").glob("*.tar.zst")
    envs, copy = work / "envs", work / "copy"

    def empty() -> None:
        shutil.rmtree(envs, ignore_errors=True)
        shutil.rmtree(copy, ignore_errors=True)

    install = (ENVFERRY, "install", packed, "-q", "--no-check", "--envs-dir", envs)
    prefix = environment.built.prefix
    ours = Command.of(*install, "--prefix", prefix, prepare=empty)
    other = Command.of("cp", "-a", environment.built.tree, copy)
    runs = in_turn(ours, other, environment.rounds)
    yield seconds_result("install_vs_cp", runs, 0.8)
    peak = max(run.peak_bytes for run in runs[0]) / 1e6
    yield Result(name="rss_install", ours=peak, other=1, goal=400, unit="MB")
    empty()
