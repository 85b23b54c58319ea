"""Whether an environment has code for the GPUs of a host."""

from __future__ import annotations

import ctypes
import re
from typing import TYPE_CHECKING

import msgspec

from envferry import process
from envferry.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

QUERY = ("nvidia-smi", "--query-gpu=compute_cap,name", "--format=csv,noheader")
"""Drivers before 510 do not know compute_cap, and say nothing."""
CAPABILITY = re.compile(r"\d+\.\d")
NVML_NAME_BYTES = 96
"""NVML_DEVICE_NAME_V2_BUFFER_SIZE."""
FRAMEWORKS = re.compile(
    r"torch|pytorch|libtorch|tensorflow(-gpu|-base)?|jaxlib|jax-cuda\d+-(plugin|pjrt)|cupy(-.*)?"
    r"|onnxruntime-gpu|paddlepaddle-gpu|mxnet(-.*)?|vllm"
)
"""Without code of these nothing of an environment runs on a GPU; others may be left unused."""


class Gpu(msgspec.Struct, frozen=True):
    """A GPU of this host."""

    capability: str
    """Its compute capability, such as `9.0`."""
    name: str


def read_gpus() -> tuple[Gpu, ...]:
    """Ask the driver which GPUs there are; none where it does not say."""
    return _from_nvidia_smi() or _from_nvml()


def _from_nvidia_smi() -> tuple[Gpu, ...]:
    if process.find_program(QUERY[0]) is None:
        return ()
    try:
        said = process.run(QUERY).stdout
    except PipelineError:
        return ()
    rows = (line.partition(",") for line in said.splitlines())
    found = (Gpu(capability.strip(), name.strip()) for capability, _, name in rows)
    # In the place of a number there may be a message, such as `[N/A]`.
    return tuple(gpu for gpu in found if CAPABILITY.fullmatch(gpu.capability))


def _from_nvml() -> tuple[Gpu, ...]:
    """Ask the driver's management library, which slim containers have without nvidia-smi.

    NVML API reference: nvmlInit_v2, nvmlDeviceGetCudaComputeCapability; 0 is NVML_SUCCESS.
    """
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() != 0:
            return ()
        try:
            return tuple(_nvml_gpus(nvml))
        finally:
            nvml.nvmlShutdown()
    except (OSError, AttributeError):  # no driver, or one that is too old to have a function
        return ()


def _nvml_gpus(nvml: ctypes.CDLL) -> Iterator[Gpu]:
    count = ctypes.c_uint()
    if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return
    for number in range(count.value):
        device, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
        name = ctypes.create_string_buffer(NVML_NAME_BYTES)
        if (
            nvml.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(device)) == 0
            and nvml.nvmlDeviceGetCudaComputeCapability(
                device, ctypes.byref(major), ctypes.byref(minor)
            )
            == 0
            and nvml.nvmlDeviceGetName(device, name, NVML_NAME_BYTES) == 0
        ):
            yield Gpu(f"{major.value}.{minor.value}", name.value.decode(errors="replace"))


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
    # What is unknown is not a fault: a driver may name no GPU, an older manifest no code.
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
