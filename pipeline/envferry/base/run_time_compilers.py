"""Packages that compile while they run, with tools of the machine that they run on."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Tool = Literal["cc", "c++", "ninja", "nvcc", "libcuda"]

TOOLS: dict[Tool, str] = {
    "cc": "a C compiler (cc, gcc or clang)",
    "c++": "a C++ compiler (c++, g++ or clang++)",
    "ninja": "ninja",
    "nvcc": "nvcc of the CUDA toolkit",
    "libcuda": "the library of the NVIDIA driver (libcuda.so.1)",
}


class CompilerNeed(msgspec.Struct, frozen=True, kw_only=True):
    """What a package needs, and when."""

    tools: tuple[Tool, ...]
    when: str


TRITON = CompilerNeed(tools=("cc", "libcuda"), when="when a Triton kernel first runs")
EXTENSIONS = CompilerNeed(
    tools=("c++", "ninja", "nvcc"), when="when one of its operators first runs"
)
INDUCTOR = CompilerNeed(tools=("c++",), when="when torch.compile is used")
C_CODE = CompilerNeed(tools=("c++",), when="when a function is first compiled")
NVCC = CompilerNeed(tools=("c++", "nvcc"), when="when a kernel is compiled from source")

NEEDS: dict[str, CompilerNeed] = {
    **dict.fromkeys(("triton", "pytorch-triton", "pytorch-triton-rocm"), TRITON),
    **dict.fromkeys(("flash-attn", "liger-kernel", "unsloth", "vllm", "xformers"), TRITON),
    **dict.fromkeys(("deepspeed", "exllamav2", "sglang", "flashinfer"), EXTENSIONS),
    **dict.fromkeys(("flashinfer-python",), EXTENSIONS),
    **dict.fromkeys(("torch", "pytorch", "pytorch-gpu"), INDUCTOR),
    **dict.fromkeys(("pytensor", "aesara", "theano", "theano-pymc"), C_CODE),
    **dict.fromkeys(("pycuda", "tilelang"), NVCC),
}
"""By name, as pip and conda write it; from what these packages' documentation and sources say."""

BROUGHT: dict[Tool, re.Pattern[str]] = {
    "cc": re.compile(r"(gcc|gxx|clang|clangxx)(-linux-\w+)?|c-compiler|cxx-compiler|compilers"),
    # `cxx-compiler` and `compilers` are conda-forge's metapackages, which pull in a compiler.
    "c++": re.compile(r"(gxx|clangxx)(-linux-\w+)?|cxx-compiler|compilers"),
    "ninja": re.compile(r"ninja(-base)?"),
    "nvcc": re.compile(r"cuda-(nvcc|compiler|toolkit)(-linux-\w+)?|cudatoolkit-dev|cuda"),
}
"""Packages that have a tool: an environment with one needs none of its host."""


class CompilerFinding(msgspec.Struct, frozen=True, kw_only=True):
    """A package of an environment that compiles while it runs."""

    package: str
    when: str
    needs: tuple[Tool, ...]
    """What the environment has not got itself."""
    lacks: tuple[Tool, ...]
    """What of these the machine has not got."""

    def __str__(self) -> str:
        """Return a sentence about what is lacking."""
        tools = ", ".join(TOOLS[tool] for tool in self.lacks)
        return f"{self.package} compiles {self.when}: it needs {tools}"


def compiler_findings(
    packages: Iterable[str], has_tool: Callable[[Tool], bool]
) -> list[CompilerFinding]:
    """Return which packages compile, in order; `has_tool` says what the machine has."""
    from packaging.utils import canonicalize_name

    # The table is written in the canonical form of PEP 503, for conda's names as well.
    names = sorted({str(canonicalize_name(name)) for name in packages})
    brought = {
        tool for tool, form in BROUGHT.items() if any(form.fullmatch(name) for name in names)
    }
    found = []
    for name in names:
        if name not in NEEDS:
            continue
        needs = tuple(tool for tool in NEEDS[name].tools if tool not in brought)
        lacks = tuple(tool for tool in needs if not has_tool(tool))
        found.append(CompilerFinding(package=name, when=NEEDS[name].when, needs=needs, lacks=lacks))
    return found
