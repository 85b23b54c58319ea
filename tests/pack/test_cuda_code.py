"""Which GPUs libraries hold code for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from envferry.archive.index import FileEntry
from envferry.archive.members import Member, Owner
from envferry.pack.cuda_code import architectures, cuda_code, sort_key
from tests.support.fat_binaries import container, elf_file, real_containers

if TYPE_CHECKING:
    from pathlib import Path

TORCH = Owner(rank=1, name="torch", kind="pypi", version="2.8.0")


def library(path: Path, *sections: tuple[str, bytes]) -> Path:
    path.write_bytes(elf_file([(".text", b"\x90" * 5000), *sections]))
    return path


def member(path: Path, name: str, owner: Owner = TORCH) -> Member:
    return Member(
        entry=FileEntry(path=name, size=path.stat().st_size), owner=owner, source=str(path)
    )


def test_the_architectures_of_a_library(tmp_path: Path) -> None:
    """Many containers, with padding between, and headers that are longer for newer GPUs."""
    content = container("sm_80", "sm_90") + bytes(24) + container("sm_120", "compute_120", "sm_90")
    path = library(tmp_path / "lib.so", (".nv_fatbin", content))
    assert [*architectures(str(path))] == ["sm_80", "sm_90", "sm_120", "compute_120", "sm_90"]


def test_what_is_linked_on_the_device(tmp_path: Path) -> None:
    path = library(
        tmp_path / "lib.so",
        ("__nv_relfatbin", container("sm_70")),
        (".nv_fatbin", container("compute_70")),
    )
    assert {*architectures(str(path))} == {"sm_70", "compute_70"}


def test_each_package_has_its_own(tmp_path: Path) -> None:
    both = library(tmp_path / "a.so", (".nv_fatbin", container("sm_90", "sm_80", "compute_90")))
    other = library(tmp_path / "b.so", (".nv_fatbin", container("sm_100", "sm_90")))
    none = library(tmp_path / "c.so")
    nobody = Owner()
    found = cuda_code(
        [
            member(both, "lib/libtorch_cuda.so"),
            member(other, "lib/libtorch.so.2"),
            member(none, "lib/libplain.so", Owner(rank=1, name="plain", kind="pypi")),
            member(other, "opt/libx.so", nobody),
            Member(entry=FileEntry(path="lib/a.so", type="symlink", link="b"), owner=TORCH),
            Member(entry=FileEntry(path="lib/g.so", size=9), owner=TORCH, source=b"generated"),
        ]
    )
    assert found == {
        "libx.so": ("sm_90", "sm_100"),
        "torch": ("compute_90", "sm_80", "sm_90", "sm_100"),
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torch-2.8.0/libtorch_cuda.so", "sm_70 sm_75 sm_80 sm_86 sm_90 sm_100 sm_120"),
        (
            "torch-2.8.0/libtorch_cuda_linalg.so",
            "sm_50 sm_60 sm_70 sm_80 sm_86 sm_90 sm_100 sm_120",
        ),
        ("torch-2.9.1/libtorch_cuda.so", "sm_70 sm_75 sm_80 sm_86 sm_90 sm_100 sm_120"),
        (
            "torch-2.9.1/libtorch_nvshmem.so",
            "compute_90 sm_70 sm_75 sm_80 sm_86 sm_89 sm_90 sm_100 sm_120",
        ),
        (
            "bitsandbytes-0.49.2/libbitsandbytes_cuda126.so",
            "compute_90 sm_60 sm_70 sm_75 sm_80 sm_86 sm_89 sm_90",
        ),
        (
            "bitsandbytes-0.49.2/libbitsandbytes_cuda130.so",
            "compute_120 sm_75 sm_80 sm_86 sm_89 sm_90 sm_100 sm_120",
        ),
        ("xformers-0.0.32.post2/_C.so", "compute_80 sm_80 sm_90"),
    ],
)
def test_libraries_of_public_wheels(tmp_path: Path, name: str, expected: str) -> None:
    path = library(tmp_path / "lib.so", (".nv_fatbin", real_containers(name)))
    found = sorted(set(architectures(str(path))), key=sort_key)
    assert " ".join(found) == expected


def test_what_torch_was_built_for_is_what_it_says_of_itself(tmp_path: Path) -> None:
    """Its linear algebra, of MAGMA, has code for GPUs that nothing else of torch runs on."""
    linalg = real_containers("torch-2.8.0/libtorch_cuda_linalg.so")
    main = real_containers("torch-2.8.0/libtorch_cuda.so")
    # As torch 2.8 has it: a constant that is no C string stands before it.
    said = b"\0std::string ipc_hsm_70 sm_75 sm_80 sm_86 sm_90 sm_100 sm_120\0sm_%d\0"
    members = [
        member(library(tmp_path / "a.so", (".nv_fatbin", linalg)), "lib/libtorch_cuda_linalg.so"),
        member(library(tmp_path / "b.so", (".nv_fatbin", main)), "lib/libtorch_cuda.so"),
    ]
    assert "sm_60" in cuda_code(members)["torch"]
    own = library(tmp_path / "c.so", (".rodata", said))
    members.append(member(own, "lib/libtorch_python.so"))
    expected = "sm_70 sm_75 sm_80 sm_86 sm_90 sm_100 sm_120"
    assert cuda_code(members) == {"torch": tuple(expected.split())}
    for text, code in ((b"sm_90a compute_120", ("compute_120", "sm_90")), (b"sm_90", ("sm_90",))):
        one = library(tmp_path / "e.so", (".rodata", b"\0" + text + b"\0"))
        members[-1] = member(one, "lib/libtorch_python.so")
        assert cuda_code(members) == {"torch": code}
    # Without such a list, as in a build for processors only, nothing changes.
    plain = library(tmp_path / "d.so", (".rodata", b"\0sm_%d compute_90 and text\0"))
    members[-1] = member(plain, "lib/libtorch_python.so")
    assert "sm_60" in cuda_code(members)["torch"]


@pytest.mark.parametrize("cut", [0, 3, 15, 16, 20, 47, 100, 2000])
def test_a_section_that_is_cut_off(tmp_path: Path, cut: int) -> None:
    content = container("sm_80", "sm_90")[:cut]
    path = library(tmp_path / "lib.so", (".nv_fatbin", content))
    assert {*architectures(str(path))} <= {"sm_80", "sm_90"}


def test_sizes_that_lead_nowhere(tmp_path: Path) -> None:
    """Neither for ever, nor out of the section."""
    content = bytearray(container("sm_80", "sm_90"))
    content[16 + 4 : 16 + 8] = bytes(4)  # a header of no bytes
    path = library(tmp_path / "lib.so", (".nv_fatbin", bytes(content)))
    assert [*architectures(str(path))] == []
    content = bytearray(container("sm_80") + container("sm_90"))
    content[16 + 8 : 16 + 16] = b"\xff" * 8
    path = library(tmp_path / "lib.so", (".nv_fatbin", bytes(content)))
    assert [*architectures(str(path))] == ["sm_80", "sm_90"]


def test_files_that_are_none(tmp_path: Path) -> None:
    for content in (b"", b"\x7fELF", b"text" * 5000, b"\x7fELF\x02\x01\x01" + bytes(9000)):
        path = tmp_path / "lib.so"
        path.write_bytes(content)
        assert [*architectures(str(path))] == []
    assert [*architectures(sys.executable)] == []
