"""The records of a few packages out of a `repodata.json` of any size, in little memory.

conda-forge's has 440 MB for one platform. It is read through once, in pieces that end where a
record ends, to learn which names are in which piece: that is kept, as long as the file stays what
it is. The pieces that hold what is asked for are read and decoded.
Source of the format: conda's `repodata.json`; CEP 15 for `base_url`.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec
from blake3 import blake3

from envferry.base.files import write_bytes
from envferry.base.json import decode_json

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

PIECE_BYTES = 64 << 10
TAIL_BYTES = 4 << 10
"""Where the end of a record is looked for first, from the end of a piece."""
# Of 64 KiB each: some 32 MB.
KEPT_PIECES = 500
NAME_BYTES = 200
"""What a name is never longer than."""
# The section `packages.conda` ends like the name of a file.
PACKAGE = rb'(?!"packages\.conda")"[^"\\]+\.(?:conda|tar\.bz2)"\s*:\s*\{'
# Braces inside of a record are not taken for its end: no key in there is a file name.
BETWEEN = re.compile(rb"\}\s*,\s*(?=" + PACKAGE + rb")")
SECTION = re.compile(r'"packages(?:\.conda)?"\s*:\s*\{')
KEY = re.compile(r'[\s,]*"([^"\\]+)"\s*:\s*')
INFO = re.compile(r'"info"\s*:\s*')
FILE_NAME = re.compile(r"(.+)-[^-]+-[^-]+\.(?:conda|tar\.bz2)")
DECODER = json.JSONDecoder()


class FoundRecord(msgspec.Struct, frozen=True):
    """A record of a channel's index."""

    file_name: str
    text: bytes
    """The record itself, as JSON."""
    needs: tuple[str, ...]
    """What it depends on, as it says it."""


class _Needs(msgspec.Struct):
    """What we read of a record."""

    depends: list[str] = []
    extra_depends: dict[str, list[str]] = {}


class _Piece(msgspec.Struct, frozen=True, array_like=True):
    """Where a piece of the file is; a regular one holds records and nothing else."""

    start: int
    size: int
    is_regular: bool


class RecordOffsets(msgspec.Struct):
    """What is where in an index."""

    pieces: list[_Piece] = []
    of_names: dict[str, list[int]] = {}
    """The pieces that hold a name."""
    irregular: list[int] = []


