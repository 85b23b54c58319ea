"""Runs inside a container: takes wheels apart, on all cores, before any package's code runs.

A wheel becomes a folder of the files that go to site-packages as they are, and a small wheel of all
the rest: its metadata, and what an installer has rules for (scripts, data, headers). uv installs
that one, so scripts, RECORD and INSTALLER are what they always are.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec
import xxhash
from isal import isal_zlib
from isal.igzip_lib import IsalError

from envferry.base.json import decode_json
from envferry.base.sha256 import sha256_hex
from envferry.build.extraction_request import (
    ExtractedFile,
    ExtractedWheel,
    ExtractionAnswer,
    ExtractionRequest,
    WheelArchive,
)
from envferry.build.inside.built_tree import NotSeparable
from envferry.build.inside.clobbers import WHEEL_ERRORS, is_for_installer
from envferry.build.inside.incremental import folders_of
from envferry.build.inside.wheel_records import require_complete_record

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FILES = "files"
CHUNK_BYTES, CHUNK_FILES = 32 << 20, 400
"""How much one task extracts, unless one file is larger."""
READ_BYTES, WRITE_BYTES = 1 << 20, 4 << 20
LOCAL_HEADER = b"PK\x03\x04"
ENCRYPTED = 0x1
KNOWN_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that zip files can hold."""


