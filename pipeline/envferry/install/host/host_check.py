"""What a host must offer before the first byte is written, all findings at once."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from envferry.archive.contents import is_directory
from envferry.base.files import remove_tree
from envferry.base.text import human_bytes
from envferry.errors import HostError
from envferry.install.host.gpu_check import gpu_faults, read_gpus
from envferry.install.records.installed import read_index
from envferry.names import current_platform

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from envferry.archive.index import PackageEntry
    from envferry.install.host.gpu_check import Gpu
    from envferry.install.records.env_home import EnvHome
    from envferry.install.records.installation import Finding
    from envferry.models import SystemRequirements

log = logging.getLogger(__name__)

PROBE = ".envferry-probe-"

# Newest first: the first entry that a driver reaches is the newest CUDA that it runs.
DRIVERS = {
    "13.0": "580.65",
    "12.9": "575.51",
    "12.8": "570.26",
    "12.7": "565.57",
    "12.6": "560.28",
    "12.5": "555.42",
    "12.4": "550.54",
    "12.3": "545.23",
    "12.2": "535.54",
    "12.1": "530.30",
    "12.0": "525.60",
    "11.8": "520.61",
    "11.7": "515.43",
    "11.6": "510.39",
    "11.5": "495.29",
    "11.4": "470.42",
    "11.3": "465.19",
    "11.2": "460.27",
    "11.1": "455.23",
    "11.0": "450.36",
    "10.2": "440.33",
    "10.1": "418.39",
    "10.0": "410.48",
}
"""The first Linux driver of each CUDA version (release notes of the CUDA toolkit, table 3)."""

CUDA_PACKAGES = re.compile(
    r"nvidia-cuda-runtime(-cu\d+)?|cudatoolkit|cuda-version|cuda-cudart|cuda-runtime"
)
"""Packages whose version is that of the CUDA runtime that an environment brings with it."""

# Linux calls SSE3 `pni`, and lists LZCNT as `abm`.
X86_FLAGS = {
    "x86_64_v2": {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"},
    "x86_64_v3": {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"},
    "x86_64_v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}
"""What each micro-architecture level of the x86-64 psABI adds, as /proc/cpuinfo names it."""


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """What an environment needs of its host."""

    platform: str
    system: SystemRequirements
    cuda_runtime: str | None
    """The CUDA runtime among its packages: it runs on any driver of the same major version."""
    directory: Path
    """Where its files will be; need not exist yet."""
    free_bytes: int
    inodes: int
    has_links: bool
    cuda_code: Mapping[str, Collection[str]] = msgspec.field(default_factory=dict)
    """For which GPUs its packages have code, by name."""


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What a host offers; None where that is unknown."""

    platform: str
    glibc: str | None
    cuda: str | None
    """The newest CUDA that its driver runs; None without a driver."""
    cpu_flags: frozenset[str] | None
    gpus: tuple[Gpu, ...] = ()
    """Those that the driver names; none where it does not say."""


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """What a file system offers."""

    directory: Path
    """The nearest directory that exists."""
    free_bytes: int
    free_inodes: int | None
    """None where inodes are made as they are needed."""
    is_read_only: bool
    is_noexec: bool
    is_writable: bool
    has_links: bool


OF_THE_PLACE = {"readonly", "noexec", "symlinks", "space", "inodes"}
"""Findings that another directory may not have."""


def check_host(needs: Needs, forced: Collection[str]) -> None:
    """Raise HostError, with all findings at once, when an environment cannot live on this host.

    `forced` names the findings that the user accepts.
    """
    found = [
        *host_findings(needs, read_host(needs)),
        *disk_findings(needs, read_disk(needs.directory)),
    ]
    remaining = [(name, text) for name, text in found if name not in forced]
    if not remaining:
        return
    lines = [f"{name}: {text}" for name, text in remaining]
    options = " ".join(f"--force {name}" for name, _ in remaining)
    names = {name for name, _ in remaining}
    is_place = names <= OF_THE_PLACE
    better = (
        "name another place with --envs-dir" if is_place else "choose an artifact for this host"
    )
    way_out = f"or install it anyway with {options}"
    if "readonly" in names:  # what cannot be written to cannot be forced
        way_out = "or install as a user who can write there, such as root"
    message = "\n  ".join(["this host cannot run the environment:", *lines])
    raise HostError(message, hint=f"{better}, {way_out}")


