"""The archive: written, read by others, extracted, relocated, refused when damaged."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from itertools import pairwise, repeat
from typing import TYPE_CHECKING, Literal

import msgspec
import pytest
import pyzstd
import zstandard

from envferry.archive import index as index_module
from envferry.archive.extraction import ExtractOptions, extract_tree
from envferry.archive.index import FileEntry, FrameEntry, Index, encode_index
from envferry.archive.members import FRAME_BYTES, Member, Owner, Recorded
from envferry.archive.prefix_search import find_edits
from envferry.archive.prefixes import Relocation
from envferry.archive.reader import Archive, FileSource
from envferry.archive.seek_table import encode_seek_table
from envferry.archive.tar import END_OF_ARCHIVE, MAX_OCTAL_SIZE, header_size, tar_header
from envferry.archive.validation import is_plain, path_fault
from envferry.archive.writer import ArchiveOptions, WrittenArchive, write_archive
from envferry.base.direct_io import is_cached
from envferry.errors import HostError, IntegrityError, PipelineError, SpecError
from tests.conftest import require

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PREFIX = "/opt/conda/envs/demo"
PLACEHOLDER = 255
RECORDED = Recorded("binary", PLACEHOLDER)
OPTIONS = ArchiveOptions(name="demo", platform="linux-64", prefix=PREFIX, mtime=315532800)
CONDA = Owner(rank=1, name="tool", kind="conda", version="1.0", build="h1_0")
PYPI = Owner(rank=1, name="wheel", kind="pypi", version="2.0")


def large_content() -> bytes:
    """Return a file of three frames whose prefix lies across the first seam."""
    padded = PREFIX.encode() + b"/share\0" + bytes(PLACEHOLDER - len(PREFIX))
    noise = os.urandom(1 << 16) * 320
    start = FRAME_BYTES - 7
    return noise[:start].replace(b"/", b"-") + b"\0" + padded + noise[: FRAME_BYTES + 99]


TREE: dict[str, bytes] = {
    "bin/tool": b"#!/opt/conda/envs/demo/bin/python\nprint('/opt/conda/envs/demo')\n",
    "bin/native": b"\x7fELF\0" + PREFIX.encode() + b"/lib\0" + bytes(PLACEHOLDER - 20) + b"rest\0",
    "lib/large.bin": large_content(),
    "lib/large.txt": b"x" * (2 * FRAME_BYTES) + b"\n" + PREFIX.encode() + b"\n",
    "lib/empty": b"",
    "lib/name with spaces\nand a newline": b"text",
    "lib/ünïcödé/ファイル.txt": "größe".encode(),
    f"lib/{'long-' * 24}/{'name' * 20}.txt": b"pax",
}
LINKS = {"bin/python": "tool", "lib/absolute": f"{PREFIX}/bin/tool"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory that holds TREE and LINKS."""
    root = tmp_path_factory.mktemp("tree")
    for path, content in TREE.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    (root / "lib/empty-directory").mkdir()
    for path, link in LINKS.items():
        (root / path).symlink_to(link)
    return root


def members_of(root: Path) -> list[Member]:
    """List a tree as members, half of them of a conda package."""
    members = []
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            entry = FileEntry(path=name, type="symlink", mode=0o777, link=str(path.readlink()))
            members.append(Member(entry=entry, owner=CONDA))
        elif path.is_dir():
            entry = FileEntry(path=name, type="directory", mode=0o755)
            members.append(Member(entry=entry, owner=Owner()))
        else:
            mode = 0o755 if name.startswith("bin/") else 0o644
            entry = FileEntry(path=name, mode=mode, size=path.stat().st_size)
            owner = CONDA if name.startswith("bin/") else PYPI
            recorded = RECORDED if name in ("bin/native", "lib/large.bin") else None
            members.append(Member(entry=entry, owner=owner, source=str(path), recorded=recorded))
    return members


def write(members: list[Member], target: Path, options: ArchiveOptions = OPTIONS) -> WrittenArchive:
    """Write an archive file of members."""
    with target.open("wb") as stream:
        return write_archive(
            stream, members, options=options, generate=lambda files: (), advance=lambda count: None
        )


@pytest.fixture(scope="module")
def written(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WrittenArchive]:
    """Return an archive of the tree and what was written."""
    target = tmp_path_factory.mktemp("archive") / "demo.tar.zst"
    return target, write(members_of(tree), target)


def extract(archive: Path, target: Path, prefix: str = PREFIX) -> None:
    """Extract an archive for a prefix."""
    target.mkdir()
    with FileSource(archive) as source:
        opened = Archive(source)
        options = ExtractOptions(relocation=Relocation(opened.index.prefix, prefix), threads=3)
        extract_tree(opened, target, options=options, advance=lambda count: None)