class WheelMember(msgspec.Struct, frozen=True, array_like=True):
    """A file in a wheel, and where its bytes are."""

    path: str
    offset: int
    """Of its local header, in bytes."""
    packed: int
    """Compressed size in bytes."""
    size: int
    crc: int
    is_deflated: bool
    is_executable: bool


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What a wheel is to be taken apart into."""

    members: tuple[WheelMember, ...]
    folders: tuple[str, ...]
    sha256: str
    """Of the wheel that has the rest."""


def main(request_path: str) -> None:
    """Carry out the request in a file; print the answer to stdout, also when the disk is full."""
    request = decode_json(Path(request_path).read_bytes(), ExtractionRequest)
    # Modes of the files are given to `open`, whatever the container's umask was.
    os.umask(0o022)
    try:
        answer = ExtractionAnswer(wheels=extract_wheels(request))
    except OSError as error:
        answer = ExtractionAnswer(error=str(error))
    sys.stdout.write(msgspec.json.encode(answer).decode())


def extract_wheels(request: ExtractionRequest) -> dict[str, ExtractedWheel]:
    """Extract wheels; return what each became, by its SHA-256."""
    found: dict[str, ExtractedWheel] = {}
    extracted: dict[str, dict[str, ExtractedFile]] = {}
    with ProcessPoolExecutor() as pool:
        targets = [Path(request.target, wheel.sha256) for wheel in request.wheels]
        planned = list(pool.map(take_apart, request.wheels, targets))
        tasks = [
            (wheel, target, chunk)
            for wheel, target, parts in zip(request.wheels, targets, planned, strict=True)
            if isinstance(parts, Parts)
            for chunk in chunks_of(parts.members)
        ]
        # The largest first: what is started last ends last.
        tasks.sort(key=lambda task: -sum(member.size for member in task[2]))
        results = pool.map(extract_chunk, *zip(*tasks, strict=True)) if tasks else ()
        for (wheel, _, _), result in zip(tasks, results, strict=True):
            if isinstance(result, str):
                found[wheel.sha256] = ExtractedWheel(why_whole=result)
            else:
                extracted.setdefault(wheel.sha256, {}).update(result)
    for wheel, parts in zip(request.wheels, planned, strict=True):
        if isinstance(parts, str):
            found[wheel.sha256] = ExtractedWheel(why_whole=parts)
        elif wheel.sha256 not in found:
            found[wheel.sha256] = ExtractedWheel(
                files=extracted.get(wheel.sha256, {}),
                folders=parts.folders,
                name=Path(wheel.path).name,
                sha256=parts.sha256,
            )
    return found


def take_apart(wheel: WheelArchive, target: Path) -> Parts | str:
    """Write the wheel of what an installer has rules for; return what is left, or why not."""
    try:
        with zipfile.ZipFile(wheel.path) as archive:
            members, folders, rest = divide(archive)
            require_complete_record(archive, {member.path for member in members})
            target.mkdir()
            small = target / Path(wheel.path).name
            write_small_wheel(archive, rest, small)
    except (NotSeparable, *WHEEL_ERRORS) as error:
        return f"{error}" or type(error).__name__
    (target / FILES).mkdir()
    for folder in folders:
        os.makedirs(target / FILES / folder, exist_ok=True)  # noqa: PTH103
    return Parts(members=members, folders=folders, sha256=sha256_hex(small.read_bytes()))


def divide(
    archive: zipfile.ZipFile,
) -> tuple[tuple[WheelMember, ...], tuple[str, ...], list[zipfile.ZipInfo]]:
    """Return the files that go to site-packages as they are, empty folders, and all the rest.

    Raises NotSeparable for a wheel that is out of the ordinary: uv has rules for those, too.
    """
    members: dict[str, WheelMember] = {}
    named: set[str] = set()
    rest: list[zipfile.ZipInfo] = []
    seen: set[str] = set()
    for info in archive.infolist():
        path = plain_path(info)
        if path in seen:
            message = f"{path} is in it twice"
            raise NotSeparable(message)
        seen.add(path)
        if is_for_installer(path):
            rest.append(info)
        elif info.is_dir():
            named.add(path)
        else:
            members[path] = describe(info, path)
    held = folders_of((*members, *named))
    if clash := held & members.keys():
        message = f"{min(clash)} is a file and a folder"
        raise NotSeparable(message)
    return tuple(members.values()), tuple(sorted(named - folders_of(members))), rest


def plain_path(info: zipfile.ZipInfo) -> str:
    """Return the path of a member; raise NotSeparable for one that can be read in two ways."""
    path = info.filename.removesuffix("/")
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in path or "\0" in info.orig_filename:
        message = f"{info.filename!r} is not a plain path"
        raise NotSeparable(message)
    if parts[0].endswith(".data") and brings_to_site_packages(parts[1:]):
        message = f"{path} goes to site-packages by way of a scheme"
        raise NotSeparable(message)
    return path


def brings_to_site_packages(parts: Sequence[str]) -> bool:
    """Whether a file below `NAME.data` goes to site-packages."""
    scheme = parts[0] if parts else "scripts"
    return scheme not in ("scripts", "headers", "data") or (
        scheme == "data" and "site-packages" in parts
    )


def describe(info: zipfile.ZipInfo, path: str) -> WheelMember:
    """Return a member as it is to be extracted; raise NotSeparable where zlib cannot do it."""
    mode = info.external_attr >> 16
    if info.flag_bits & ENCRYPTED or info.compress_type not in KNOWN_COMPRESSIONS:
        message = f"{path} is encrypted or compressed in a rare way"
        raise NotSeparable(message)
    if stat.S_ISLNK(mode):
        message = f"{path} is a symbolic link"
        raise NotSeparable(message)
    return WheelMember(
        path=path,
        offset=info.header_offset,
        packed=info.compress_size,
        size=info.file_size,
        crc=info.CRC,
        is_deflated=info.compress_type == zipfile.ZIP_DEFLATED,
        is_executable=bool(mode & 0o111),
    )


def write_small_wheel(
    archive: zipfile.ZipFile, rest: Sequence[zipfile.ZipInfo], target: Path
) -> None:
    """Write what an installer has rules for as a wheel, equal bytes for equal members."""
    with zipfile.ZipFile(target, "w") as small:
        for info in rest:
            copy = zipfile.ZipInfo(info.filename, EPOCH)
            copy.external_attr, copy.create_system = info.external_attr, info.create_system
            small.writestr(copy, b"" if info.is_dir() else archive.read(info))


def chunks_of(members: Sequence[WheelMember]) -> Iterator[tuple[WheelMember, ...]]:
    """Yield members in groups that are worth a task."""
    chunk: list[WheelMember] = []
    size = 0
    for member in members:
        if chunk and (size + member.size > CHUNK_BYTES or len(chunk) == CHUNK_FILES):
            yield tuple(chunk)
            chunk, size = [], 0
        chunk.append(member)
        size += member.size
    if chunk:
        yield tuple(chunk)


def extract_chunk(
    wheel: WheelArchive, target: Path, members: Sequence[WheelMember]
) -> dict[str, ExtractedFile] | str:
    """Extract some members; return their checksums, or why the wheel cannot be taken apart.

    Raises OSError when the disk fails.
    """
    top = f"{target / FILES}/"
    made: set[str] = set()
    found = {}
    try:
        with Path(wheel.path).open("rb", buffering=0) as archive:
            for member in members:
                folder = member.path.rpartition("/")[0]
                if folder not in made:
                    os.makedirs(top + folder, exist_ok=True)  # noqa: PTH103
                    made.add(folder)
                mode = 0o755 if member.is_executable else 0o644
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                descriptor = os.open(top + member.path, flags, mode)
                with os.fdopen(descriptor, "wb", buffering=0) as file:
                    checksum = extract_member(archive, member, file)
                found[member.path] = ExtractedFile(member.size, member.is_executable, checksum)
    except WHEEL_ERRORS as error:
        return f"{error}"
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise
        return f"{error}"
    return found


def extract_member(archive: BinaryIO, member: WheelMember, file: BinaryIO) -> str:
    """Write the content of a member to a file; return its XXH3-128.

    Raises ValueError when it is not what the archive says: by name, size or CRC-32.
    """
    skip_local_header(archive, member)
    checksum, crc, size = xxhash.xxh3_128(), 0, 0
    for piece in contents(archive, member):
        size += len(piece)
        if size > member.size:
            break
        checksum.update(piece)
        crc = isal_zlib.crc32(piece, crc)
        while piece:
            piece = piece[file.write(piece) :]  # noqa: PLW2901
    if (size, crc) != (member.size, member.crc):
        message = f"{member.path} is damaged"
        raise ValueError(message)
    return checksum.hexdigest()


def skip_local_header(archive: BinaryIO, member: WheelMember) -> None:
    """Go to where the bytes of a member begin; raise ValueError where another one is.

    The format is APPNOTE.TXT 6.3.10 of PKWARE, 4.3.7.
    """
    archive.seek(member.offset)
    header = archive.read(30)
    name_length = int.from_bytes(header[26:28], "little")
    name = archive.read(name_length)
    if header[:4] != LOCAL_HEADER or name not in (
        member.path.encode(),
        member.path.encode("cp437", "replace"),
    ):
        message = f"{member.path} has another name in its own header"
        raise ValueError(message)
    archive.seek(int.from_bytes(header[28:30], "little"), os.SEEK_CUR)


def contents(archive: BinaryIO, member: WheelMember) -> Iterator[bytes]:
    """Yield the content of a member in pieces of at most WRITE_BYTES."""
    left = member.packed
    # Negative: a deflate stream without a header of zlib's.
    inflater = isal_zlib.decompressobj(-15) if member.is_deflated else None
    while left:
        packed = archive.read(min(left, READ_BYTES))
        if not packed:
            return
        left -= len(packed)
        if inflater is None:
            yield packed
            continue
        while packed:
            yield inflate(inflater, packed)
            packed = inflater.unconsumed_tail
    while inflater and (piece := inflate(inflater, b"")):
        yield piece


def inflate(inflater: isal_zlib.Decompress, packed: bytes) -> bytes:
    """Return the next WRITE_BYTES at most; raise ValueError for what is not a deflate stream."""
    try:
        return inflater.decompress(packed, WRITE_BYTES)
    # isal's own type says that it is an instance.
    except IsalError as error:  # type: ignore[misc]
        raise ValueError(str(error)) from error


if __name__ == "__main__":
    main(*sys.argv[1:])
