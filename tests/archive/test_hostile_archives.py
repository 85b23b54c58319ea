"""Archives made to do harm, and bytes that are none: refused, by name, before anything is there."""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import xxhash
import zstandard
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envferry.archive.extraction import ExtractOptions, extract_tree
from envferry.archive.index import (
    INDEX_MAGIC,
    MAX_INDEX_BYTES,
    SKIPPABLE_INDEX,
    BinaryString,
    FileEntry,
    FrameEntry,
    Index,
    PrefixEdits,
    decode_index,
    encode_index,
    skippable_frame,
)
from envferry.archive.links import LinkCheck
from envferry.archive.prefixes import Relocation
from envferry.archive.reader import Archive, FileSource
from envferry.archive.relocating import without_stale_checksums
from envferry.archive.seek_table import FOOTER, decode_seek_table, encode_seek_table
from envferry.archive.shebangs import with_short_shebang
from envferry.archive.tar import END_OF_ARCHIVE
from envferry.archive.validation import MAX_FRAME_BYTES
from envferry.artifacts import check_sbom
from envferry.base.json import from_json
from envferry.errors import IntegrityError, PipelineError
from envferry.models import Manifest
from tests.support.archives import PREFIX, small_archive
from tests.support.hostile import Memory, open_and_read, read_all, require_error_of_ours
from tests.support.installing import install

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


