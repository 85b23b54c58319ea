"""Pack, install, update and verify, held against tar, zstd, conda-pack, cp and xxhsum."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from benchmarks.comparing import (
    Command,
    Result,
    Run,
    in_turn,
    put_aside,
    run_once,
    seconds_result,
)
from demo.walkthrough import ENVFERRY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.environments import Environment

PEAK_MB = 400
SMALL_PACKAGE_BYTES = 5 << 20
CONDA_PACK = ENVFERRY.with_name("conda-pack")


def results(environment: Environment) -> Iterator[Result]:
    """Yield the figures of the archive."""
    work = environment.home / "bench"
    shutil.rmtree(work, ignore_errors=True)
    (work / "ours").mkdir(parents=True)
    yield from pack_results(environment)
    yield from install_results(environment)
    yield from verify_results(environment)
    yield from update_results(environment)
    yield from conda_pack_results(environment)
    shutil.rmtree(work)


def pack_command(environment: Environment, output: Path) -> Command:
    """Return `envferry pack` into a directory, from scratch."""

    def forget_earlier_packs() -> None:
        """Leave no archive to take frames from: this is the first time."""
        shutil.rmtree(environment.cache / "packs", ignore_errors=True)
        for archive in output.glob("*.tar.zst"):
            archive.unlink()

    return Command(
        argv=(str(ENVFERRY), "pack", environment.name, "-q", "-o", str(output)),
        environ=(("ENVFERRY_CACHE", str(environment.cache)),),
        prepare=forget_earlier_packs,
    )


def install_command(environment: Environment, *words: str | Path) -> Command:
    """Return an install for the built prefix into an empty envs directory of its own."""
    work = environment.home / "bench"
    (packed,) = (work / "ours").glob("*.tar.zst")
    envs = work / "envs"
    argv = (ENVFERRY, "install", packed, "-q", "--no-check", "--force", "cuda")
    return Command.of(*argv, "--envs-dir", envs, *words, prepare=lambda: put_aside(envs))


def peak(name: str, runs: Sequence[Run]) -> Result:
    """Return the largest peak of memory as a result."""
    largest = max(run.peak_bytes for run in runs) / 1e6
    return Result(name=name, ours=largest, other=1, goal=PEAK_MB, unit="MB")


def pack_results(environment: Environment) -> Iterator[Result]:
    """Pack against `tar | zstd -T0 -3`: seconds and bytes."""
    work, tree = environment.home / "bench", environment.built.tree
    other = work / "other.tar.zst"
    pipe = f"tar -C {tree} -cf - . | zstd -q -f -T0 -3 -o {other}"
    runs = in_turn(
        pack_command(environment, work / "ours"),
        Command.of("sh", "-c", pipe),
        environment.rounds,
    )
    yield seconds_result("pack_vs_tar_zstd", runs, 0.6)
    (packed,) = (work / "ours").glob("*.tar.zst")
    sizes = packed.stat().st_size, other.stat().st_size
    yield Result(
        name="pack_size_vs_tar_zstd", ours=sizes[0], other=sizes[1], goal=1.0, unit="bytes"
    )
    yield peak("rss_pack", runs[0])
    other.unlink()


def install_results(environment: Environment) -> Iterator[Result]:
    """Install from a local file, against `cp -a` of the tree; moved, against not moved."""
    copy, prefix = environment.home / "bench/copy", environment.built.prefix
    plain = install_command(environment, "--prefix", prefix)
    tree = environment.built.tree
    other = Command.of("cp", "-a", tree, copy, prepare=lambda: put_aside(copy))
    runs = in_turn(plain, other, environment.rounds)
    yield seconds_result("install_vs_cp", runs, 0.6)
    yield roofline_result(environment, runs[0])
    yield peak("rss_install", runs[0])
    put_aside(copy)
    moved = install_command(environment, "--prefix", f"{Path(prefix).parent}/another-name")
    yield seconds_result("relocate_vs_plain", in_turn(moved, plain, environment.rounds), 1.1)


def roofline_result(environment: Environment, runs: Sequence[Run]) -> Result:
    """Hold installs against what bounds them: the disk's own speed, or CPU on all cores."""
    tree = Path(environment.built.tree)
    sizes = [path.lstat().st_size for path in tree.rglob("*") if path.is_file()]
    probe = environment.home / "bench/direct"
    speeds = [direct_write_speed(probe) for _ in range(3)]
    disk = sum(sizes) / statistics.median(speeds)
    cpu = statistics.median(run.cpu_seconds for run in runs) / len(os.sched_getaffinity(0))
    return Result(
        name="install_vs_roofline", ours=statistics.median(run.seconds for run in runs),
        other=max(disk, cpu), goal=1.25, unit="s",
        note=f"the disk takes {disk:.2f} s for these bytes, the cores {cpu:.2f} s",
    )  # fmt: skip


def direct_write_speed(path: Path) -> float:
    """Return the bytes per second of writing 1 GiB past the page cache, 8 MiB at a time."""
    block = mmap.mmap(-1, 8 << 20)  # aligned, as O_DIRECT wants it
    block.write(os.urandom(8 << 20))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT, 0o600)
    try:
        started = time.monotonic()
        for _ in range(128):
            os.write(descriptor, block)
        os.fsync(descriptor)
        return (1 << 30) / (time.monotonic() - started)
    finally:
        os.close(descriptor)
        path.unlink()


