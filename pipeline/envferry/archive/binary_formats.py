"""Binary formats, as far as one must know them to change a path in a file or to leave it alone."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC = (
    # From protocol 2 on, a pickle begins with the opcode PROTO and its number; 0 and 1 have no
    # mark.
    *((0, b"\x80" + bytes([protocol]), "a pickle") for protocol in (2, 3, 4, 5)),
    (0, b"PK\x03\x04", "a zip file"),
    # An empty zip file consists of its end record alone.
    (0, b"PK\x05\x06", "a zip file"),
    (0, b"SQLite format 3\0", "an SQLite database"),
    (0, b"\x93NUMPY", "a numpy array"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"CDF", "a netCDF file"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"ARROW1", "an Arrow file"),
    (0, b"%PDF-", "a PDF file"),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"RIFF", "a RIFF file"),
    *((0, magic, "a font") for magic in (b"\0\1\0\0", b"OTTO", b"ttcf", b"true", b"wOFF", b"wOF2")),
    (0, b"\xca\xfe\xba\xbe", "a Java class"),
    (0, b"\0asm", "a WebAssembly module"),
    # gettext's `.mo` in either byte order: its tables note offsets and lengths.
    *((0, magic, "a message catalogue") for magic in (b"\xde\x12\x04\x95", b"\x95\x04\x12\xde")),
    *(
        (0, magic, "a compressed file")
        for magic in (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
    ),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    # lz4, lzip and compress(1).
    *((0, magic, "a compressed file") for magic in (b"\x04\x22\x4d\x18", b"LZIP", b"\x1f\x9d")),
    *((0, magic, "an ar archive") for magic in (b"!<arch>\n", b"!<thin>\n")),
    *((0, magic, "a cpio archive") for magic in (b"070701", b"070702", b"070707", b"\xc7\x71")),
    (0, b"SIMPLE  =", "a FITS file"),
    *((0, magic, "a GVariant database") for magic in (b"GVariant", b"raVGtnai")),
    # The magic field of a ustar header, of POSIX's form and of GNU's.
    (257, b"ustar", "a tar archive"),
    (0, b"MZ", "a program for Windows"),
)
"""What starts, at this offset, a format in which places or lengths are noted down."""
TEXT_FORMATS = ("an ar archive", "a FITS file")
"""Formats whose files may be all text; elsewhere a text may begin with the same letters: `CDF`."""
CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
"""What no text holds."""
END_OF_ZIP = b"PK\x05\x06"
END_OF_ZIP_BYTES = 22 + (1 << 16)
"""The end record of a zip file is that near the end: anything may stand before a zip file."""

ELF = b"\x7fELF"
SHT_PROGBITS, SHT_STRTAB = 1, 3
SHF_ALLOC, SHF_EXECINSTR = 0x2, 0x4


class Searchable(Protocol):
    """bytes, bytearray or mmap."""

    def find(self, needle: bytes, start: int = ..., end: int = ..., /) -> int:
        """Return the first offset of the needle, -1 without one."""

    def rfind(self, needle: bytes, start: int = ..., end: int = ..., /) -> int:
        """Return the last offset of the needle, -1 without one."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: slice, /) -> bytes | bytearray: ...


class ElfLayout(NamedTuple):
    """Where an ELF header and its section headers have their fields (elf(5)), for a class."""

    table: int
    """Offset of e_shoff."""
    counts: int
    """Offset of e_shentsize and e_shnum, 16 bits each."""
    word: str
    section: str
    """sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size."""


LAYOUTS = {1: ElfLayout(0x20, 0x2E, "I", "IIIIII"), 2: ElfLayout(0x28, 0x3A, "Q", "IIQQQQ")}


def known_format(content: Searchable) -> str:
    """Return what a file is, if its first or last bytes say so: a format to leave alone."""
    for offset, magic, name in MAGIC:
        # Magic numbers that are letters and digits alone prove nothing where the whole file is
        # text.
        if content[offset : offset + len(magic)] == magic and (
            name in TEXT_FORMATS or not magic.isalnum() or not is_text(content)
        ):
            return name
    # The magic alone may stand in a text; a real end record has zero bytes, as the numbers of its
    # disks.
    has_end = content.rfind(END_OF_ZIP, max(len(content) - END_OF_ZIP_BYTES, 0)) >= 0
    return "a zip file" if has_end and content.find(b"\0") >= 0 else ""


def is_text(content: Searchable) -> bool:
    """Whether a file holds nothing but what texts hold."""
    return not CONTROL.search(content)  # type: ignore[call-overload]


def elf_string_ranges(content: Searchable) -> list[range] | None:
    """Return where an ELF file has strings that its program sees; None for what is not ELF.

    That is data which is loaded with it, and tables of strings: not code, not notes (whose length
    is noted), not debug information.
    """
    if content[: len(ELF)] != ELF:
        return None
    try:
        return [*sections(content)]
    # Damaged, or without section headers: then it is a binary file like any other.
    except (struct.error, KeyError):
        return None


def sections(content: Searchable) -> Iterator[range]:
    """Yield the ranges of the loaded data; raise struct.error for a header that is not valid."""
    # EI_CLASS, then EI_DATA, which is 1 for little-endian (elf(5)).
    layout = LAYOUTS[content[4:5][0]]
    order = "<" if content[5:6] == b"\1" else ">"
    (table,) = struct.unpack_from(order + layout.word, bytes(content[:64]), layout.table)
    size, count = struct.unpack_from(order + "HH", bytes(content[:64]), layout.counts)
    # e_shnum is 0 for stripped headers, and also for more than 65,279 sections (elf(5)): such
    # files are treated as other binary files are.
    if not table or not count:
        message = "no section headers"
        raise struct.error(message)
    for number in range(count):
        header = bytes(content[table + number * size : table + (number + 1) * size])
        _, kind, flags, _, start, length = struct.unpack_from(order + layout.section, header)
        # SHF_ALLOC: what is loaded. That includes `.dynstr`, which holds RUNPATH, and leaves out
        # `.shstrtab`.
        is_data = kind in (SHT_PROGBITS, SHT_STRTAB) and flags & SHF_ALLOC
        if is_data and not flags & SHF_EXECINSTR:
            yield range(start, start + length)
