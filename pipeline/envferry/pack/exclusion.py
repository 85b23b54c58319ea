"""What a spec says is not carried (`envferry: exclude:`), and the records that then say so too."""

from __future__ import annotations

import csv
import io
import logging
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from envferry.base.json import decode_json
from envferry.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)

KEPT = re.compile(r"conda-meta/[^/]*|.*\.dist-info/(?:RECORD|METADATA|INSTALLER)")
"""Without these, conda and pip would not know the packages."""
BYTE_CODE = re.compile(r"(?P<folder>.*/|)__pycache__/(?P<name>[^/.]+)\.[^/]*pyc")
RECORD = re.compile(r".*\.dist-info/RECORD")
GLOB_PARTS = re.compile(r"\*\*/|\*\*|\*|\?|\[!?[^]/]+\]|[^*?\[]+|\[")
GLOB_WORDS = {"**/": "(?:.+/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


class Exclusion:
    """Globs of paths relative to the prefix: `*` inside a folder's name, `**` across folders.

    A folder that a glob names goes with all that is in it, a module with its byte code.
    """

    def __init__(self, globs: Sequence[str]) -> None:
        self._globs = {glob: re.compile(_expression(glob)) for glob in globs}
        self._unused = {*globs}
        self.stale: set[str] = set()
        """Byte code that is not carried: Python makes it again."""
        self.rewritten: set[str] = set()
        """What is carried with another content: byte code and `python-config`."""

    def covers(self, path: str) -> bool:
        """Whether a path is not carried."""
        if path in self.stale:
            return True
        if not self._globs or KEPT.fullmatch(path):
            return False
        found = BYTE_CODE.fullmatch(path)
        source = f"{found['folder']}{found['name']}.py" if found else path
        covering = [
            glob
            for glob, pattern in self._globs.items()
            if pattern.fullmatch(path) or pattern.fullmatch(source)
        ]
        self._unused.difference_update(covering)
        return bool(covering)

    def warn_of_unused(self) -> None:
        """Name the globs that covered nothing: they are probably misspelt."""
        for glob in sorted(self._unused):
            log.warning("`%s` under `envferry: exclude:` matches no file", glob)

    def edited(self, path: str, file: str) -> bytes | None:
        """Return the new content of a file that lists others; None leaves it as it is."""
        if not ((self._globs or self.stale) and RECORD.fullmatch(path)):
            return None
        content = Path(file).read_bytes()
        edited = self._edited_list(path, content)
        return None if edited == content else edited

    def edited_record(self, content: bytes, tree: Path) -> bytes:
        """Take what is not carried out of a conda-meta record.

        The checksum in the prefix of a RECORD that changes with it is dropped: conda skips
        files without one.
        """
        if not (self._globs or self.stale or self.rewritten):
            return content
        record: dict[str, Any] = decode_json(content, dict[str, Any])
        files = [path for path in record["files"] if not self.covers(path)]
        lists = [path for path in files if RECORD.fullmatch(path) and self._changes(path, tree)]
        # Their content changes while they are packed: the checksum in the record is of the old
        # one.
        lists += [path for path in files if path in self.rewritten]
        if files == record["files"] and not lists:
            return content
        record["files"] = files
        # Old records have `files` alone.
        entries = record.get("paths_data", {}).get("paths", [])
        changed = set(lists)
        carried = [entry for entry in entries if not self.covers(entry["_path"])]
        for entry in carried:
            if entry["_path"] in changed:
                entry.pop("sha256_in_prefix", None)
        if entries:
            record["paths_data"]["paths"] = carried
        # Indented by two, as conda writes its records.
        return msgspec.json.format(msgspec.json.encode(record), indent=2)

    def _changes(self, path: str, tree: Path) -> bool:
        return (tree / path).is_file() and self.edited(path, str(tree / path)) is not None

    def _edited_list(self, path: str, content: bytes) -> bytes:
        """Return a RECORD without the files that are not carried, its other lines untouched."""
        base = posixpath.dirname(posixpath.dirname(path))
        # Names of files need not be UTF-8.
        lines = content.decode("utf-8", "surrogateescape").splitlines(keepends=True)
        kept = [line for line in lines if not self._is_listed_excluded(line, base)]
        return "".join(kept).encode("utf-8", "surrogateescape")

    def _is_listed_excluded(self, line: str, base: str) -> bool:
        # One line at a time, so that the lines that stay keep their bytes.
        row = next(csv.reader(io.StringIO(line)), [])
        return bool(row) and self.covers(posixpath.normpath(posixpath.join(base, row[0])))


def _expression(glob: str) -> str:
    """Return the regular expression of a glob; raise SpecError when it is not valid."""
    parts = GLOB_PARTS.findall(glob.rstrip("/"))
    words = [
        GLOB_WORDS.get(part) or (_character(part) if part.startswith("[") else re.escape(part))
        for part in parts
    ]
    try:
        return re.compile("".join([*words, "(?:/.*)?"]), re.DOTALL).pattern
    except re.error as error:
        message = f"`{glob}` under `envferry: exclude:` is not a valid glob: {error}"
        raise SpecError(message, hint="write one such as `share/doc/**`") from error


def _character(part: str) -> str:
    """Return the expression for `[abc]`, `[!abc]` or a lone `[`."""
    if part == "[":
        return r"\["
    inner = part[1:-1].replace("\\", r"\\")
    return f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner.replace('^', chr(92) + '^')}]"
