"""Whether an environment has code for the GPUs of a host, which nvidia-smi names."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from envferry.errors import HostError
from envferry.install.host.gpu_check import Gpu, gpu_faults, read_gpus, runs_on
from envferry.install.host.host_check import check_host
from envferry.models import SystemRequirements
from envferry.names import current_platform
from tests.install.host.test_host_check import NEEDS

if TYPE_CHECKING:
    from pathlib import Path

H100 = Gpu("9.0", "NVIDIA H100 80GB HBM3")
V100 = Gpu("7.0", "Tesla V100")
TORCH = ("sm_75", "sm_80", "sm_86", "sm_90")


@pytest.mark.parametrize(
    ("code", "capability", "expected"),
    [
        ("sm_90", "9.0", True),
        ("sm_80", "8.6", True),
        ("sm_86", "8.0", False),
        ("sm_80", "9.0", False),
        ("sm_90", "8.9", False),
        ("compute_80", "9.0", True),
        ("compute_80", "12.0", True),
        ("compute_90", "8.0", False),
        ("sm_100", "10.3", True),
        ("sm_100", "12.0", False),
        ("sm_120", "12.1", True),
        ("strange", "12.1", False),
    ],
)
def test_what_runs_where(code: str, capability: str, *, expected: bool) -> None:
    assert runs_on([code], capability) is expected


def test_what_runs_on_none_of_the_gpus() -> None:
    ours = {"torch": TORCH, "nvidia-nccl-cu12": ("sm_70", "sm_90"), "flash-attn": ("sm_80",)}
    assert [*gpu_faults(ours, ())] == []
    assert [*gpu_faults({}, (V100,))] == []
    assert [*gpu_faults(ours, (Gpu("8.0", "A100"), V100))] == []
    ((text, is_needed),) = gpu_faults(ours, (H100,))
    assert text == (
        "flash-attn has code for sm_80, and none for this host's NVIDIA H100 80GB HBM3 (9.0)"
    )
    assert not is_needed
    found = dict(gpu_faults(ours, (V100, V100)))
    assert {text.split()[0]: needed for text, needed in found.items()} == {
        "torch": True,
        "flash-attn": False,
    }
    # Nothing else is there that could be used.
    assert [needed for _, needed in gpu_faults({"flash-attn": ("sm_80",)}, (V100,))] == [True]


def host_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Make this a host with a driver, whose nvidia-smi is a script."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


SMI = """\
case "$*" in
  "--query-gpu=compute_cap,name --format=csv,noheader") ;;
  *) exit 2 ;;
esac
echo "7.0, Tesla V100-SXM2, 32GB"
echo "9.0, NVIDIA H100"
echo "[N/A], broken"
"""


def test_the_driver_names_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host_with(tmp_path, monkeypatch, SMI)
    assert read_gpus() == (Gpu("7.0", "Tesla V100-SXM2, 32GB"), Gpu("9.0", "NVIDIA H100"))


NVML = """
#include <string.h>
static int started;
int nvmlInit_v2(void) { started = 1; return 0; }
int nvmlShutdown(void) { started = 0; return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return started ? 0 : 1; }
int nvmlDeviceGetHandleByIndex_v2(unsigned number, void **device) {
  *device = (char *)0 + 16 * (number + 1);
  return number == 1 ? 15 : 0;  /* NVML_ERROR_GPU_IS_LOST */
}
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
  *major = device == (char *)0 + 16 ? 8 : 10; *minor = device == (char *)0 + 16 ? 6 : 3;
  return 0;
}
int nvmlDeviceGetName(void *device, char *name, unsigned size) {
  strncpy(name, "NVIDIA of address 16 and 48", size);
  return 0;
}
"""


def test_the_drivers_library_names_the_gpus_where_no_program_does(tmp_path: Path) -> None:
    """A library with NVML's functions stands in for the driver's; it is loaded as that one is."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path / "libnvidia-ml.so.1"
    source = tmp_path / "nvml.c"
    source.write_text(NVML)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    code = "from envferry.install.host.gpu_check import read_gpus; print(*map(str, read_gpus()))"
    environ = {"LD_LIBRARY_PATH": str(tmp_path), "PATH": "/nonexistent"}
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    name = "NVIDIA of address 16 and 48"
    assert said.stdout.strip() == f"{Gpu('8.6', name)} {Gpu('10.3', name)}"


def test_a_driver_that_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older than 510, or none, or broken: nothing is known, and nothing is refused for it."""
    monkeypatch.setenv("PATH", "/nonexistent")
    assert read_gpus() == ()
    host_with(tmp_path, monkeypatch, 'echo "Field \\"compute_cap\\" is not valid"; exit 2')
    assert read_gpus() == ()


def test_install_refuses_what_has_no_code_for_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    host_with(tmp_path, monkeypatch, 'echo "7.0, Tesla V100"')
    code = {"torch": TORCH, "flash-attn": ("sm_80",), "nccl": ("sm_70",)}
    here = replace(NEEDS, directory=tmp_path, free_bytes=0, inodes=0, platform=current_platform())
    with pytest.raises(HostError) as caught:
        check_host(replace(here, cuda_code=code), ())
    assert "arch: torch has code for sm_75, sm_80, sm_86, sm_90, and none for" in str(caught.value)
    assert "--force arch" in (caught.value.hint or "")
    assert "flash-attn has code for sm_80, and none" in caplog.text
    check_host(replace(here, cuda_code=code), ("arch",))
    check_host(replace(here, cuda_code={"nccl": ("sm_70",)}), ())
    wanted = SystemRequirements(cuda_arch="8.0")
    with pytest.raises(HostError, match=r"needs a GPU of compute capability 8\.0 or newer"):
        check_host(replace(here, system=wanted), ())
    check_host(replace(here, system=SystemRequirements(cuda_arch="7.0")), ())