class RepodataFile(msgspec.Struct):
    """An index on disk, not compressed."""

    path: Path
    places: RecordOffsets
    _decoded: dict[int, dict[str, list[tuple[str, bytes]]]] = msgspec.field(default_factory=dict)
    """What is asked for next is often in the piece that was read last."""

    @classmethod
    def open(cls, path: Path, notes: Path) -> RepodataFile:
        """Open an index; what was learnt of it before is in the folder `notes`.

        Raises ValueError when it is not an index or is truncated.
        """
        found = path.stat()
        # With the size of pieces, for where these are is what is noted.
        identity = f"{path.absolute()}\0{found.st_size}\0{found.st_mtime_ns}\0{PIECE_BYTES}"
        note = notes / f"{blake3(identity.encode()).hexdigest()[:32]}.json"
        try:
            places = decode_json(note.read_bytes(), RecordOffsets)
            # Its time says when it was last of use: pruning goes by that.
            os.utime(note)
        except (FileNotFoundError, msgspec.MsgspecError):
            file = cls.scan(path)
            notes.mkdir(parents=True, exist_ok=True)
            write_bytes(note, msgspec.json.encode(file.places))
            return file
        return cls(path, places)

    @classmethod
    def scan(cls, path: Path) -> RepodataFile:
        """Read an index through; raise ValueError when it is not an index or is truncated."""
        file = cls(path, RecordOffsets([], {}, []))
        # Unbuffered, as each read is a whole piece already.
        with path.open("rb", buffering=0) as stream:
            start, held, is_first = 0, b"", True
            while block := stream.read(PIECE_BYTES):
                held += block
                # A proxy may have answered with its login page.
                if is_first and not held.lstrip().startswith(b"{"):
                    message = f"failed to parse {path.name}: it begins with {held[:40]!r}"
                    raise ValueError(message)
                end = _last_record_end(held)
                # A record that is longer than what was read: read on.
                if end is None:
                    continue
                last, following = end
                # The first piece begins with the file's head, so it is not a row of records alone.
                file._add(_Piece(start, last, not is_first), held[:last])
                start, held, is_first = start + following, held[following:], False
        if not held.rstrip().endswith(b"}"):
            message = f"failed to parse {path.name}: it is truncated"
            raise ValueError(message)
        file._add(_Piece(start, len(held), is_regular=False), held)
        return file

    def records(self, names: Collection[str]) -> Iterator[FoundRecord]:
        """Yield the records of some packages; raise ValueError for what is not JSON."""
        # Irregular ones always: which names they hold is not noted.
        wanted = {*self.places.irregular}
        for name in names:
            wanted.update(self.places.of_names.get(name, ()))
        try:
            with self.path.open("rb") as stream:
                for number in sorted(wanted):
                    found = self._piece(number, stream)
                    for name in found.keys() & names:
                        yield from (found_record(file, text) for file, text in found[name])
        # RecursionError: JSON that nests thousands deep is damaged, not a reason to crash.
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            message = f"failed to parse {self.path.name}: {error}"
            raise ValueError(message) from error

    def info(self) -> dict[str, Any]:
        """Return what the index says of itself: `base_url` (CEP 15) is in it."""
        with self.path.open("rb") as stream:
            for number in self.places.irregular:
                text = _read(stream, self.places.pieces[number]).decode()
                if found := INFO.search(text):
                    value = DECODER.raw_decode(text, found.end())[0]
                    return value if isinstance(value, dict) else {}
        return {}

    def _add(self, piece: _Piece, data: bytes) -> None:
        """Note which names a piece holds."""
        number = len(self.places.pieces)
        parts = data.split(b'"name":')
        # As every program writes it: no blank before the colon, or the piece is not regular.
        is_usual = len(parts) > 1 and b'"packages' not in data and b'"name" :' not in data
        is_regular = piece.is_regular and is_usual
        self.places.pieces.append(_Piece(piece.start, piece.size, is_regular))
        if not is_regular:
            self.places.irregular.append(number)
            return
        for name in {part[:NAME_BYTES].lstrip(b' "').partition(b'"')[0] for part in parts[1:]}:
            text = name.decode(errors="replace")
            self.places.of_names.setdefault(text, []).append(number)

    def _piece(self, number: int, stream: BinaryIO) -> dict[str, list[tuple[str, bytes]]]:
        """Return the records of a piece by name: file name and text."""
        if number in self._decoded:
            return self._decoded[number]
        piece = self.places.pieces[number]
        data = _read(stream, piece)
        found: dict[str, list[tuple[str, bytes]]] = {}
        if piece.is_regular:
            raw = decode_json(b"{" + data + b"}", dict[str, msgspec.Raw])
            for key, value in raw.items():
                found.setdefault(name_of(key), []).append((key, bytes(value)))
        else:
            # All pieces but the first begin where a record begins.
            for key, text in _irregular_pairs(data.decode(), within=number > 0):
                found.setdefault(name_of(key), []).append((key, text.encode()))
        if len(self._decoded) >= KEPT_PIECES:
            self._decoded.clear()
        self._decoded[number] = found
        return found


def name_of(file_name: str) -> str:
    """Return the package that a file is of: `NAME-VERSION-BUILD.conda`; empty for another name."""
    found = FILE_NAME.fullmatch(file_name)
    return found[1] if found else ""


def found_record(file_name: str, text: bytes) -> FoundRecord:
    """Return a record with what it needs."""
    needs = decode_json(text, _Needs)
    # Of all extras: which ones are asked for is known to the solver alone.
    extras = (line for lines in needs.extra_depends.values() for line in lines)
    return FoundRecord(file_name, text, (*needs.depends, *extras))


def _last_record_end(data: bytes) -> tuple[int, int] | None:
    """Return where the last record but one ends in a piece, and where the one after it begins."""
    # The tail first: a search of each piece from its start would go through the file twice.
    for start in (max(0, len(data) - TAIL_BYTES), 0):
        if found := [*BETWEEN.finditer(data, start)]:
            return found[-1].start() + 1, found[-1].end()
    return None


def _irregular_pairs(text: str, within: bool) -> Iterator[tuple[str, str]]:
    """Yield the records of a piece in which sections begin or end; raise for what is not JSON.

    `within`: it begins with a record.
    """
    place = 0
    while True:
        if not within:
            section = SECTION.search(text, place)
            if not section:
                return
            place = section.end()
        while key := KEY.match(text, place):
            _, end = DECODER.raw_decode(text, key.end())
            yield key[1], text[key.end() : end]
            place = end
        within = False


def _read(stream: BinaryIO, piece: _Piece) -> bytes:
    stream.seek(piece.start)
    return stream.read(piece.size)
