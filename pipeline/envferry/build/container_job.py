"""The request that a builder in a container carries out, and its answer."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec
from packaging.utils import canonicalize_name

from envferry.build.builder_answer import read_answer
from envferry.build.request import BuildAnswer, BuildRequest, CondaFile, WheelFile
from envferry.engines.port import Job, Mount, Sandbox
from envferry.errors import SpecError
from envferry.names import current_platform
from envferry.process import our_module

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envferry.build.build_dir import BuildDir
    from envferry.build.build_options import BuildOptions
    from envferry.models import LockedPackage

log = logging.getLogger(__name__)

LOCK = "lock again: `envferry lock`"
NO_PARTS: Mapping[str, tuple[str, str]] = {}
UMASK = 'umask "$0"; exec "$@"'


def builder_request(
    packages: tuple[LockedPackage, ...],
    downloads: dict[str, Path],
    work: BuildDir,
    options: BuildOptions,
    parts: Mapping[str, tuple[str, str]] = NO_PARTS,
) -> BuildRequest:
    """Write down what the builder is to do, with paths as the container sees them.

    `parts` has, by the name of a wheel that is linked from the store, path and SHA-256 of the wheel
    that the builder installs of it.
    """

    def seen_path(package: LockedPackage) -> str:
        # What an earlier build holds is not downloaded.
        return path_inside(downloads[package.url], options) if package.url in downloads else ""

    conda = [package for package in packages if package.manager == "conda"]
    # A lock of another tool may have neither for any package: then nothing can be checked against
    # it.
    knows = any(package.dependencies or package.record for package in conda)
    return BuildRequest(
        prefix=str(work.prefix),
        scratch=str(work.prefix.parent / work.scratch.name),
        platform=current_platform(),
        conda=tuple(
            CondaFile(
                path=seen_path(package),
                name=package.name,
                url=package.url,
                sha256=package.sha256,
                md5=package.md5,
                record=package.record,
                dependencies=package.dependencies if knows else None,
            )
            for package in conda
        ),
        wheels=tuple(
            WheelFile(
                path=seen_path(package),
                name=package.name,
                version=package.version,
                sha256=package.sha256 or "",
                small_path=parts[package.name][0] if package.name in parts else "",
                small_sha256=parts[package.name][1] if package.name in parts else "",
            )
            for package in packages
            if package.manager == "pip"
        ),
        allow_clobber=options.allow_clobber,
        allow_conflict=options.allow_conflict,
    )


def path_inside(download: Path, options: BuildOptions) -> str:
    """Return where the container sees a download."""
    # As the cache lays them out: algorithm, first digits, hash, file name.
    return "/".join((options.variation.work_dir, "downloads", *download.parts[-4:]))


def downloads_mount(cache_root: Path, options: BuildOptions) -> Mount:
    """Return the downloads, read-only, where `path_inside` says that they are."""
    return Mount(source=cache_root, target=f"{options.variation.work_dir}/downloads")


def path_of_stored(path: Path, cache_root: Path, options: BuildOptions) -> str:
    """Return where the container sees a file of the cache."""
    return f"{options.variation.work_dir}/downloads/{path.relative_to(cache_root)}"


def open_to_others(work: BuildDir) -> None:
    """Let another user build here, whatever this one's umask is."""
    for directory in (work.envs, work.scratch):
        # The user of the container has a number that this machine need not know.
        directory.chmod(0o777)
    work.exchange.chmod(0o755)
    (work.exchange / "request.json").chmod(0o644)


def readable_downloads(request: BuildRequest, cache_root: Path, folder: Path) -> Path:
    """Return a folder with a request's downloads for every user: the cache may be closed.

    They lie in it as they do in the cache, whose own modes stay what they are.
    """
    folder.mkdir()
    folder.chmod(0o755)
    seen = [*(file.path for file in request.conda), *(wheel.path for wheel in request.wheels)]
    seen += [file.path for file in request.data]
    for path in filter(None, seen):
        place = Path(*PurePosixPath(path).parts[-4:])
        for parent in reversed(place.parents[:-1]):
            (folder / parent).mkdir(exist_ok=True)
            (folder / parent).chmod(0o755)
        try:
            # A hard link costs nothing, and its mode is 0644 in the cache already.
            (folder / place).hardlink_to(cache_root / place)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(cache_root / place, folder / place)
            (folder / place).chmod(0o644)
    return folder


def refuse_ambiguous(packages: tuple[LockedPackage, ...]) -> None:
    """Raise SpecError when two packages have one name, or a wheel has no SHA-256."""
    seen = set()
    for package in packages:
        # One name in both halves is allowed here: clobbering is judged by files.
        name = (package.manager, canonicalize_name(package.name))
        if name in seen:
            msg = f"the lock names {package.name} ({package.manager}) twice"
            raise SpecError(msg, hint=LOCK)
        seen.add(name)
        if package.manager == "pip" and not package.sha256:
            message = f"the lock has no sha256 for {package.name}, and pip packages need one"
            raise SpecError(message, hint=LOCK)


def run_builder(
    request: BuildRequest, work: BuildDir, cache_root: Path, sandbox: Sandbox, options: BuildOptions
) -> BuildAnswer:
    """Have the container carry out a request; raise what it raised."""
    around = options.variation
    work.exchange.mkdir()
    (work.exchange / "request.json").write_bytes(msgspec.json.encode(request))
    # Root of the container can read a closed cache; any other user needs copies or links.
    if around.user:
        open_to_others(work)
        cache_root = readable_downloads(request, cache_root, work.exchange / "downloads")
    builder = our_module("envferry.build.inside.builder", python=sandbox.python)
    job = Job(
        argv=(
            "/bin/sh",
            "-c",
            UMASK,
            around.umask,
            *builder,
            f"{around.work_dir}/exchange/request.json",
        ),
        mounts=(
            work.mount(writable=True),
            downloads_mount(cache_root, options),
            Mount(source=work.exchange, target=f"{around.work_dir}/exchange"),
        ),
        environ=around.environ,
        needs_tool=True,
        user=around.user,
    )
    finished = sandbox.run(job, check=False, show=log.isEnabledFor(logging.INFO))
    answer = read_answer(finished, sandbox.name)
    for warning in answer.warnings:
        log.warning("%s", warning)
    return answer
