"""ELF files with code for GPUs, as nvcc lays it out; the code itself is any bytes."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

HEADERS = Path(__file__).with_name("fat_binary_headers.json")
"""Headers of the first containers in libraries of public wheels, by `NAME-VERSION/LIBRARY`: each
entry is its header and the number of bytes after it. The code itself was left out."""
KINDS = {"compute": 1, "sm": 2}


def entry(code: str, content: bytes = b"\xab" * 999) -> bytes:
    """Return an entry: a header, of 112 bytes for Blackwell's code, and padded content."""
    kind, _, number = code.partition("_")
    header = 112 if kind == "sm" and int(number) >= 100 else 64
    padded = content + bytes(-len(content) % 8)
    fields = (KINDS[kind], 0x0101, header, len(padded), len(content), 0, 7, 1, int(number))
    return struct.pack("<HHIQIIHHI", *fields).ljust(header, b"\0") + padded


def container(*codes: str) -> bytes:
    """Return a container with an entry for each, such as `sm_90` or `compute_90`."""
    entries = b"".join(map(entry, codes))
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries


def real_containers(library: str) -> bytes:
    """Return the containers of a real library, with zeros where the code was."""
    content = b""
    for one in json.loads(HEADERS.read_text())[library]:
        entries = b"".join(bytes.fromhex(head) + bytes(size) for head, size in one["entries"])
        content += bytes.fromhex(one["header"]) + entries
    return content


def elf_file(sections: Sequence[tuple[str, bytes]]) -> bytes:
    """Return a 64-bit ELF file of these sections (System V ABI, chapter 4)."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name, _ in sections) + b".shstrtab\0"
    body, headers = b"", [bytes(64)]
    for name, content in [*sections, (".shstrtab", names)]:
        start = 64 + len(body)
        kind = 3 if name == ".shstrtab" else 1
        at = names.index(name.encode())
        headers.append(struct.pack("<IIQQQQIIQQ", at, kind, 2, 0, start, len(content), 0, 0, 8, 0))
        body += content + bytes(-len(content) % 8)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    place = 64 + len(body)
    header = struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, place, 0, 64, 56, 0, 64, len(headers),
                         len(headers) - 1)  # fmt: skip
    return ident + header + body + b"".join(headers)
