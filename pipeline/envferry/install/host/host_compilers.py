"""What an installed environment compiles with on this host, and what the host lacks."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

from envferry import process
from envferry.base.run_time_compilers import CompilerFinding, Tool, compiler_findings
from envferry.install.records.installed import read_index

if TYPE_CHECKING:
    from envferry.install.records.env_home import EnvHome

PROGRAMS: dict[Tool, tuple[str, ...]] = {
    "cc": ("cc", "gcc", "clang"),
    "c++": ("c++", "g++", "clang++"),
    "ninja": ("ninja", "ninja-build"),
    "nvcc": ("nvcc",),
}
CUDA_NVCC = "/usr/local/cuda/bin/nvcc"
"""Where frameworks look when it is not on PATH."""


def host_has(tool: Tool) -> bool:
    """Whether this machine has a tool."""
    if tool == "libcuda":
        try:
            # By the dynamic loader, as frameworks find it: LD_LIBRARY_PATH and ld.so.cache count.
            ctypes.CDLL("libcuda.so.1")
        except OSError:
            return False
        return True
    if tool == "nvcc" and os.access(CUDA_NVCC, os.X_OK):
        return True
    return any(process.find_program(name) for name in PROGRAMS[tool])


def find_compilers(home: EnvHome, id_: str) -> list[CompilerFinding]:
    """Return the packages of an installation that compile while they run."""
    index = read_index(home, id_)
    return compiler_findings((package.name for package in index.packages), host_has)
