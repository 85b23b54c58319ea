"""The tar stream of an archive for another prefix: what `install` writes, as one stream."""

from __future__ import annotations

import io
import os
import tarfile
from typing import TYPE_CHECKING

import msgspec
import pytest

from envferry.archive.extraction import ExtractOptions, extract_tree
from envferry.archive.index import FileEntry
from envferry.archive.members import FRAME_BYTES, Member, Recorded
from envferry.archive.prefixes import Relocation
from envferry.archive.reader import Archive, FileSource
from envferry.archive.relocated_tar import RelocatedTar
from envferry.archive.writer import ArchiveOptions, write_archive
from envferry.errors import HostError, IntegrityError
from envferry.names import current_platform
from tests.support.archives import OWNER, PREFIX, small_members

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ELSEWHERE = "/srv/envs/demo"
LONG_NAME = "lib/" + "n" * 90 + "/" + "é" * 30 + ".txt"


def contents() -> dict[str, bytes]:
    """Files with the prefix in a text, in a binary and in a large text, and others."""
    padded = f"{PREFIX}/lib".encode().ljust(200, b"\0")
    return {
        "bin/tool": f"#!{PREFIX}/bin/python\nprint(1)\n".encode(),
        "lib/binary": b"\x7fELF\0" + padded + b"\0end",
        "lib/data": os.urandom(5000),
        "lib/empty": b"",
        "lib/large": os.urandom(FRAME_BYTES + 12345),
        "lib/large.txt": f"prefix={PREFIX}\n".encode() * 300_000,
        LONG_NAME: b"long",
    }


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    members = small_members(contents())
    found = {
        "bin/tool": Recorded("text", 255),
        "lib/large.txt": Recorded("text", 255),
        "lib/binary": Recorded("binary", 255),
    }
    members = [
        Member(entry=one.entry, owner=one.owner, source=one.source,
               recorded=found.get(one.entry.path))
        for one in members
    ]  # fmt: skip
    for path, target in (("lib/link", "data"), ("lib/absolute", f"{PREFIX}/lib/data")):
        entry = FileEntry(path=path, type="symlink", mode=0o777, link=target)
        members.append(Member(entry=entry, owner=OWNER))
    options = ArchiveOptions(
        name="demo", platform=current_platform(), prefix=PREFIX, mtime=315532800
    )
    packed = tmp_path / "demo.tar.zst"
    with packed.open("wb") as stream:
        write_archive(stream, members, options=options, generate=lambda files: (),
                      advance=lambda count: None)  # fmt: skip
    with FileSource(packed) as source:
        yield Archive(source)


def described(root: Path) -> dict[str, tuple[int, object]]:
    """Return what a tree holds: mode, and content or target of a link."""
    found: dict[str, tuple[int, object]] = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        held: object = None
        if path.is_symlink():
            held = path.readlink()
        elif path.is_file():
            held = path.read_bytes()
        found[name] = (path.lstat().st_mode, held)
    return found


@pytest.mark.parametrize("prefix", [PREFIX, ELSEWHERE])
def test_the_stream_is_what_install_writes(archive: Archive, tmp_path: Path, prefix: str) -> None:
    relocation = Relocation(PREFIX, prefix, archive.index)
    counted: list[int] = []
    stream = RelocatedTar(archive, relocation, counted.append)
    data = b"".join(stream)
    assert sum(counted) == sum(frame.tar_size for frame in archive.index.frames)
    tree = tmp_path / "tree"
    tree.mkdir()
    with tarfile.open(fileobj=io.BytesIO(data)) as reading:
        reading.extractall(tree, filter="fully_trusted")
    installed = tmp_path / "installed"
    installed.mkdir()
    edited = extract_tree(archive, installed, options=ExtractOptions(relocation=relocation),
                          advance=lambda count: None)  # fmt: skip
    assert described(tree) == described(installed)
    assert stream.edited == edited
    assert bool(edited) == (prefix != PREFIX)
    assert b"".join(RelocatedTar(archive, relocation, counted.append)) == data


def test_without_another_prefix_the_stream_is_the_archives(archive: Archive) -> None:
    data = b"".join(RelocatedTar(archive, Relocation(PREFIX, PREFIX), lambda count: None))
    numbers = range(len(archive.plans))
    assert data == b"".join(raw for number in numbers for raw in archive.read_run([number]))


def test_a_prefix_that_does_not_fit(archive: Archive) -> None:
    relocation = Relocation(PREFIX, "/" + "x" * 300, archive.index)
    with pytest.raises(HostError, match="has room for"):
        next(iter(RelocatedTar(archive, relocation, lambda count: None)))


def test_a_file_that_is_not_what_the_index_says(archive: Archive) -> None:
    files = archive.index.files
    number = next(number for number, entry in enumerate(files) if entry.path == "lib/large")
    wrong = FileEntry(path="lib/large", size=files[number].size, xxh128="0" * 32)
    files = (*files[:number], wrong, *files[number + 1 :])
    archive.index = msgspec.structs.replace(archive.index, files=files)
    with pytest.raises(IntegrityError, match="holds another 'lib/large'"):
        list(RelocatedTar(archive, Relocation(PREFIX, PREFIX), lambda count: None))