def listing(root: Path) -> dict[str, object]:
    """Describe every path of a tree: mode and content or link; of files the time, too.

    tarfile leaves links their own time, and GNU tar directories that it met before their files.
    """
    result: dict[str, object] = {}
    for path in root.rglob("*"):
        status = path.lstat()
        what: object = None
        if path.is_symlink():
            what = str(path.readlink())
        elif path.is_file():
            what = (path.read_bytes(), status.st_mtime)
        result[str(path.relative_to(root))] = (status.st_mode, what)
    return result


def test_extracted_tree_is_the_packed_one(
    written: tuple[Path, WrittenArchive], tmp_path: Path
) -> None:
    extract(written[0], tmp_path / "out")
    for path, content in TREE.items():
        assert (tmp_path / "out" / path).read_bytes() == content
    for path, link in LINKS.items():
        assert str((tmp_path / "out" / path).readlink()) == link
    assert (tmp_path / "out/lib/empty-directory").is_dir()


@pytest.mark.parametrize("name", ["large", "l" * 120])
def test_a_large_file_is_written_past_the_page_cache(tmp_path: Path, name: str) -> None:
    """From where it was decompressed: in the first frame, behind a header of any length."""
    content = os.urandom(1 << 20) * (2 * FRAME_BYTES // (1 << 20)) + b"end"
    (tmp_path / name).write_bytes(content)
    write(members_of(tmp_path), tmp_path / "archive")
    with (tmp_path / name).open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if is_cached(stream.fileno(), 0):
            pytest.skip("this file system keeps what it has written")
    extract(tmp_path / "archive", tmp_path / "out")
    with (tmp_path / "out" / name).open("rb") as stream:
        assert not is_cached(stream.fileno(), 0), "the first frame"
        assert not is_cached(stream.fileno(), FRAME_BYTES + (4 << 20)), "the second one"
        assert stream.read() == content


def test_python_tar_sees_the_same_tree(
    written: tuple[Path, WrittenArchive], tmp_path: Path
) -> None:
    with written[0].open("rb") as stream:
        raw = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True).read()
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        if hasattr(tarfile, "tar_filter"):
            tar.extraction_filter = tarfile.tar_filter
        tar.extractall(tmp_path / "tar")
    extract(written[0], tmp_path / "ours")
    assert listing(tmp_path / "tar") == listing(tmp_path / "ours")


def test_gnu_tar_and_zstd_read_it(written: tuple[Path, WrittenArchive], tmp_path: Path) -> None:
    require("zstd", shutil.which("zstd"))
    (tmp_path / "tar").mkdir()
    subprocess.run(["zstd", "-q", "-t", written[0]], check=True)
    subprocess.run(
        ["tar", "--zstd", "-xf", written[0], "-C", tmp_path / "tar"], check=True, umask=0o022
    )
    extract(written[0], tmp_path / "ours")
    assert listing(tmp_path / "tar") == listing(tmp_path / "ours")


def test_a_seekable_reader_finds_its_way(written: tuple[Path, WrittenArchive]) -> None:
    index = written[1].index
    entry = next(entry for entry in index.files if entry.path == "lib/large.txt")
    with pyzstd.SeekableZstdFile(written[0]) as stream:
        stream.seek(entry.offset + entry.size - 21)
        assert stream.read(21) == PREFIX.encode() + b"\n"


def test_same_tree_same_bytes(
    tree: Path, written: tuple[Path, WrittenArchive], tmp_path: Path
) -> None:
    again = write(list(reversed(members_of(tree))), tmp_path / "again.tar.zst")
    assert again.blake3 == written[1].blake3
    assert (tmp_path / "again.tar.zst").read_bytes() == written[0].read_bytes()


def test_an_unchanged_package_keeps_its_frames(tree: Path, tmp_path: Path) -> None:
    members = members_of(tree)
    full = write(members, tmp_path / "full.tar.zst")
    part = write([m for m in members if m.owner != PYPI], tmp_path / "part.tar.zst")
    conda = next(p for p in full.index.packages if p.kind == "conda")
    frames = full.index.frames[conda.first_frame : conda.first_frame + conda.frames]
    assert frames
    assert set(frames) <= set(part.index.frames)