def host_findings(needs: Needs, host: Host) -> Iterator[tuple[Finding, str]]:
    """Yield what is wrong with the machine, by name."""
    if needs.platform != host.platform:
        yield "arch", f"it is built for {needs.platform}, this host is {host.platform}"
    lacking = lacking_flags(needs.system.archspec, host.cpu_flags)
    if lacking:
        yield "arch", f"it needs {needs.system.archspec}, this processor lacks {', '.join(lacking)}"
    if needs.system.glibc and host.glibc and is_older(host.glibc, needs.system.glibc):
        wanted = needs.system.glibc
        yield "glibc", f"it needs glibc {wanted} or newer, this host has {host.glibc}"
    yield from gpu_findings(needs, host)
    wanted_cuda = newest(needs.system.cuda, oldest_of_major(needs.cuda_runtime))
    if wanted_cuda is None:
        return
    wanted = f"it needs an NVIDIA driver for CUDA {wanted_cuda}{driver_hint(wanted_cuda)}"
    if host.cuda is None:
        yield "cuda", f"{wanted}, this host has none"
    elif is_older(host.cuda, wanted_cuda):
        yield "cuda", f"{wanted}, this host's is for CUDA {host.cuda} at most"


def installed_findings(home: EnvHome, id_: str) -> list[tuple[Finding, str]]:
    """Return what is wrong with the machine for an environment that is installed."""
    installation = home.installation(id_)
    needs = Needs(
        platform=installation.platform,
        system=installation.requirements,
        cuda_runtime=cuda_runtime(read_index(home, id_).packages),
        cuda_code=installation.cuda_code,
        directory=home.directory,
        free_bytes=0,
        inodes=0,
        has_links=False,
    )
    return [*host_findings(needs, read_host(needs))]


def gpu_findings(needs: Needs, host: Host) -> Iterator[tuple[Finding, str]]:
    """Yield what cannot run on any GPU of the host; what only may not be needed is a warning."""
    for text, is_needed in gpu_faults(needs.cuda_code, host.gpus):
        if is_needed:
            yield "arch", text
        else:
            log.warning("%s", text)
    wanted = needs.system.cuda_arch
    if wanted and host.gpus and all(is_older(gpu.capability, wanted) for gpu in host.gpus):
        there = ", ".join(sorted({f"{gpu.name} ({gpu.capability})" for gpu in host.gpus}))
        yield (
            "arch",
            f"it needs a GPU of compute capability {wanted} or newer, this host has {there}",
        )


def disk_findings(needs: Needs, disk: Disk) -> Iterator[tuple[Finding, str]]:
    """Yield what is wrong with the place that the files go to, by name."""
    where = disk.directory
    if disk.is_read_only:
        yield "readonly", f"{where} is on a file system that is mounted read-only"
    elif not disk.is_writable:
        yield "readonly", f"{where} is not writable for this user"
    if disk.is_noexec:
        yield "noexec", f"{where} is on a file system where no program may run (noexec)"
    if not disk.has_links:
        yield "symlinks", f"{where} is on a file system without symbolic links"
    if disk.free_bytes < needs.free_bytes:
        wanted, found = human_bytes(needs.free_bytes), human_bytes(disk.free_bytes)
        yield "space", f"it needs {wanted} under {where}, {found} are free"
    if disk.free_inodes is not None and disk.free_inodes < needs.inodes:
        yield "inodes", f"it needs {needs.inodes} inodes under {where}, {disk.free_inodes} are free"


def cuda_runtime(packages: Iterable[PackageEntry]) -> str | None:
    """Return the newest CUDA runtime among an environment's packages."""
    versions = [
        package.version for package in packages if CUDA_PACKAGES.fullmatch(package.name.lower())
    ]
    return max(versions, key=version_key, default=None)


def oldest_of_major(version: str | None) -> str | None:
    """Return the CUDA whose driver is enough for a runtime: minor versions are compatible."""
    return f"{version_key(version)[0]}.0" if version and version_key(version) else None


def newest(*versions: str | None) -> str | None:
    """Return the newest of the versions that are given."""
    return max((version for version in versions if version), key=version_key, default=None)


