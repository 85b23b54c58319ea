"""Headers of the tar stream: one byte sequence for each member.

POSIX.1-2001 (pax). A reader makes the header that an index entry calls for and compares it with
the stream, so index and stream cannot disagree.
"""

from __future__ import annotations

from envferry.archive.index import FileEntry

BLOCK = 512
TYPE_FLAGS = {"file": b"0", "directory": b"5", "symlink": b"2"}
NAME_BYTES = 100
ONE_BLOCK_PATH = 500
"""A path that has room in one block as a pax record, which has a keyword and a length as well."""
# The eleven octal digits of a ustar header: 8 GiB - 1.
MAX_OCTAL_SIZE = 0o77777777777
END_OF_ARCHIVE = bytes(2 * BLOCK)


def header_size(entry: FileEntry) -> int:
    """Return how many bytes the header of a member takes, without making it where it is plain."""
    # Links are rare, and their targets may need a pax header.
    if not entry.link and entry.size <= MAX_OCTAL_SIZE and entry.path.isascii():
        # A directory's path gets a slash.
        length = len(entry.path) + (entry.type == "directory")
        if length <= NAME_BYTES:
            return BLOCK
        if length <= ONE_BLOCK_PATH:
            return 3 * BLOCK  # a pax header, its only record, the header
    return len(tar_header(entry, 0))


def tar_header(entry: FileEntry, mtime: int) -> bytes:
    """Return the header blocks of a member, a pax header before it where ustar has no room.

    uid and gid are 0 and have no names. A pax header is written for a path or link target that is
    over 100 bytes or not ASCII, and for a size over 8 GiB.
    """
    flag = TYPE_FLAGS[entry.type]
    path = entry.path + "/" if entry.type == "directory" else entry.path
    records = b""
    # The order of the records is part of the format (docs/format.md), and so of the id.
    for keyword, text in (("linkpath", entry.link), ("path", path)):
        if len(text) > NAME_BYTES or not text.isascii():
            records += pax_record(keyword, text.encode())
    if entry.size > MAX_OCTAL_SIZE:
        records += pax_record("size", b"%d" % entry.size)
    header = ustar_block(path, entry, flag, mtime)
    if not records:
        return header
    extended = FileEntry(path="@PaxHeader", size=len(records))
    before = ustar_block(extended.path, extended, b"x", mtime)
    return before + records + bytes(padding(len(records))) + header


def has_header(found: bytes, entry: FileEntry, mtime: int) -> bool:
    """Whether bytes are the header of a member, or none: only its first piece begins with one."""
    return not found or found == tar_header(entry, mtime)


def padding(size: int) -> int:
    """Return how many bytes fill content of `size` up to a whole block."""
    return -size % BLOCK


def ustar_block(path: str, entry: FileEntry, flag: bytes, mtime: int) -> bytes:
    """Return one 512-byte ustar header."""
    size = entry.size if entry.size <= MAX_OCTAL_SIZE else 0
    numbers = b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (entry.mode, 0, 0, size, mtime)
    before = ascii_field(path) + numbers
    # Magic `ustar` with a NUL, then version `00`; the fields behind them are all zero.
    after = flag + ascii_field(entry.link) + b"ustar\x0000"
    # The checksum counts its own eight bytes as spaces.
    checksum = sum(before) + sum(after) + 8 * 0x20
    return (before + b"%06o\0 " % checksum + after).ljust(BLOCK, b"\0")


def ascii_field(text: str) -> bytes:
    """Return a 100-byte name field; what does not fit stands in the pax header."""
    return text.encode("ascii", "replace")[:NAME_BYTES].ljust(NAME_BYTES, b"\0")


def pax_record(keyword: str, value: bytes) -> bytes:
    """Return `LENGTH KEYWORD=VALUE` and a newline, where LENGTH counts itself."""
    body = b" %b=%b\n" % (keyword.encode(), value)
    length = len(body) + 1
    # The length may get a digit more by counting its own digits.
    while length != len(body) + len(str(length)):
        length = len(body) + len(str(length))
    return b"%d%b" % (length, body)