@pytest.mark.parametrize("prefix", ["/srv/e", "/a/much/longer/place/for/environments/" + "x" * 150])
def test_relocation_edits_text_and_binary(
    written: tuple[Path, WrittenArchive], tmp_path: Path, prefix: str
) -> None:
    extract(written[0], tmp_path / "out", prefix)
    for path, content in TREE.items():
        found = (tmp_path / "out" / path).read_bytes()
        assert PREFIX.encode() not in found or path in prefix
        if b"\0" in content:
            assert len(found) == len(content)
            assert content.count(PREFIX.encode()) == found.count(prefix.encode() + b"/")
        else:
            moved = content.replace(PREFIX.encode(), prefix.encode())
            assert found.partition(b"\nprint")[2] == moved.partition(b"\nprint")[2]
            if path != "bin/tool" or len(prefix) < 100:
                assert found == moved
    assert str((tmp_path / "out/lib/absolute").readlink()) == f"{prefix}/bin/tool"


def test_a_prefix_that_does_not_fit_is_refused_before_anything_is_written(
    written: tuple[Path, WrittenArchive], tmp_path: Path
) -> None:
    with pytest.raises(HostError, match=r"(native|large.bin) has room for 255"):
        extract(written[0], tmp_path / "out", "/" + "x" * 300)
    assert list((tmp_path / "out").iterdir()) == []


def test_capacity_is_only_what_the_placeholder_left() -> None:
    content = b"\0" + PREFIX.encode() + b"/a:" + PREFIX.encode() + b"/b\0next string\0"
    edits = find_edits(content, PREFIX.encode(), RECORDED).edits
    assert edits is not None
    (string,) = edits.strings
    assert (string.count, string.capacity) == (2, string.length)


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.9, 0.999, 0.99999])
def test_a_flipped_bit_is_found(
    written: tuple[Path, WrittenArchive], tmp_path: Path, place: float
) -> None:
    data = bytearray(written[0].read_bytes())
    data[int(place * len(data))] ^= 4
    damaged = tmp_path / "damaged.tar.zst"
    damaged.write_bytes(data)
    with pytest.raises(IntegrityError, match="damaged"):
        extract(damaged, tmp_path / "out")


@pytest.mark.parametrize("keep", [0, 1, 8, 9, 500, 0.5, 0.99, -1])
def test_a_truncated_archive_is_refused(
    written: tuple[Path, WrittenArchive], tmp_path: Path, keep: float
) -> None:
    data = written[0].read_bytes()
    damaged = tmp_path / "damaged.tar.zst"
    damaged.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(IntegrityError):
        extract(damaged, tmp_path / "out")


def forge(written: tuple[Path, WrittenArchive], target: Path, index: Index) -> None:
    """Write the same frames with another index and a right seek table."""
    data = written[0].read_bytes()[: written[1].index_offset]
    frame = encode_index(index)
    sizes = [(entry.size, entry.tar_size) for entry in index.frames]
    target.write_bytes(data + frame + encode_seek_table([*sizes, (len(frame), 0)]))


def changed(index: Index, path: str, fields: dict[str, object]) -> Index:
    """Return an index in which one entry differs."""
    files = tuple(
        msgspec.structs.replace(entry, **fields) if entry.path == path else entry
        for entry in index.files
    )
    return msgspec.structs.replace(index, files=files)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("bin/tool", {"path": "/etc/passwd"}),
        ("bin/tool", {"path": "../outside"}),
        ("bin/tool", {"path": "bin/../../outside"}),
        ("bin/tool", {"path": "lib/empty"}),
        ("bin/tool", {"path": "bin/native/below-a-file"}),
        ("bin/tool", {"path": "bin/other"}),
        ("bin/tool", {"size": 1}),
        ("bin/tool", {"mode": 0o4755}),
        ("bin/tool", {"offset": 0}),
        ("bin/python", {"link": "/etc/passwd"}),
        ("bin/python", {"link": "../../outside"}),
        ("bin/python", {"link": "native"}),
        ("bin", {"type": "symlink", "mode": 0o777, "link": "/tmp"}),
    ],
)
def test_an_index_that_lies_is_refused(
    written: tuple[Path, WrittenArchive], tmp_path: Path, path: str, fields: dict[str, object]
) -> None:
    forge(written, tmp_path / "forged.tar.zst", changed(written[1].index, path, fields))
    with pytest.raises(IntegrityError):
        extract(tmp_path / "forged.tar.zst", tmp_path / "out")
    assert not (tmp_path / "outside").exists()


