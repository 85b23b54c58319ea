"""What a host must offer: everything that is wrong, at once, each to be overridden by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from envferry.archive.index import PackageEntry
from envferry.errors import HostError
from envferry.install.host.host_check import (
    DRIVERS,
    Disk,
    Host,
    Needs,
    check_host,
    cpu_flags,
    cuda_of_driver,
    cuda_runtime,
    disk_findings,
    driver_cuda,
    host_findings,
    read_disk,
    version_key,
)
from envferry.models import SystemRequirements
from envferry.names import current_platform

NEEDS = Needs(
    platform="linux-64",
    system=SystemRequirements(),
    cuda_runtime=None,
    directory=Path("/srv/envs"),
    free_bytes=1000,
    inodes=10,
    has_links=True,
)
HOST = Host(platform="linux-64", glibc="2.36", cuda="12.4", cpu_flags=frozenset({"avx"}))
DISK = Disk(
    directory=Path("/srv"),
    free_bytes=1000,
    free_inodes=10,
    is_read_only=False,
    is_noexec=False,
    is_writable=True,
    has_links=True,
)


def names(**fields: Any) -> list[str]:
    """Return the findings for an environment with these needs."""
    return [name for name, _ in host_findings(replace(NEEDS, **fields), HOST)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, []),
        ({"platform": "linux-aarch64"}, ["arch"]),
        ({"system": SystemRequirements(glibc="2.36")}, []),
        ({"system": SystemRequirements(glibc="2.4")}, []),
        ({"system": SystemRequirements(glibc="2.37")}, ["glibc"]),
        ({"system": SystemRequirements(archspec="x86_64_v2")}, ["arch"]),
        ({"system": SystemRequirements(archspec="zen3")}, []),
        ({"system": SystemRequirements(cuda="12.4")}, []),
        ({"system": SystemRequirements(cuda="12")}, []),
        ({"system": SystemRequirements(cuda="12.8")}, ["cuda"]),
        ({"cuda_runtime": "12.8.90"}, []),
        ({"cuda_runtime": "11.8.0"}, []),
        ({"cuda_runtime": "13.0.48"}, ["cuda"]),
    ],
)
def test_findings_about_a_machine(fields: dict[str, Any], expected: list[str]) -> None:
    assert names(**fields) == expected


def test_without_a_driver_no_cuda() -> None:
    needs = replace(NEEDS, cuda_runtime="12.8.90")
    ((name, text),) = host_findings(needs, replace(HOST, cuda=None))
    assert name == "cuda"
    assert "driver 525.60 or newer" in text
    assert "has none" in text


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, []),
        ({"free_bytes": 999}, ["space"]),
        ({"free_inodes": 9}, ["inodes"]),
        ({"free_inodes": None}, []),
        ({"is_read_only": True, "is_noexec": True, "has_links": False}, None),
        ({"is_writable": False}, ["readonly"]),
    ],
)
def test_findings_about_a_disk(fields: dict[str, Any], expected: list[str] | None) -> None:
    found = [name for name, _ in disk_findings(NEEDS, replace(DISK, **fields))]
    assert found == (["readonly", "noexec", "symlinks"] if expected is None else expected)


def test_all_at_once_and_each_by_name(tmp_path: Path) -> None:
    system = SystemRequirements(glibc="9.9", cuda="99.0")
    needs = replace(NEEDS, platform="linux-mips", system=system, directory=tmp_path)
    with pytest.raises(HostError) as caught:
        check_host(needs, ())
    for name in ("arch", "glibc", "cuda"):
        assert f"\n  {name}: " in caught.value.message
        assert f"--force {name}" in caught.value.hint
    with pytest.raises(HostError) as caught:
        check_host(needs, ("arch", "cuda"))
    assert caught.value.hint.endswith("with --force glibc")
    check_host(needs, ("arch", "cuda", "glibc"))
    with pytest.raises(HostError) as caught:
        check_host(replace(NEEDS, directory=tmp_path, free_bytes=1 << 60), ())
    assert caught.value.hint.startswith("name another place with --envs-dir, or")


def test_the_cuda_runtime_is_found_among_packages() -> None:
    def package(name: str, version: str) -> PackageEntry:
        return PackageEntry(
            name=name, version=version, kind="pypi", first_file=0, files=0, first_frame=0, frames=0
        )

    packages = [
        package("nvidia-cuda-runtime-cu12", "12.8.90"),
        package("nvidia-cudnn-cu12", "9.10.2"),
        package("torch", "2.8.0"),
    ]
    assert cuda_runtime(packages) == "12.8.90"
    assert cuda_runtime(packages[1:]) is None
    assert cuda_runtime([package("cudatoolkit", "11.3.1")]) == "11.3.1"


PROC_VERSION = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Wed Jan 15 01:51:20 UTC 2025
GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04)
"""
OPEN_VERSION = """\
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.183.01  Release Build  (root@x)
"""


@pytest.mark.parametrize(("text", "cuda"), [(PROC_VERSION, "12.8"), (OPEN_VERSION, "12.2")])
def test_the_driver_says_its_version_in_proc(tmp_path: Path, text: str, cuda: str) -> None:
    (tmp_path / "version").write_text(text)
    assert driver_cuda(tmp_path / "version") == cuda
    assert driver_cuda(tmp_path / "nothing") is None


def test_the_table_of_drivers_goes_down() -> None:
    for column in (list(DRIVERS), list(DRIVERS.values())):
        keys = [version_key(version) for version in column]
        assert keys == sorted(keys, reverse=True)
    assert cuda_of_driver("999.0") == next(iter(DRIVERS))
    assert cuda_of_driver("300.0") is None


def test_this_machine_can_be_read(tmp_path: Path) -> None:
    disk = read_disk(tmp_path / "not/yet/there")
    assert disk.directory == tmp_path
    assert disk.has_links
    assert disk.free_bytes > 0
    assert list(tmp_path.iterdir()) == [], "a probe was left"
    if current_platform() == "linux-64":
        assert "sse2" in (cpu_flags(Path("/proc/cpuinfo")) or ())