def driver_hint(cuda: str) -> str:
    """Return the driver that was released with a CUDA version, if known."""
    driver = DRIVERS.get(".".join(cuda.split(".")[:2]))
    return f" (driver {driver} or newer)" if driver else ""


def lacking_flags(archspec: str | None, flags: frozenset[str] | None) -> list[str]:
    """Return what a processor lacks of an x86-64 level; nothing for another name."""
    if archspec not in X86_FLAGS or flags is None:
        return []
    levels = list(X86_FLAGS)[: list(X86_FLAGS).index(archspec) + 1]
    return sorted(set[str]().union(*(X86_FLAGS[level] for level in levels)) - flags)


def read_host(needs: Needs, proc: Path = Path("/proc")) -> Host:
    """Look at this machine; at its GPUs only for an environment that needs some."""
    return Host(
        platform=current_platform(),
        glibc=glibc_version(),
        cuda=driver_cuda(proc / "driver/nvidia/version") or library_cuda(),
        cpu_flags=cpu_flags(proc / "cpuinfo"),
        gpus=read_gpus() if needs.cuda_code or needs.system.cuda_arch else (),
    )


def read_disk(directory: Path) -> Disk:
    """Look at the file system that holds `directory`, or will."""
    existing = next(parent for parent in (directory, *directory.parents) if parent.is_dir())
    status = os.statvfs(existing)
    is_writable = os.access(existing, os.W_OK | os.X_OK)
    is_read_only = bool(status.f_flag & os.ST_RDONLY)
    return Disk(
        directory=existing,
        free_bytes=status.f_bavail * status.f_frsize,
        # btrfs, for one, reports no inodes at all.
        free_inodes=status.f_favail if status.f_files else None,
        is_read_only=is_read_only,
        is_noexec=bool(status.f_flag & os.ST_NOEXEC),
        is_writable=is_writable,
        # Where it cannot be tried, `readonly` says what is wrong.
        has_links=can_link(existing) if is_writable and not is_read_only else True,
    )


def can_link(directory: Path) -> bool:
    """Whether symbolic links can be made in a directory; only trying tells."""
    for leftover in directory.glob(f"{PROBE}*"):
        with contextlib.suppress(OSError):  # left by a killed command, or being removed by another
            remove_tree(leftover) if is_directory(str(leftover)) else leftover.unlink()
    probe = directory / f"{PROBE}{secrets.token_hex(4)}"
    try:
        probe.symlink_to("nothing")
    except OSError:
        return False
    probe.unlink(missing_ok=True)
    return True


def glibc_version() -> str | None:
    """Return the version of this host's glibc, None where there is another C library."""
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError):
        return None
    return text.split()[-1] if text else None


def driver_cuda(path: Path) -> str | None:
    """Return the newest CUDA that the loaded NVIDIA driver runs, from its version in /proc."""
    try:
        text = path.read_text()
    except OSError:
        return None
    # `… x86_64 Kernel Module  550.54.15  …`, or `… Open Kernel Module for x86_64  550.54.15  …`.
    match = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", text)
    if not match:
        return None
    return cuda_of_driver(match[1])


def cuda_of_driver(driver: str) -> str | None:
    """Return the newest CUDA that a driver runs; None for one that is older than all we know."""
    return next(
        (cuda for cuda, first in DRIVERS.items() if not is_older(driver, first)),
        None,
    )


def library_cuda() -> str | None:
    """Ask the driver's library, which containers have where /proc shows nothing."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
        version = ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    # CUDA 12.4 is 12040 (CUDA driver API, cuDriverGetVersion).
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def cpu_flags(path: Path) -> frozenset[str] | None:
    """Return what the first processor can do; None where nothing says so."""
    try:
        text = path.read_text()
    except OSError:
        return None
    # On aarch64 the line is called `Features`; the levels above are of x86-64 only.
    match = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return frozenset(match[1].split()) if match else None


def version_key(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version as something that sorts."""
    numbers = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def is_older(version: str, other: str) -> bool:
    """Whether a version is older than another, counted to the shorter one's length."""
    ours, theirs = version_key(version), version_key(other)
    length = min(len(ours), len(theirs))
    return ours[:length] < theirs[:length]
