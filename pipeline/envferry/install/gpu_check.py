"""Whether an environment has code for the GPUs of a host."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envferry import process
from envferry.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

QUERY = ("nvidia-smi", "--query-gpu=compute_cap,name", "--format=csv,noheader")
"""Drivers before 510 do not know compute_cap, and say nothing."""
CAPABILITY = re.compile(r"\d+\.\d")
FRAMEWORKS = re.compile(
    r"torch|pytorch|libtorch|tensorflow(-gpu|-base)?|jaxlib|jax-cuda\d+-(plugin|pjrt)|cupy(-.*)?"
    r"|onnxruntime-gpu|paddlepaddle-gpu|mxnet(-.*)?|vllm"
)
"""Without code of these nothing of an environment runs on a GPU; others may be left unused."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU of this host."""

    capability: str
    """Its compute capability, such as `9.0`."""
    name: str


def read_gpus() -> tuple[Gpu, ...]:
    """Ask the driver which GPUs there are; none where it does not say."""
    if process.find_program(QUERY[0]) is None:
        return ()
    try:
        said = process.run(QUERY).stdout
    except PipelineError:
        return ()
    rows = (line.partition(",") for line in said.splitlines())
    found = (Gpu(capability.strip(), name.strip()) for capability, _, name in rows)
    return tuple(gpu for gpu in found if CAPABILITY.fullmatch(gpu.capability))


def runs_on(code: Collection[str], capability: str) -> bool:
    """Whether a GPU runs any of this code.

    Compiled code runs on its own major version, from its minor version on; the driver compiles PTX
    for every newer GPU (CUDA C++ Programming Guide, compute capabilities and just-in-time
    compilation).
    """
    wanted = _number(capability)
    for one in code:
        kind, _, text = one.partition("_")
        if not text.isdecimal():
            continue
        number = int(text)
        if number <= wanted and (kind == "compute" or number // 10 == wanted // 10):
            return True
    return False


def gpu_faults(
    cuda_code: Mapping[str, Collection[str]], gpus: Collection[Gpu]
) -> Iterator[tuple[str, bool]]:
    """Yield what runs on none of the GPUs, and whether the environment is of no use without it."""
    if not gpus or not cuda_code:
        return
    lacking = {
        name: code
        for name, code in cuda_code.items()
        if not any(runs_on(code, gpu.capability) for gpu in gpus)
    }
    there = ", ".join(sorted({f"{gpu.name} ({gpu.capability})" for gpu in gpus}))
    for name, code in lacking.items():
        text = f"{name} has code for {', '.join(code)}, and none for this host's {there}"
        yield text, bool(FRAMEWORKS.fullmatch(name.lower())) or len(lacking) == len(cuda_code)


def _number(capability: str) -> int:
    major, _, minor = capability.partition(".")
    return int(major) * 10 + int(minor)
