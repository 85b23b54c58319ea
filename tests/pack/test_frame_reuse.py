"""A pack that takes frames from an earlier archive gives the bytes of a pack from nothing."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec
import pytest
from blake3 import blake3

from envferry.archive.compression import describe_compression, new_compressor
from envferry.archive.frame_reuse import FasterWay, FrameNotes, FrameReuse
from envferry.archive.index import FrameEntry, encode_index
from envferry.archive.reader import Archive, FileSource
from envferry.archive.seek_table import encode_seek_table
from envferry.cli.main import run
from envferry.errors import NotFound, StoreError
from envferry.pack.earlier_pack import NOTES_KEPT, PackNote, PackNotes
from tests.support.environments import pip_record
from tests.support.packed_twice import LARGE, SITE, Disturbed, PackedTwice, noise

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.archive.reader import Source


def archive_offsets(path: Path) -> list[int]:
    """Return where the frames of an archive start, and the end of the last one."""
    with FileSource(path) as source:
        return Archive(source).offsets


@pytest.mark.parametrize("notes", [True, False])
def test_only_what_changed_is_compressed_again(two: PackedTwice, notes: bool) -> None:
    first, reuse = two.pack("dist", notes=notes)
    assert reuse == FrameReuse()
    two.change()
    second, reuse = two.pack("dist", notes=notes)
    assert second.archive_path != first.archive_path
    assert second.archive_path.read_bytes() == two.from_nothing()
    assert reuse.archive == str(first.archive_path)
    index_size = second.manifest.archive.index_size
    assert second.manifest.archive.size * 0.99 < reuse.size + index_size
    assert reuse.frames == len(archive_offsets(second.archive_path)) - 1 - 2  # wheel, the end


def test_another_version_changes_the_frames_of_its_package_alone(two: PackedTwice) -> None:
    two.pack("dist")
    info = two.tree / SITE / "wheel-2.0.dist-info"
    lines = (info / "RECORD").read_text().replace("wheel-2.0", "wheel-3.0")
    (info / "RECORD").write_text(lines)
    info.rename(info.with_name("wheel-3.0.dist-info"))
    second, reuse = two.pack("dist")
    assert second.archive_path.read_bytes() == two.from_nothing()
    assert reuse.frames == len(archive_offsets(second.archive_path)) - 1 - 2  # wheel, the end


def test_the_archive_of_the_run_before_is_found_where_it_was_written(two: PackedTwice) -> None:
    first, _ = two.pack("yesterday")
    two.change()
    second, reuse = two.pack("today")
    assert reuse.archive == str(first.archive_path)
    assert second.archive_path.read_bytes() == two.from_nothing()


def test_the_same_archive_is_written_again_over_itself(two: PackedTwice) -> None:
    first, _ = two.pack("dist")
    content = first.archive_path.read_bytes()
    again, reuse = two.pack("dist")
    assert again.archive_path == first.archive_path
    assert reuse.size > len(content) * 0.99
    assert again.archive_path.read_bytes() == content == two.from_nothing()


@pytest.mark.parametrize("notes", [True, False])
def test_a_frame_with_a_flipped_bit_is_not_taken(two: PackedTwice, notes: bool) -> None:
    first, _ = two.pack("dist", notes=notes)
    whole = two.pack("other", notes=notes, reuse=first.archive_path)[1]
    shutil.rmtree(two.root / "other")
    offsets = archive_offsets(first.archive_path)
    sizes = [end - start for start, end in pairwise(offsets)]
    damaged = min(range(len(sizes)), key=lambda number: sizes[number])
    content = bytearray(first.archive_path.read_bytes())
    content[offsets[damaged] + sizes[damaged] // 2] ^= 4
    first.archive_path.write_bytes(content)
    second, reuse = two.pack("dist", notes=notes, reuse=first.archive_path)
    assert second.archive_path.read_bytes() == two.from_nothing()
    is_end = damaged == len(sizes) - 1  # never taken from anywhere
    assert reuse.frames == whole.frames - (0 if is_end else 1)


@pytest.mark.parametrize("notes", [True, False])
def test_every_frame_damaged_means_no_frame_reused(two: PackedTwice, notes: bool) -> None:
    first, _ = two.pack("dist", notes=notes)
    offsets = archive_offsets(first.archive_path)
    content = bytearray(first.archive_path.read_bytes())
    for start in offsets[:-1]:
        content[start + 7] ^= 255
    first.archive_path.write_bytes(content)
    second, reuse = two.pack("today", notes=notes, reuse=first.archive_path)
    assert reuse.frames == 0
    assert second.archive_path.read_bytes() == two.from_nothing()


def test_another_prefix_is_looked_for_in_frames_that_are_taken(two: PackedTwice) -> None:
    """A note says where the prefix of its own pack was seen, and of no other."""
    other = "/opt/elsewhere/envs/demo"
    pip_record(two.tree, "names", {"names/paths.txt": f"{other}/bin\n".encode()})
    two.pack("dist")
    second, reuse = two.pack("dist", prefix=other)
    assert second.archive_path.read_bytes() == two.from_nothing(prefix=other)
    assert reuse.frames > 0
    with FileSource(second.archive_path) as source:
        edited = {entry.path for entry in Archive(source).index.files if entry.edits}
    assert f"{SITE}/names/paths.txt" in edited


@pytest.mark.parametrize("notes", [True, False])
def test_another_level_reuses_nothing(two: PackedTwice, notes: bool) -> None:
    two.pack("dist", notes=notes, level=1)
    second, reuse = two.pack("dist", notes=notes, level=6)
    assert reuse == FrameReuse()
    assert second.archive_path.read_bytes() == two.from_nothing(level=6)


def test_another_version_of_zstd_reuses_nothing(
    two: PackedTwice, monkeypatch: pytest.MonkeyPatch
) -> None:
    two.pack("dist")
    note_path = next((two.root / "notes").iterdir())
    note = msgspec.json.decode(note_path.read_bytes(), type=PackNote)
    assert note.compression == describe_compression(3)
    older = note.compression.replace("zstd=1.", "zstd=0.", 1)
    note_path.write_bytes(msgspec.json.encode(msgspec.structs.replace(note, compression=older)))
    assert two.pack("dist", reuse=None)[1] == FrameReuse()


@pytest.mark.parametrize("kept", [0, 1, 0.5, 0.999])
def test_of_a_truncated_archive_nothing_is_reused(two: PackedTwice, kept: float) -> None:
    first, _ = two.pack("dist")
    content = first.archive_path.read_bytes()
    first.archive_path.write_bytes(content[: int(len(content) * kept) if kept != 1 else 1])
    second, reuse = two.pack("today")
    assert reuse == FrameReuse()
    assert second.archive_path.read_bytes() == two.from_nothing() == content


def test_a_name_proves_nothing(two: PackedTwice) -> None:
    first, _ = two.pack("dist")
    two.change()
    (two.tree / "lib/torch.bin").write_bytes(noise(9, LARGE))
    second, reuse = two.pack("dist", reuse=first.archive_path)
    assert second.archive_path.read_bytes() == two.from_nothing()
    assert reuse.frames > 0


def test_an_index_that_lies_is_found_out(two: PackedTwice) -> None:
    """A stranger's archive: its index says the tree's checksums, its frames hold something else."""
    first, _ = two.pack("dist", notes=False)
    with FileSource(first.archive_path) as source:
        honest = Archive(source)
        index = honest.index
        frames = [bytes(raw) for n in range(len(index.frames)) for raw in honest.read_run([n])]
    number = next(n for n, raw in enumerate(frames) if noise(2, 64) in raw)
    frames[number] = frames[number].replace(noise(2, 64), b"import evil".ljust(64))
    packed = [new_compressor().compress(raw) for raw in frames]
    entries = tuple(FrameEntry.of(each, len(raw)) for each, raw in zip(packed, frames, strict=True))
    index_frame = encode_index(msgspec.structs.replace(index, frames=entries))
    sizes = [(entry.size, entry.tar_size) for entry in entries]
    hostile = two.root / "hostile.tar.zst"
    hostile.write_bytes(
        b"".join(packed) + index_frame + encode_seek_table([*sizes, (len(index_frame), 0)])
    )
    second, reuse = two.pack("today", reuse=hostile)
    assert second.archive_path.read_bytes() == first.archive_path.read_bytes()
    assert 0 < reuse.frames == len(frames) - 1 - 1


def test_a_note_is_for_its_archive_alone(two: PackedTwice) -> None:
    """Another archive under the noted name is a stranger's, and treated as one."""
    first, _ = two.pack("dist")
    note_path = next((two.root / "notes").iterdir())
    note = msgspec.json.decode(note_path.read_bytes(), type=PackNote)
    strange = msgspec.structs.replace(note, index_blake3="0" * 64, frames=FrameNotes(plain=("0",)))
    note_path.write_bytes(msgspec.json.encode(strange))
    second, reuse = two.pack("today")
    assert reuse.size > 0
    assert second.archive_path.read_bytes() == first.archive_path.read_bytes()


