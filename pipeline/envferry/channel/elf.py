"""What ELF files need: their shared libraries, and the glibc they cannot run without."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

from envferry.config import child_environ
from envferry.errors import ToolFailed
from envferry.process import find_program, run

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ELF_MAGIC = b"\x7fELF"
GLIBC_VERSION = re.compile(r"GLIBC_(\d+)\.(\d+)(?:\.\d+)?")

# These come from the host. glibc and its loader belong to its kernel and name service; libgcc_s and
# libstdc++ are what every manylinux policy lets wheels expect there, and a second, older copy in
# front of the host's would break the host's own libraries (a CUDA driver's) in the same process.
HOST_LIBRARIES = re.compile(
    r"(ld-linux.*|linux-vdso|libc|libm|libmvec|libpthread|libdl|librt|libutil|libresolv|libanl"
    r"|libnss_\w+|libthread_db|libBrokenLocale|libnsl(?=\.so\.1)|libgcc_s|libstdc\+\+)\.so(\..*)?"
)


def is_elf(path: Path) -> bool:
    """Whether a file begins as ELF files do."""
    with path.open("rb") as stream:
        return stream.read(4) == ELF_MAGIC


def shared_libraries(files: Sequence[Path]) -> dict[Path, dict[str, Path | None]]:
    """Return for each ELF file all libraries it loads, by name; None where one is not found.

    Those that stay the host's (glibc, libgcc_s, libstdc++) are left out. The loader itself says,
    through ldd, because only it knows all the places it looks in.
    """
    ldd = find_program("ldd")
    if ldd is None:
        message = "ldd is missing: it is part of glibc and lists the libraries that a program loads"
        raise ToolFailed(message, hint="install the system's libc-bin or glibc-common package")
    # ldd fails when one of the files is not dynamic, and answers for the others all the same.
    output = run([ldd, *files], env=child_environ(LC_ALL="C"), check=False).stdout
    needed: dict[Path, dict[str, Path | None]] = {path: {} for path in files}
    # ldd names the file before its libraries only where there are several.
    current = files[0]
    for line in output.splitlines():
        if not line[:1].isspace():
            current = Path(line.rstrip(":"))
        # The vdso and the loader itself have no `=>`, and no file to copy.
        elif match := re.match(r"\s+(\S+) => (?:(/.+) \(0x[0-9a-f]+\)|not found)$", line):
            name, path = match.groups()
            if not HOST_LIBRARIES.fullmatch(name):
                needed[current][name] = Path(path) if path else None
    return needed


def glibc_floor(files: Iterable[Path]) -> tuple[int, int] | None:
    """Return the newest glibc version that any of these ELF files asks for."""
    return max((found for path in files for found in _glibc_versions(path)), default=None)


def _glibc_versions(path: Path) -> list[tuple[int, int]]:
    with path.open("rb") as stream:
        try:
            section = ELFFile(stream).get_section_by_name(".gnu.version_r")
            if not isinstance(section, GNUVerNeedSection):
                return []
            # Symbol versions are what glibc's loader checks at start: GLIBC_2.34 fails on an older
            # libc.
            names = [aux.name for _, needs in section.iter_versions() for aux in needs]
        # A damaged or foreign ELF file asks nothing of glibc that could be read here.
        except ELFError:
            return []
    matches = (GLIBC_VERSION.fullmatch(name) for name in names)
    return [(int(match[1]), int(match[2])) for match in matches if match]
