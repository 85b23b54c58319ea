"""RECORD of a wheel that was taken apart: whole again, as the installer would have written it.

uv leaves out what it does not find in a wheel, so of the small wheel's files alone. Its format is
https://packaging.python.org/en/latest/specifications/recording-installed-packages/#the-record-file.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from typing import TYPE_CHECKING

from envferry.build.inside.built_tree import NotSeparable
from envferry.build.inside.clobbers import is_for_installer

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

RECORD = re.compile(r"[^/]+\.dist-info/RECORD")
SIZE = re.compile(r"|0|[1-9][0-9]*")
QUOTED = ('"', "\r", "\n")
"""What not all programs write in the same way."""


def record_lines(archive: zipfile.ZipFile) -> tuple[str, dict[str, str]]:
    """Return the name of a wheel's RECORD, and its lines by the file that they are about.

    Raises NotSeparable for one that is not in the usual form.
    """
    names = [name for name in archive.namelist() if RECORD.fullmatch(name)]
    if len(names) != 1:
        message = f"it has {len(names)} files RECORD"
        raise NotSeparable(message)
    text = archive.read(names[0]).decode(errors="surrogateescape")
    lines: dict[str, str] = {}
    for row in csv.reader(io.StringIO(text, newline="")):
        if row:
            path, line = plain_line(row)
            if path in lines:
                message = f"its RECORD has {path} twice"
                raise NotSeparable(message)
            lines[path] = line
    return names[0], lines


def plain_line(row: Sequence[str]) -> tuple[str, str]:
    """Return what a row is about, and the row as uv writes it; raise NotSeparable for odd ones."""
    is_plain = len(row) == 3 and SIZE.fullmatch(row[2]) and row[0] and row[0][0] != "/"
    if not is_plain or any(character in "".join(row) for character in QUOTED) or "," in row[1]:
        message = f"its RECORD has the line {','.join(row)!r}"
        raise NotSeparable(message)
    path = f'"{row[0]}"' if "," in row[0] else row[0]
    return row[0], f"{path},{row[1]},{row[2]}"


def require_complete_record(archive: zipfile.ZipFile, files: Collection[str]) -> None:
    """Raise NotSeparable when RECORD lists others than the files that go to site-packages."""
    _, lines = record_lines(archive)
    listed = {path for path in lines if not is_for_installer(path)}
    if wrong := listed ^ set(files):
        message = f"its RECORD and its files differ in {min(wrong)}"
        raise NotSeparable(message)


def complete_record(small_wheel: Path, site_packages: Path) -> None:
    """Add to an installed RECORD the lines of the files that are linked from the store."""
    with zipfile.ZipFile(small_wheel) as archive:
        name, lines = record_lines(archive)
    record = site_packages / name
    # uv sorts by path, and writes no line twice.
    found = dict(map(plain_line, csv.reader(record.read_text().splitlines())))
    stored = {path: line for path, line in lines.items() if not is_for_installer(path)}
    both = {**found, **stored}
    text = "".join(f"{both[path]}\n" for path in sorted(both, key=str.encode))
    record.unlink()  # it may be a hard link into uv's cache
    record.write_text(text)