def test_links_that_escape_through_other_links_are_refused(tmp_path: Path) -> None:
    entries = [
        FileEntry(path="deep", type="directory", mode=0o755),
        FileEntry(path="deep/er", type="directory", mode=0o755),
        FileEntry(path="deep/er/up", type="symlink", mode=0o777, link="../.."),
        FileEntry(path="deep/er/out", type="symlink", mode=0o777, link="up/../outside"),
    ]
    members = [Member(entry=entry, owner=CONDA) for entry in entries]
    write(members, tmp_path / "links.tar.zst")
    with pytest.raises(IntegrityError, match="outside the environment"):
        extract(tmp_path / "links.tar.zst", tmp_path / "out")


def test_another_schema_is_named(written: tuple[Path, WrittenArchive], tmp_path: Path) -> None:
    newer = msgspec.structs.replace(written[1].index, schema=index_module.SCHEMA + 1)
    forge(written, tmp_path / "newer.tar.zst", newer)
    with pytest.raises(SpecError, match="schema 2, this envferry reads schema 1"):
        extract(tmp_path / "newer.tar.zst", tmp_path / "out")


def test_errors_are_ours_for_any_garbage(tmp_path: Path) -> None:
    for size in (0, 9, 17, 4096):
        (tmp_path / "garbage").write_bytes(os.urandom(size))
        with pytest.raises(PipelineError), FileSource(tmp_path / "garbage") as source:
            Archive(source)


def recut(path: Path, sizes: Iterator[int]) -> bytes:
    """Return an archive whose frames are cut at other places of the files' contents."""
    with FileSource(path) as source:
        archive = Archive(source)
        stream = b"".join(
            raw for number in range(len(archive.plans)) for raw in archive.read_run([number])
        )
    allowed = [
        place
        for entry in archive.index.files
        if entry.type == "file" and entry.size
        for place in range(entry.offset, entry.offset + entry.size, 1 << 12)
    ]
    cuts, next_cut = [0], next(sizes)
    for place in allowed:
        if place >= next_cut:
            cuts.append(place)
            next_cut = place + next(sizes)
    cuts += [len(stream) - len(END_OF_ARCHIVE), len(stream)]
    frames, entries = [], []
    for start, end in pairwise(cuts):
        compressed = zstandard.ZstdCompressor().compress(stream[start:end])
        frames.append(compressed)
        entries.append(FrameEntry.of(compressed, end - start))
    index = msgspec.structs.replace(archive.index, frames=tuple(entries))
    frame = encode_index(index)
    table = [(entry.size, entry.tar_size) for entry in entries]
    return b"".join([*frames, frame, encode_seek_table([*table, (len(frame), 0)])])


@pytest.mark.parametrize("size", [4_096, 12_288, 3_000_000, 50_000_000])
@pytest.mark.parametrize("prefix", [PREFIX, "/srv/other"])
def test_frames_may_be_cut_anywhere_in_a_file(
    written: tuple[Path, WrittenArchive], tmp_path: Path, size: int, prefix: str
) -> None:
    """Before the first byte of a content, too: the header then ends a frame."""
    extract(written[0], tmp_path / "expected", prefix)
    path = tmp_path / "recut.tar.zst"
    path.write_bytes(recut(written[0], repeat(size)))
    extract(path, tmp_path / "found", prefix)
    assert not subprocess.run(
        ["diff", "-r", "--no-dereference", tmp_path / "expected", tmp_path / "found"], check=False
    ).returncode


@pytest.mark.parametrize("type_", ["file", "directory", "symlink"])
@pytest.mark.parametrize("letter", ["a", "ä"])
def test_the_size_of_a_header_is_known_without_making_it(
    type_: Literal["file", "directory", "symlink"], letter: str
) -> None:
    for length in range(1, 520):
        entry = FileEntry(
            path=letter * length, type=type_, link="x" * length if type_ == "symlink" else ""
        )
        assert header_size(entry) == len(tar_header(entry, 0))
    for size in (MAX_OCTAL_SIZE, MAX_OCTAL_SIZE + 1):
        entry = FileEntry(path="a" * 150, size=size)
        assert header_size(entry) == len(tar_header(entry, 0))


HOSTILE_PATHS = (
    "", "/", "a/", "/a", "a//b", ".", "..", "./a", "../a", "a/.", "a/..", "a/./b", "a/../b", "a\0b",
    "x" * 256, "x" * 255 + "/y" * 200, "ä" * 200, "a/" * 300 + "b", "\udcff",
)  # fmt: skip


def test_a_path_that_is_plain_at_a_look_has_no_fault() -> None:
    for path in HOSTILE_PATHS:
        assert not is_plain(path)
    for path in ("a", "...", ".a", "a/.b", "a./b", "a..b/c..", "x" * 255, "a/" * 127 + "b"):
        assert is_plain(path)
        assert not path_fault(path)