@pytest.mark.parametrize("how", ["open", "link"])
def test_a_note_that_another_user_can_have_written_is_passed_over(
    two: PackedTwice, how: str
) -> None:
    two.pack("dist")
    notes = PackNotes(two.root / "notes")
    (path,) = notes.directory.iterdir()
    assert len(notes.read(path.name)) == 1
    if how == "open":
        path.chmod(0o666)
    else:
        path.replace(two.root / "elsewhere.json")
        path.symlink_to(two.root / "elsewhere.json")
    assert notes.read(path.name) == []


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"schema": 1}', b'{"schema": 99}', b"\xff"])
def test_a_damaged_note_is_passed_over(two: PackedTwice, text: bytes) -> None:
    first, _ = two.pack("dist")
    next((two.root / "notes").iterdir()).write_bytes(text)
    second, _ = two.pack("today")
    assert second.archive_path.read_bytes() == first.archive_path.read_bytes()


def test_an_archive_that_is_replaced_meanwhile_is_not_read(two: PackedTwice) -> None:
    first, _ = two.pack("dist")
    content = first.archive_path.read_bytes()

    def replace() -> None:
        fresh = first.archive_path.with_name("fresh")
        fresh.write_bytes(bytes(len(content)))
        fresh.replace(first.archive_path)

    second, reuse = two.pack("today", progress=Disturbed(replace))
    assert second.archive_path.read_bytes() == content
    assert reuse.size > len(content) * 0.9


