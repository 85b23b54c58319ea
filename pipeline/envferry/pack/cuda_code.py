"""For which GPUs the libraries of an environment hold code: read from their fat binaries.

An ELF file that nvcc made has sections of containers, each with compiled code (cubins) and PTX for
some architectures. NVIDIA documents what they are for (CUDA Compiler Driver, "Fatbinaries"), not
their bytes: these are as nvcc's own intermediate files, cuobjdump and several public readers
have them. Only headers are read, never code.
"""

from __future__ import annotations

import os
import re
import struct
from typing import TYPE_CHECKING, BinaryIO

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from envferry.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from envferry.archive.members import Member

SECTIONS = (".nv_fatbin", "__nv_relfatbin")
"""What is linked, and what is linked once more on the device."""
MAGIC = 0xBA55ED50
CONTAINER = struct.Struct("<IHHQ")
"""Magic, version, bytes of this header, bytes of the entries after it."""
ENTRY = struct.Struct("<HHIQIIHHI")
"""Kind, version, bytes of this header, bytes of content, …, code version (2), architecture."""
ALIGNMENT = 8
KINDS = {1: "compute", 2: "sm", 0x10: "sm"}
"""PTX, which newer GPUs compile for themselves, and code for one architecture."""
ARCHITECTURES = range(20, 1000)
SMALLEST = 1 << 12
SEARCHED_BYTES = 1 << 20
NAMES_BYTES = 1 << 20
"""Of the names of sections that are looked at: a linked library has some 40 sections."""
TORCH_BINDINGS = "libtorch_python.so"
ARCHITECTURE = rb"(?:sm|compute)_\d+[af]?"
TORCH_LIST = re.compile(rb"((?:%b )+%b|(?<=\0)%b)\0" % ((ARCHITECTURE,) * 3))
"""One C string. What stands before it may be a constant without a NUL at its end."""


def cuda_code(members: Iterable[Member]) -> dict[str, tuple[str, ...]]:
    """Return for which GPUs each package has code: `sm_90` is compiled, `compute_90` is PTX.

    torch's own list counts before its libraries: some of these hold code of others for GPUs that
    torch does not run on.
    """
    found: dict[str, set[str]] = {}
    said: dict[str, set[str]] = {}
    for member in members:
        entry, name = member.entry, member.entry.path.rpartition("/")[2]
        is_library = entry.type == "file" and ".so" in name and entry.size >= SMALLEST
        if is_library and isinstance(member.source, str):
            owner = member.owner.name or name
            if name == TORCH_BINDINGS and (own := torch_list(member.source)):
                said[owner] = own
            elif code := set(architectures(member.source)):
                found.setdefault(owner, set()).update(code)
    ordered = sorted({**found, **said}.items())
    return {name: tuple(sorted(code, key=sort_key)) for name, code in ordered}


def torch_list(path: str) -> set[str]:
    """Return what `torch.cuda.get_arch_list()` says, from the string that it reads; or nothing.

    It is CUDA_ARCH_FLAGS in torch/csrc/cuda/Module.cpp, one C string among the constants.
    """
    with open_file(path) as stream:
        for offset, length in sections(stream, [".rodata"]):
            stream.seek(offset)
            if match := TORCH_LIST.search(stream.read(length)):
                # What is for one architecture only, sm_90a, is for a GPU that runs sm_90.
                return {code.rstrip("af") for code in match[1].decode().split()}
    return set()


def sort_key(code: str) -> tuple[str, int]:
    """Sort PTX before code, and both by number."""
    kind, _, number = code.partition("_")
    return kind, int(number)


def architectures(path: str) -> Iterator[str]:
    """Yield what an ELF file holds code for, each as often as it comes; nothing of another file."""
    with open_file(path) as stream:
        places = sections(stream, SECTIONS)
        if not places:
            return
        descriptor = stream.fileno()
        size = os.fstat(descriptor).st_size
        for offset, length in places:
            yield from _containers(descriptor, offset, min(offset + length, size))


def open_file(path: str) -> BinaryIO:
    """Open a file under a name as the members have it; raise HostError where it cannot be."""
    try:
        return open(path, "rb")  # noqa: PTH123
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise HostError(
            message, hint="stop the program that writes there, then pack again"
        ) from error


def sections(stream: BinaryIO, names: Iterable[str]) -> list[tuple[int, int]]:
    """Return offset and size of the sections that an ELF file has; none of another file."""
    try:
        elf = ELFFile(stream)
        found = [elf.get_section_by_name(name) for name in names if may_have(elf, name)]
        return [(one["sh_offset"], one["sh_size"]) for one in found if one is not None]
    except ELFError:
        return []


def may_have(elf: ELFFile, name: str) -> bool:
    """Whether the names of an ELF file's sections have this one: one read.

    To look one up, the headers of all sections are parsed, which few libraries are worth.
    """
    if not elf.num_sections():
        return False
    table = elf.get_section(elf.get_shstrndx())
    elf.stream.seek(table["sh_offset"])
    return name.encode() in elf.stream.read(min(table["sh_size"], NAMES_BYTES))


# Read piece by piece: of a mapped file the pages around each header would count as this process's
# memory, a third of a library of 500 MB.


def _containers(descriptor: int, position: int, end: int) -> Iterator[str]:
    while position + CONTAINER.size <= end:
        found, _, header, length = _read(CONTAINER, descriptor, position)
        if found != MAGIC or header < CONTAINER.size:
            # Something unknown between containers must not hide those behind it.
            position = _find_magic(descriptor, position + 1, end)
            continue
        last = min(position + header + length, end)
        yield from _entries(descriptor, position + header, last)
        # Containers begin at multiples of eight bytes; zeros may fill the gap.
        position = last + -last % ALIGNMENT


def _entries(descriptor: int, position: int, end: int) -> Iterator[str]:
    while position + ENTRY.size <= end:
        kind, _, header, length, _, _, _, _, number = _read(ENTRY, descriptor, position)
        # Zeros, or an unknown form: a header without length would be read for ever.
        if header < ENTRY.size:
            return
        if kind in KINDS and number in ARCHITECTURES:
            yield f"{KINDS[kind]}_{number}"
        position += header + length


def _read(form: struct.Struct, descriptor: int, position: int) -> tuple[int, ...]:
    """Return the fields at a position; zeros where the file has become shorter."""
    return form.unpack(os.pread(descriptor, form.size, position).ljust(form.size, b"\0"))


def _find_magic(descriptor: int, position: int, end: int) -> int:
    """Return where the next container may begin, `end` if none does."""
    magic = struct.pack("<I", MAGIC)
    while position < end and (piece := os.pread(descriptor, SEARCHED_BYTES, position)):
        if (found := piece.find(magic)) >= 0:
            return position + found
        # Pieces overlap by three bytes, for a magic number that lies across their border.
        position += max(len(piece) - len(magic) + 1, 1)
    return end
