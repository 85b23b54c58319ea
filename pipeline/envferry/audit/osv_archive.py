"""Archives of OSV records: a zip file or a folder with one JSON file for each record.

The layout of the archives that OSV publishes for each ecosystem: https://google.github.io/osv.dev/data/
"""

from __future__ import annotations

import zipfile
import zlib
from typing import TYPE_CHECKING

import msgspec

from envferry.audit.advisory import Advisory, SkippedRecord, read_osv
from envferry.base.sha256 import sha256_hex, sha256_of_file
from envferry.errors import IntegrityError, NotFound, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOST_RECORD = 64 << 20
"""The longest that was seen has 4 MB; a zip file can claim any length."""
MOST_RECORDS = 5_000_000
HINT = "name an archive of OSV records: a zip file or a folder of JSON files, one a record"


class ReadArchive(msgspec.Struct, kw_only=True):
    """What an archive of records holds."""

    sha256: str
    advisories: list[Advisory] = msgspec.field(default_factory=list)
    withdrawn: int = 0
    skipped: list[SkippedRecord] = msgspec.field(default_factory=list)


def read_archive(path: Path) -> ReadArchive:
    """Read every record; broken ones are named in the result, and are no error.

    Raises NotFound where nothing is, IntegrityError for a damaged zip file, UsageError where no
    record can be read: an empty database would call everything clean.
    """
    if path.is_dir():
        found = ReadArchive(sha256="")
        digest = _read_into(found, _files_of(path))
        found.sha256 = sha256_hex(digest)
    elif path.is_file():
        found = ReadArchive(sha256=sha256_of_file(path))
        _read_into(found, _entries_of(path))
    else:
        fault = "is neither a file nor a folder" if path.exists() else "does not exist"
        message = f"the archive of advisories {path} {fault}"
        raise NotFound(message, hint=HINT)
    if not found.advisories:
        reason = f"; {found.skipped[0].file}: {found.skipped[0].reason}" if found.skipped else ""
        message = f"{path} holds no advisory that can be read{reason}"
        raise UsageError(message, hint=HINT)
    return found


def _read_into(found: ReadArchive, records: Iterator[tuple[str, bytes]]) -> bytes:
    """Read records; return a text that says which they were."""
    seen = []
    known: dict[str, Advisory] = {}
    for name, data in records:
        # The form of sha256sum, so that the digest of a folder can be checked by hand.
        seen.append(f"{sha256_hex(data)}  {name}\n")
        try:
            if len(data) > MOST_RECORD:
                message = f"it is longer than {MOST_RECORD} bytes"
                raise IntegrityError(message)
            advisory = read_osv(data)
        except IntegrityError as error:
            found.skipped.append(SkippedRecord(name, error.message))
            continue
        if advisory is None:
            found.withdrawn += 1
        elif advisory.id not in known or known[advisory.id].modified < advisory.modified:
            known[advisory.id] = advisory
    found.advisories = list(known.values())
    return "".join(seen).encode()


def _files_of(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*.json")):
        if path.is_file():
            with path.open("rb") as stream:
                # One byte more tells that a record is too long.
                yield path.relative_to(folder).as_posix(), stream.read(MOST_RECORD + 1)


def _entries_of(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [one for one in archive.infolist() if one.filename.endswith(".json")]
            if len(entries) > MOST_RECORDS:
                message = f"{path} claims {len(entries)} records"
                raise IntegrityError(message, hint=HINT)
            for entry in entries:
                with archive.open(entry) as stream:
                    yield entry.filename, stream.read(MOST_RECORD + 1)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError) as error:
        message = f"{path} is not a zip file, or is damaged: {error}"
        raise IntegrityError(message, hint=f"copy or download it again; {HINT}") from error
