"""Fuzz what reads an archive, guided by coverage: `make fuzz`, `python -m tests.fuzz TARGET`.

What follows TARGET goes to libFuzzer. A finding is written to the current directory as crash-…:
fix it, and keep the file in tests/corpus, where a test reads it ever after.
"""

from __future__ import annotations

import io
import sys
import tarfile

import atheris

with atheris.instrument_imports(include=["envferry.archive"]):
    from envferry.archive.index import FileEntry
    from envferry.archive.tar import MAX_OCTAL_SIZE, tar_header
    from envferry.archive.validation import entry_faults
    from tests.support.hostile import open_and_read, require_error_of_ours

TYPES = {
    "file": (0o644, tarfile.REGTYPE),
    "directory": (0o755, tarfile.DIRTYPE),
    "symlink": (0o777, tarfile.SYMTYPE),
}
MTIME = 315532800
TEXT_LENGTH = 300
"""Of paths and links: past the 100 bytes of a ustar header."""


def read_header(data: bytes) -> None:
    """Make the header of an entry that may be in an archive; tarfile must read the same."""
    provider = atheris.FuzzedDataProvider(data)
    kind = provider.PickValueInList(list(TYPES))
    entry = FileEntry(
        path=provider.ConsumeUnicodeNoSurrogates(TEXT_LENGTH),
        type=kind,
        mode=TYPES[kind][0],
        size=provider.ConsumeIntInRange(0, 4 * MAX_OCTAL_SIZE) if kind == "file" else 0,
        link=provider.ConsumeUnicodeNoSurrogates(TEXT_LENGTH) if kind == "symlink" else "",
    )
    if any(entry_faults(entry, {entry.path.rpartition("/")[0]: "directory"})):
        return
    stream = io.BytesIO(tar_header(entry, MTIME))
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        found = archive.next()
    assert found is not None
    assert found.name.rstrip("/") == entry.path.rstrip("/")
    assert (found.size, found.mode, found.linkname) == (entry.size, entry.mode, entry.link)
    assert (found.type, found.mtime) == (TYPES[kind][1], MTIME)


TARGETS = {"index": require_error_of_ours, "archive": open_and_read, "header": read_header}
"""By name; `archive` reads bytes from their end: seek table, index, frames."""


def main() -> None:
    """Fuzz one target until libFuzzer's options say stop."""
    program, target, *options = sys.argv
    atheris.Setup([program, *options], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
