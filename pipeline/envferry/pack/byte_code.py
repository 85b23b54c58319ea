"""Byte code from another Python: made to fit sources with a different modification time.

A `.pyc` starts with 16 bytes (PEP 552): a magic number, flags, and the time and size of its source,
or its hash. All files of an archive get one time, so byte code that goes by time would be stale
wherever it is installed: Python would compile each module again when it is imported.
"""

from __future__ import annotations

import _imp
import os

HEADER_BYTES = 16
END_OF_MAGIC = b"\r\n"
"""What every magic number ends with (importlib's _bootstrap_external.py)."""
BY_TIME = 0
BY_HASH = 0b11
UNCHECKED_HASH = 0b01


class ByteCode:
    """What becomes of byte code when a tree that was built at `prefix` is packed."""

    def __init__(self, tree: str, prefix: str) -> None:
        self.tree = tree
        self.prefix = prefix.encode()

    def head(self, path: str) -> bytes | None:
        """Return the first bytes that byte code must have; empty: those that it has.

        None for what cannot be used: Python itself would write it again, for it is cut off, of
        another source or older than its own; or its source holds the prefix and so will be another
        one where the environment is installed.
        """
        source = source_of(f"{self.tree}/{path}")
        # Byte code outside `__pycache__` is imported without a source (PEP 3147): it stays as it
        # is.
        if not source:
            return b""
        try:
            with open(source, "rb") as stream:  # noqa: PTH123  (20,000 of them)
                status = os.fstat(stream.fileno())
                content = stream.read()
        except OSError:
            return b""
        with open(f"{self.tree}/{path}", "rb") as stream:  # noqa: PTH123
            header = stream.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES or header[2:4] != END_OF_MAGIC or self.prefix in content:
            return None
        flags = int.from_bytes(header[4:8], "little")
        # Not compared with the source at import, or of a form that is not known here.
        if flags not in (BY_TIME, BY_HASH):
            return b""
        # importlib.util.source_hash would take the magic number of the Python that runs this.
        source_hash = _imp.source_hash(int.from_bytes(header[:4], "little"), content)
        if flags == BY_HASH:
            return b"" if header[8:] == source_hash else None
        # PEP 552 has 32 bits for each.
        time_and_size = (int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF)
        if time_and_size != (
            int.from_bytes(header[8:12], "little"),
            int.from_bytes(header[12:], "little"),
        ):
            return None
        # Unchecked: Python takes it without comparing it with the source (PEP 552).
        return header[:4] + UNCHECKED_HASH.to_bytes(4, "little") + source_hash


def source_of(path: str) -> str:
    """Return the module that byte code in a `__pycache__` was made from, or nothing."""
    folder, _, name = path.rpartition("/")
    if not folder.endswith("/__pycache__"):
        return ""
    return f"{folder.removesuffix('__pycache__')}{name.split('.')[0]}.py"