CORPUS = Path(__file__).parents[1] / "corpus"
CONTENTS = {"bin/tool": b"#!/opt/conda/envs/demo/bin/python\n", "lib/data": b"data" * 100}
FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[*settings().suppress_health_check, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the bytes of a small archive with nothing wrong."""
    path = tmp_path_factory.mktemp("good") / "demo.tar.zst"
    small_archive(path, CONTENTS)
    return path.read_bytes()


def forged(good: bytes, index: Index, frames: list[bytes] | None = None) -> bytes:
    """Return an archive with another index, and other frames, and all sums right."""
    with_frames = Archive(Memory(good))
    if frames is None:
        ends = with_frames.offsets
        frames = [good[a:b] for a, b in pairwise(ends)]
    frame = encode_index(index)
    sizes = [(entry.size, entry.tar_size) for entry in index.frames]
    return b"".join(frames) + frame + encode_seek_table([*sizes, (len(frame), 0)])


def with_file(index: Index, victim: str, /, **fields: Any) -> Index:
    """Return an index with one entry changed."""
    files = tuple(
        msgspec.structs.replace(entry, **fields) if entry.path == victim else entry
        for entry in index.files
    )
    return msgspec.structs.replace(index, files=files)


def edits(*strings: tuple[int, int, int, int]) -> PrefixEdits:
    """Return prefix edits of a binary file."""
    return PrefixEdits(strings=tuple(BinaryString(*string) for string in strings))


def lies(index: Index) -> Iterator[Index]:
    """Yield indexes that must be refused."""
    change = msgspec.structs.replace
    yield change(index, id="../../../..")
    yield change(index, name="..")
    yield change(index, platform="../x")
    yield change(index, prefix="")
    yield change(index, prefix="relative")
    yield change(index, prefix="/a/../b")
    yield change(index, prefix="/a\nb")
    yield change(index, prefix="//opt/x")
    yield change(index, prefix="/opt/$(id)")
    yield change(index, mtime=-1)
    yield change(index, packages=())
    yield change(index, packages=(*index.packages, *index.packages))
    yield change(index, files=(*index.files, index.files[-1]))
    yield change(index, files=index.files[:-1])
    yield change(index, files=tuple(reversed(index.files)))
    yield with_file(index, "bin/tool", mode=0o4755)
    yield with_file(index, "bin/tool", size=-1)
    yield with_file(index, "bin/tool", path="/bin/tool")
    yield with_file(index, "bin/tool", path="bin//tool")
    yield with_file(index, "bin/tool", path="bin/to\0ol")
    yield with_file(index, "lib", type="symlink", mode=0o777, link="/etc")
    yield with_file(index, "lib/data", edits=edits((0, 10, 10, 0)))
    yield with_file(index, "lib/data", edits=edits((-5, 10, 10, 1)))
    yield with_file(index, "lib/data", edits=edits((0, 10, 100_000, 1)))
    yield with_file(index, "lib/data", edits=edits((0, 20, 10, 1)))
    yield with_file(index, "lib/data", edits=edits((0, 20, 20, 1), (10, 20, 20, 1)))
    yield with_file(index, "lib", edits=PrefixEdits(text=True))
    for at in ((5, 5), (9, 2), (-1,), (400,)):
        yield with_file(index, "lib/data", edits=PrefixEdits(text=True, at=at))
    strings = edits((0, 20, 20, 1)).strings
    yield with_file(index, "lib/data", edits=PrefixEdits(strings=strings, at=(0, 3)))
    for link in ("data", "/opt/conda/envs/demo/../x", "/x/../opt/conda/envs/demo/lib", "a/" * 3000):
        yield with_file(index, "lib/data", type="symlink", mode=0o777, size=0, xxh128="", link=link)
    yield with_file(index, "lib/data", path="lib/" + "d" * 256)
    yield with_file(index, "lib/data", path="lib/" + "/".join("d" * 300))
    yield with_file(index, "lib/data", path="lib/" + "/".join(["d" * 200] * 20))
    bomb = change(index.frames[0], tar_size=MAX_FRAME_BYTES + 512)
    yield change(index, frames=(bomb, *index.frames[1:]))
    empty = change(index.frames[0], tar_size=0)
    yield change(index, frames=(*index.frames[:-1], empty, index.frames[-1]))


def test_every_lie_is_refused_before_anything_is_written(
    good: bytes, tmp_path: Path, envs: Path
) -> None:
    for number, index in enumerate(lies(Archive(Memory(good)).index)):
        path = tmp_path / f"{number}.tar.zst"
        frames = [b"x" * entry.size for entry in index.frames]
        path.write_bytes(forged(good, index, frames))
        with pytest.raises(IntegrityError):
            install(path, envs)
        assert list(envs.iterdir()) == [], number


def frame_of(raw: bytes) -> tuple[bytes, FrameEntry]:
    """Compress a frame and describe it."""
    compressed = zstandard.ZstdCompressor().compress(raw)
    entry = FrameEntry(
        size=len(compressed),
        tar_size=len(raw),
        xxh128=xxhash.xxh3_128_hexdigest(compressed),
        blake3=blake3(compressed).hexdigest(),
    )
    return compressed, entry


def replaced(good: bytes, number: int, compressed: bytes, entry: FrameEntry) -> bytes:
    """Return an archive with one frame replaced."""
    archive = Archive(Memory(good))
    ends = archive.offsets
    frames = [good[a:b] for a, b in pairwise(ends)]
    entries = list(archive.index.frames)
    frames[number], entries[number] = compressed, entry
    return forged(good, msgspec.structs.replace(archive.index, frames=tuple(entries)), frames)


def require_refused(data: bytes, tmp_path: Path, envs: Path, reason: str) -> None:
    """Install and expect exit code 8, and nothing left."""
    (tmp_path / "forged.tar.zst").write_bytes(data)
    with pytest.raises(IntegrityError, match=reason):
        install(tmp_path / "forged.tar.zst", envs)
    assert not (envs / "demo").exists()
    assert [path.name for path in envs.rglob("*") if path.is_file()] in ([], [".lock"])


def test_a_stream_that_contradicts_its_index(good: bytes, tmp_path: Path, envs: Path) -> None:
    archive = Archive(Memory(good))
    [raw] = archive.read_run([1])
    for place, reason in (
        (0, "match the index at"),
        (520, "match the index"),
        (-1, "match the index at"),
    ):
        changed = bytearray(raw)
        changed[place] ^= 1
        data = replaced(good, 1, *frame_of(bytes(changed)))
        require_refused(data, tmp_path, envs, reason)
    last = len(archive.plans) - 1
    data = replaced(good, last, *frame_of(b"\1" + END_OF_ARCHIVE[1:]))
    require_refused(data, tmp_path, envs, "does not end at its last frame")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda frame: frame + zstandard.ZstdCompressor().compress(bytes(512)), "unused data"),
        (lambda frame: frame + skippable_frame(0, b""), "8 bytes of unused data"),
        (lambda frame: frame[:-1], "cut off"),
    ],
)
def test_a_frame_that_is_not_one_whole_frame_is_refused(
    good: bytes, tmp_path: Path, envs: Path, change: Callable[[bytes], bytes], reason: str
) -> None:
    [raw] = Archive(Memory(good)).read_run([1])
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    changed = change(compressor.compress(raw))
    data = replaced(good, 1, changed, FrameEntry.of(changed, len(raw)))
    require_refused(data, tmp_path, envs, reason)


def test_a_bomb_is_not_unpacked(good: bytes, tmp_path: Path, envs: Path) -> None:
    compressed, entry = frame_of(bytes(200 << 20))
    small = msgspec.structs.replace(entry, tar_size=Archive(Memory(good)).index.frames[1].tar_size)
    data = replaced(good, 1, compressed, small)
    require_refused(data, tmp_path, envs, "size is not the one in the index")


def test_an_index_that_claims_to_be_huge_is_not_unpacked() -> None:
    compressed = zstandard.ZstdCompressor(write_checksum=False).compress(bytes(1000))
    header = struct.pack("<IBQ", 0xFD2FB528, 0b1110_0000, MAX_INDEX_BYTES + 1)
    lying = header + compressed[6:]
    payload = INDEX_MAGIC + xxhash.xxh3_128_digest(lying) + lying
    with pytest.raises(IntegrityError, match="claims to hold"):
        decode_index(skippable_frame(SKIPPABLE_INDEX, payload), "bomb")


def test_an_index_of_another_length_is_refused(good: bytes) -> None:
    frame = encode_index(Archive(Memory(good)).index)
    assert decode_index(frame, "it")
    for length in (0, len(frame) - 9, len(frame) - 7):
        with pytest.raises(IntegrityError, match="no envferry index"):
            decode_index(frame[:4] + length.to_bytes(4, "little") + frame[8:], "it")
    compressed = frame[32:] + b"more"
    payload = INDEX_MAGIC + xxhash.xxh3_128_digest(compressed) + compressed
    with pytest.raises(IntegrityError, match="the index of it is damaged"):
        decode_index(skippable_frame(SKIPPABLE_INDEX, payload), "it")


def test_a_million_frames_are_refused(good: bytes) -> None:
    index = Archive(Memory(good)).index
    frames = (index.frames[-1],) * 1_000_000
    many = msgspec.structs.replace(index, frames=frames)
    with pytest.raises(IntegrityError):
        Archive(Memory(forged(good, many, [b"x" * frames[0].size * len(frames)])))


def test_what_an_index_may_hold_follows_from_its_size() -> None:
    """A hundred kilobytes that are a million entries: refused before they are decompressed."""
    entries = b'{"path":"a"},' * 1_000_000
    compressed = zstandard.ZstdCompressor().compress(b'{"schema":1,"files":[' + entries + b"]}")
    payload = INDEX_MAGIC + xxhash.xxh3_128_digest(compressed) + compressed
    with pytest.raises(IntegrityError, match=r"claims to hold 13000023 bytes, at most"):
        decode_index(skippable_frame(SKIPPABLE_INDEX, payload), "bomb")


@pytest.mark.parametrize(
    "text", [b'{"schema":1,"zz":' + b"[" * 9999, b'{"schema":1,"name":"\xff"}']
)
def test_json_that_no_parser_likes_is_damage(text: bytes, tmp_path: Path) -> None:
    compressed = zstandard.ZstdCompressor().compress(text)
    payload = INDEX_MAGIC + xxhash.xxh3_128_digest(compressed) + compressed
    with pytest.raises(IntegrityError, match="the index of it is damaged"):
        decode_index(skippable_frame(SKIPPABLE_INDEX, payload), "it")
    with pytest.raises(IntegrityError, match="it is damaged"):
        from_json(text, Manifest, "it")
    with pytest.raises(IntegrityError, match="it is damaged"):
        check_sbom(text, "it")
    assert without_stale_checksums(text, ()) == text


class CountingDict(dict[Any, Any]):
    """A table that counts how often it is asked."""

    count = 0

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """Count, then look up."""
        self.count += 1
        return super().setdefault(key, default)


@pytest.mark.parametrize("kind", ["deep", "chain", "loop", "fan"])
def test_links_are_followed_in_linear_time(kind: str) -> None:
    """What is counted are the names that are looked up, against those that there are."""
    folder = "/".join("d" * 200)
    targets = {
        "deep": {f"{folder}/l{number}": "../" * 20 + "x" for number in range(300)},
        "chain": {f"l{number}": f"a/../l{number + 1}" for number in range(300)},
        "loop": {f"l{number}": f"l{(number + 1) % 300}/b" for number in range(300)},
        # Each leads twice through the one before: 2^30 ways.
        "fan": {f"l{number}": f"l{number - 1}/../l{number - 1}" for number in range(1, 30)},
    }[kind]
    files = [
        FileEntry(path=path, type="symlink", mode=0o777, link=to) for path, to in targets.items()
    ]
    check = LinkCheck(files, PREFIX)
    check.children = counting = CountingDict(check.children)
    faults = list(check.faults())
    parts = sum(len(to.split("/")) for to in targets.values())
    assert counting.count <= parts + 40 * 3
    assert bool(faults) == (kind in ("chain", "loop", "fan"))


def test_a_first_line_without_an_end_is_passed_over() -> None:
    """A regular expression would look for a program at every one of its million slashes."""
    content = b"#!" + PREFIX.encode() + b"/bin/x" * 1_000_000
    assert with_short_shebang(content, PREFIX.encode()) == content


def test_a_seek_table_that_claims_more_than_there_is() -> None:
    for count in (0, 1, 2**32 - 1):
        data = bytes(100) + FOOTER.pack(count, 0, 0x8F92EAB1)
        with pytest.raises(IntegrityError):
            Archive(Memory(data))


def test_names_that_the_file_system_holds_for_one_are_refused(good: bytes, tmp_path: Path) -> None:
    """What a file system without case does: the second name is there already."""
    target = tmp_path / "target"
    (target / "bin").mkdir(parents=True)
    (target / "bin/tool").write_bytes(b"the other name")
    archive = Archive(Memory(good))
    options = ExtractOptions(relocation=Relocation(PREFIX, PREFIX))
    with pytest.raises(IntegrityError, match="the same name on this file system"):
        extract_tree(archive, target, options=options, advance=lambda count: None)
    assert (target / "bin/tool").read_bytes() == b"the other name"


@FUZZ
@given(data=st.data())
def test_any_changed_byte_is_an_error_of_ours(good: bytes, tmp_path: Path, data: Any) -> None:
    """Bytes changed anywhere: the archive opens and reads as before, or is refused."""
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(changed) - 1))
        changed[place] = data.draw(st.integers(0, 255))
    open_and_read(bytes(changed))


@FUZZ
@given(st.binary(max_size=400))
def test_any_bytes_before_a_footer(data: bytes) -> None:
    open_and_read(data + FOOTER.pack(len(data) // 8, 0, 0x8F92EAB1))


@FUZZ
@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))))
def test_seek_tables_come_back(sizes: list[tuple[int, int]]) -> None:
    assert decode_seek_table(encode_seek_table(sizes), "table") == sizes


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


@FUZZ
@given(data=st.data())
def test_any_value_in_an_index_is_accepted_or_refused(good: bytes, data: Any) -> None:
    """One value of a right index replaced by any JSON."""
    document = json.loads(msgspec.json.encode(Archive(Memory(good)).index))
    place: Any = document
    while True:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(list(keys)))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(VALUES)
    require_error_of_ours(json.dumps(document).encode())


@pytest.mark.parametrize("path", sorted(CORPUS.glob("index-*.json")), ids=lambda path: path.stem)
def test_the_kept_corpus_of_indexes(path: Path) -> None:
    require_error_of_ours(path.read_bytes())


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.tar.zst")), ids=lambda path: path.stem)
def test_the_kept_corpus_of_archives(path: Path) -> None:
    with FileSource(path) as source, pytest.raises(PipelineError):
        read_all(source)


@FUZZ
@given(content=st.binary(max_size=300), prefix=st.text("abc/ '\"", min_size=1, max_size=200))
def test_first_lines_of_any_kind(content: bytes, prefix: str) -> None:
    line = b"#!/" + prefix.encode() + b"/bin/python" + content
    for text in (content, b"#!" + content, line):
        assert with_short_shebang(text, b"/" + prefix.encode()).endswith(text[-1:])