def verify_results(environment: Environment) -> Iterator[Result]:
    """Verify in full, against `xxhsum -H2` over the same files."""
    if not shutil.which("xxhsum"):
        sys.stderr.write("verify_vs_xxhsum: not measured, no xxhsum (apt-get install xxhash)\n")
        return
    run_once(install_command(environment, "--prefix", environment.built.prefix))
    envs = environment.home / "bench/envs"
    ours = Command.of(ENVFERRY, "verify", environment.name, "-q", "--envs-dir", envs)
    listing = f"find {envs}/{environment.name}/ -type f -print0 | xargs -0 xxhsum -q -H2"
    runs = in_turn(ours, Command.of("sh", "-c", listing), environment.rounds)
    yield seconds_result("verify_vs_xxhsum", runs, 1.2)
    yield peak("rss_verify", runs[0])


def update_results(environment: Environment) -> Iterator[Result]:
    """One package of some 5 MB changed: what is read, and how long it takes with hard links."""
    work = environment.home / "bench"
    changed, package_bytes = changed_copy(environment)
    cache = (("ENVFERRY_CACHE", str(environment.cache)),)
    argv = (ENVFERRY, "pack", changed, "-q", "-o", work / "changed", "--name", environment.name)
    words = tuple(map(str, (*argv, "--prefix", environment.built.prefix)))
    run_once(Command(argv=words, environ=cache))
    shutil.rmtree(changed)
    (packed,) = (work / "changed").glob("*.tar.zst")
    update = (ENVFERRY, "install", packed, "--no-check", "--force", "cuda", "--link", "hardlink")
    place = ("--envs-dir", work / "envs", "--prefix", environment.built.prefix)
    words = tuple(map(str, (*update, *place, "--dry-run", "--json")))
    plan = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    yield Result(
        name="update_bytes", ours=plan["fetch_bytes"], other=package_bytes, goal=1.0, unit="bytes",
        note=f"{plan['frames']} of {plan['all_frames']} frames; other: the package's files",
    )  # fmt: skip
    # Read once, as by who ran it: what is installed is cold, and the disk is not the subject.
    run_once(Command.of(ENVFERRY, "verify", environment.name, "-q", "--envs-dir", work / "envs"))
    run = run_once(Command.of(*update, *place, "-q"))
    yield Result(
        name="update_from_file_seconds", ours=run.seconds, other=1, goal=1, unit="s",
        note="the tree that is shared was in the page cache",
    )  # fmt: skip


def changed_copy(environment: Environment) -> tuple[Path, int]:
    """Copy the tree by hard links with one byte of its package nearest to 5 MB changed.

    Returns the copy, and the bytes of that package's files and of the index that is read.
    """
    (packed,) = (environment.home / "bench/ours").glob("*.tar.zst")
    manifest = json.loads(Path(str(packed).replace(".tar.zst", ".manifest.json")).read_text())
    tree, copy = Path(environment.built.tree), environment.home / "bench/changed-tree"
    shutil.copytree(tree, copy, symlinks=True, copy_function=link_file)
    packages = [item for item in manifest["packages"] if item["kind"] == "pypi"]
    chosen = min(packages, key=lambda item: abs(item["size"] - SMALL_PACKAGE_BYTES))
    infos = copy.glob("lib/python*/site-packages/*.dist-info/METADATA")
    info = next(path for path in infos if package_name(path) == chosen["name"])
    text = info.read_bytes()
    info.unlink()
    info.write_bytes(text + b"\n")
    return copy, chosen["size"] + manifest["archive"]["index_size"] + (128 << 10)


def package_name(metadata: Path) -> str:
    """Return the canonical name of the pip package that a METADATA describes."""
    lines = metadata.read_text(errors="replace").splitlines()
    return canonicalize_name(next(line for line in lines if line.startswith("Name: "))[6:])


def link_file(source: str, target: str) -> None:
    """Give a file a second name."""
    Path(target).hardlink_to(source)


def conda_pack_results(environment: Environment) -> Iterator[Result]:
    """Against conda-pack: its tar.zst, and the manual install of its default. One round."""
    work, tree = environment.home / "bench", environment.built.tree
    ours = run_once(pack_command(environment, work / "again"))
    common = (CONDA_PACK, "-q", "-p", tree, "--ignore-missing-files")
    theirs = run_once(Command.of(*common, "-o", work / "theirs.tar.zst"))
    yield seconds_result("pack_vs_conda_pack_zst", ([ours], [theirs]), 1 / 6)
    (work / "theirs.tar.zst").unlink()
    run_once(Command.of(*common, "-o", work / "theirs.tar.gz"))
    ours = run_once(install_command(environment, "--prefix", environment.built.prefix))
    manual = work / "manual"
    manual.mkdir()
    unpack = f"tar -xzf {work}/theirs.tar.gz -C {manual} && {manual}/bin/python"
    theirs = run_once(Command.of("sh", "-c", f"{unpack} {manual}/bin/conda-unpack"))
    yield seconds_result("install_vs_manual", ([ours], [theirs]), 1 / 5)