def test_an_archive_that_is_written_over_meanwhile_is_found_out(two: PackedTwice) -> None:
    first, _ = two.pack("dist")
    content = first.archive_path.read_bytes()
    over = Disturbed(lambda: first.archive_path.write_bytes(bytes(len(content) // 2)))
    second, reuse = two.pack("today", progress=over)
    assert second.archive_path.read_bytes() == content
    # What lies in the end that was read at once is known already, and is right.
    assert reuse.size < 1 << 18


def test_a_named_archive_must_be_there(two: PackedTwice) -> None:
    with pytest.raises(NotFound, match="has no frames to reuse"):
        two.pack("dist", reuse=two.root / "nothing.tar.zst")


def test_what_cannot_be_reused_is_said(two: PackedTwice, caplog: pytest.LogCaptureFixture) -> None:
    (two.root / "text").write_bytes(b"no archive")
    assert two.pack("dist", reuse=two.root / "text")[1] == FrameReuse()
    assert "nothing is reused" in caplog.text


def test_notes_are_few(two: PackedTwice) -> None:
    for number in range(NOTES_KEPT + 2):
        (two.tree / SITE / "wheel/__init__.py").write_text(f"x = {number}\n")
        artifact, _ = two.pack("dist")
    notes = sorted(path.name for path in (two.root / "notes").iterdir())
    assert len(notes) == NOTES_KEPT
    assert f"{artifact.manifest.stem}.json" in notes


def test_the_note_says_what_frames_hold(two: PackedTwice) -> None:
    artifact, _ = two.pack("dist")
    note = msgspec.json.decode(next((two.root / "notes").iterdir()).read_bytes(), type=PackNote)
    with FileSource(artifact.archive_path) as source:
        archive = Archive(source)
        frames = [bytes(raw) for n in range(len(archive.plans)) for raw in archive.read_run([n])]
    held = [blake3(raw).hexdigest() for raw in frames]
    has_prefix = tuple(n for n, raw in enumerate(frames) if str(two.tree).encode() in raw)
    assert list(note.frames.plain) == held
    assert note.frames.prefix == str(two.tree)
    assert note.frames.prefixed == has_prefix
    assert note.index_blake3 == artifact.manifest.archive.index_blake3


def test_a_note_vouches_for_the_digests_of_its_archive(two: PackedTwice) -> None:
    artifact, _ = two.pack("dist")
    notes, manifest = PackNotes(two.root / "notes"), artifact.manifest
    assert notes.vouch_for(manifest)
    for field in ("size", "xxh128", "blake3", "index_blake3"):
        facts = msgspec.structs.replace(manifest.archive, **{field: 0 if field == "size" else "0"})
        assert not notes.vouch_for(msgspec.structs.replace(manifest, archive=facts))
    (path,) = notes.directory.iterdir()
    older = json.loads(path.read_bytes())
    del older["facts"]
    path.write_text(json.dumps(older))
    assert notes.read(path.name), "an older note still says what frames hold"
    assert not notes.vouch_for(manifest)


def test_the_command_says_how_much_it_took(
    two: PackedTwice, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(two.root)
    monkeypatch.setenv("ENVFERRY_CACHE", str(two.root / "cache"))
    monkeypatch.setenv("ENVFERRY_REGISTRY", "artifacts")
    argv = ["pack", str(two.tree), "-n", "demo", "--json"]
    assert run(argv) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["reused"] == {"archive": "", "frames": 0, "size": 0}
    two.change()
    assert run([*argv, "--reuse", first["archive"]]) == 0
    told = capsys.readouterr()
    second = json.loads(told.out)
    assert second["size"] * 0.9 < second["reused"]["size"] < second["size"]
    assert second["reused"]["archive"].endswith(first["archive"])
    assert f"are taken from {second['reused']['archive']}, unchanged" in told.err
    assert run([*argv, "--reuse", "nowhere.tar.zst"]) == 7
    # What was pushed into a directory is found there, when all else is gone.
    assert run(["push", second["archive"], "-q"]) == 0
    shutil.rmtree(two.root / "dist")
    capsys.readouterr()
    assert run(argv) == 0
    third = json.loads(capsys.readouterr().out)
    assert third["id"] == second["id"]
    assert third["reused"]["archive"].startswith(str(two.root / "artifacts/v1/envs/demo"))


def test_only_what_goes_to_a_registry_of_images_is_hashed_for_images(
    two: PackedTwice, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The archive is the same; a push to an OCI registry computes what is missing."""
    monkeypatch.chdir(two.root)
    monkeypatch.setenv("ENVFERRY_CACHE", str(two.root / "cache"))
    archives, manifests = set(), []
    for number, registry in enumerate(("artifacts", "oci://host/environments", "s3://bucket/envs")):
        monkeypatch.setenv("ENVFERRY_REGISTRY", registry)
        assert run(["pack", str(two.tree), "-n", "demo", "-o", f"dist-{number}"]) == 0
        archive = two.root / capsys.readouterr().out.strip()
        archives.add(archive.read_bytes())
        stem = archive.name.removesuffix(".tar.zst")
        manifests.append(json.loads((archive.parent / f"{stem}.manifest.json").read_text()))
    assert len(archives) == 1
    for_folder, for_images, for_s3 = manifests
    assert for_folder == for_s3
    assert len(for_images["archive"].pop("tar_sha256")) == 64
    assert for_s3["archive"].pop("tar_sha256") == ""
    assert for_s3 == for_images


class RegistryArchive:
    """An archive in a registry whose connection breaks after some reads, if it is told to."""

    def __init__(self, path: Path, reads: int | None = None) -> None:
        self.data, self.name = path.read_bytes(), "an archive in a registry"
        self.left, self.failed = reads, 0

    @property
    def size(self) -> int:
        """The bytes of the archive."""
        return len(self.data)

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`."""
        if self.left == 0:
            self.failed += 1
            msg = "the registry cannot be reached"
            raise StoreError(msg)
        if self.left is not None:
            self.left -= 1
        return self.data[offset : offset + length]


@pytest.mark.parametrize("notes", [True, False])
def test_frames_come_from_a_registry_where_none_is_here(two: PackedTwice, notes: bool) -> None:
    """As for a worker or a CI runner that keeps nothing: the bytes are the same."""
    first, _ = two.pack("first", notes=notes)
    source = RegistryArchive(first.archive_path)
    shutil.rmtree(first.directory)
    two.change()
    second, reuse = two.pack("second", notes=notes, published=lambda: source)
    assert second.archive_path.read_bytes() == two.from_nothing()
    assert reuse.archive == source.name
    assert reuse.frames, "the first ones are taken whatever it costs"


@pytest.mark.parametrize("reads", [0, 1, 2, 3, 4])
def test_a_registry_that_breaks_off_costs_no_pack(two: PackedTwice, reads: int) -> None:
    first, _ = two.pack("first")
    source = RegistryArchive(first.archive_path, reads)
    shutil.rmtree(first.directory)
    two.change()
    second, _ = two.pack("second", published=lambda: source)
    assert second.archive_path.read_bytes() == two.from_nothing()
    # Each attempt may be minutes of retries: those that run at once fail, and no more begin.
    assert 1 <= source.failed <= 8


def test_an_archive_on_this_machine_is_nearer_than_a_registry(two: PackedTwice) -> None:
    two.pack("first")
    two.change()

    def refuse() -> Source:
        raise AssertionError

    _, reuse = two.pack("first", published=refuse)
    assert reuse.frames


def test_the_faster_way_is_taken() -> None:
    """By the clock, which counts a slow line as well as a slow core."""
    faster = FasterWay()
    for _ in range(FasterWay.TRIES):
        assert faster.is_to_take()
        faster.note("take", 2.0, 100)
    for _ in range(FasterWay.TRIES):
        assert not faster.is_to_take(), "the other way is not known yet"
        faster.note("compress", 1.0, 100)
    assert not faster.is_to_take()
    for _ in range(100):
        faster.note("compress", 3.0, 100)
    assert faster.is_to_take()
