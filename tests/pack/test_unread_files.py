"""A pack does not read what was not written to since the pack before; the bytes stay the same."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import msgspec
import pytest

from envferry.archive.reader import Archive, FileSource
from envferry.base import file_times
from envferry.base.file_stamps import TREE_NOTE, StampedTree, stamp_files
from envferry.base.sha256 import sha256_hex
from envferry.build.build_dir import BuildDir
from envferry.build.earlier_build import EarlierBuild, TreeNote
from envferry.build.tree_materials import Materials
from envferry.errors import HostError
from envferry.pack.cuda_code import cuda_code
from envferry.pack.earlier_pack import PackNote
from envferry.pack.env_members import Listing
from tests.support.environments import conda_record, pip_record
from tests.support.packed_twice import (
    LARGE,
    SITE,
    Disturbed,
    PackedTwice,
    add_large_packages,
    noise,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIBRARY = "lib/torch.bin"


@pytest.fixture
def unread(tree: Path, tmp_path: Path) -> PackedTwice:
    """Return an environment of which a second pack reads what has changed."""
    add_large_packages(tree)
    return PackedTwice(tree, tmp_path, reads_all=False)


def without(tree: Path, path: str = LIBRARY) -> Disturbed:
    """Take a file away when packing begins, after the tree was listed: it cannot be read."""
    return Disturbed((tree / path).unlink)


def test_what_was_not_written_to_is_not_read(unread: PackedTwice) -> None:
    unread.pack("dist")
    unread.change()
    expected = unread.from_nothing()
    second, reuse = unread.pack("dist", progress=without(unread.tree))
    assert second.archive_path.read_bytes() == expected
    assert reuse.size > len(expected) * 0.9


def test_a_pack_that_read_nothing_serves_the_next_one_as_well(unread: PackedTwice) -> None:
    unread.pack("dist")
    for number in range(3):
        (unread.tree / SITE / "wheel/__init__.py").write_bytes(b"x = %d\n" % number)
        unread.pack("dist")
    expected = unread.from_nothing()
    last, _ = unread.pack("dist", progress=without(unread.tree))
    assert last.archive_path.read_bytes() == expected


def test_a_library_that_goes_meanwhile_is_named(unread: PackedTwice) -> None:
    """It is not packed from the disk, but looked into, for which GPUs it has code."""
    conda_record(unread.tree, "cuda", {"lib/libcuda.so": noise(4, 5000)})
    unread.pack("dist")
    listing = Listing(unread.tree, str(unread.tree))
    (unread.tree / "lib/libcuda.so").unlink()
    with pytest.raises(HostError, match=r"cannot read .*/lib/libcuda\.so"):
        cuda_code(listing.members)


def written_in_place(path: Path) -> None:
    """Write other bytes into a file, and give it its time back."""
    status = path.stat()
    with path.open("r+b") as stream:
        stream.write(noise(7, 4096))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced(path: Path) -> None:
    """Put another file of the same size and time in a file's place."""
    status, fresh = path.stat(), path.with_name("fresh")
    fresh.write_bytes(noise(8, LARGE)[: status.st_size])
    os.utime(fresh, ns=(status.st_atime_ns, status.st_mtime_ns))
    fresh.replace(path)


def made_executable(path: Path) -> None:
    """Change what the archive has besides the content."""
    path.chmod(0o755)


@pytest.mark.parametrize("change", [written_in_place, replaced, made_executable])
@pytest.mark.parametrize("path", [LIBRARY, "lib/torch.txt", f"{SITE}/other/__init__.py"])
def test_what_was_written_to_is_read(
    unread: PackedTwice, change: Callable[[Path], None], path: str
) -> None:
    unread.pack("dist")
    change(unread.tree / path)
    second, _ = unread.pack("dist")
    assert second.archive_path.read_bytes() == unread.from_nothing()


def test_a_file_that_was_written_to_just_now_is_read_the_next_time(unread: PackedTwice) -> None:
    """In the same tick of the clock it could be written to once more, and keep its ctime."""
    library = unread.tree / LIBRARY
    for number in range(3):
        library.write_bytes(noise(10 + number, LARGE))
        packed, _ = unread.pack("dist")
        assert packed.archive_path.read_bytes() == unread.from_nothing()


@pytest.mark.parametrize(
    "why", ["asked for", "images", "another boot", "no note", "another prefix"]
)
def test_everything_is_read_where_times_say_nothing(
    unread: PackedTwice, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unread.pack("dist")
    if why == "another boot":
        (tmp_path / "boot").write_text("0" * 36)
        monkeypatch.setattr(file_times, "BOOT_ID", tmp_path / "boot")
    if why == "no note":
        shutil.rmtree(tmp_path / "notes")
    packing = replace(unread, reads_all=why == "images")
    prefix = "/opt/conda/envs/other" if why == "another prefix" else None
    with pytest.raises(HostError, match="cannot read"):
        packing.pack(
            "dist", rereads=why == "asked for", prefix=prefix, progress=without(unread.tree)
        )


def test_files_that_hold_the_prefix_are_edited_as_before(unread: PackedTwice) -> None:
    names = {"names/paths.txt": f"{unread.tree}/bin\n".encode()}
    pip_record(unread.tree, "names", names)
    unread.pack("dist")
    unread.change()
    second, _ = unread.pack("dist")
    assert second.archive_path.read_bytes() == unread.from_nothing()
    with FileSource(second.archive_path) as source:
        edited = {entry.path for entry in Archive(source).index.files if entry.edits}
    assert {f"{SITE}/names/paths.txt", "bin/python"} <= edited


@pytest.mark.parametrize("then", ["text", "nothing"])
def test_what_conda_says_of_a_file_that_holds_the_prefix_counts_each_time(
    unread: PackedTwice, then: str
) -> None:
    """Its record alone has changed, which lies in another frame than a file as large as this."""
    content = f"{unread.tree}/x\n".encode() + b"some text\n" * (LARGE // 10)
    conda_record(unread.tree, "cfg", {"lib/big.txt": content})
    record = next((unread.tree / "conda-meta").glob("cfg-*.json"))
    said = json.loads(record.read_text())
    path = {"_path": "lib/big.txt", "path_type": "hardlink"}
    digest = sha256_hex(content)
    as_it_is = {**said, "paths_data": {"paths": [{**path, "sha256": digest}]}}
    record.write_text(json.dumps(as_it_is))
    unread.pack("dist")
    if then == "text":
        held = {"prefix_placeholder": str(unread.tree), "file_mode": "text", "sha256": "0" * 64}
        record.write_text(json.dumps({**said, "paths_data": {"paths": [{**path, **held}]}}))
    else:
        record.unlink()
    second, _ = unread.pack("dist")
    assert second.archive_path.read_bytes() == unread.from_nothing()
    with FileSource(second.archive_path) as source:
        edited = {entry.path for entry in Archive(source).index.files if entry.edits}
    assert "lib/big.txt" in edited


@pytest.mark.parametrize("size", [100, LARGE])
def test_what_was_read_from_another_folder_is_not_known_the_next_time(
    unread: PackedTwice, size: int
) -> None:
    """No time of a file tells that a folder above it had another name for a while."""
    pip_record(unread.tree, "moved", {"moved/data.txt": noise(5, size)})
    folder = unread.tree / SITE / "moved"
    other, aside = unread.root / "other", unread.root / "aside"
    other.mkdir()
    (other / "data.txt").write_bytes(noise(6, size))

    def exchange() -> None:
        folder.rename(aside)
        other.rename(folder)

    unread.pack("dist", progress=Disturbed(exchange))
    folder.rename(other)
    aside.rename(folder)
    second, _ = unread.pack("dist")
    assert second.archive_path.read_bytes() == unread.from_nothing()


@pytest.mark.parametrize("lies", [False, True])
def test_a_frame_that_is_damaged_is_made_of_its_files_again(
    unread: PackedTwice, lies: bool
) -> None:
    """Of a large file, of which the other frames are not read. It must hold what it held then."""
    first, _ = unread.pack("dist")
    with FileSource(first.archive_path) as source:
        archive = Archive(source)
        second_half = next(
            number for number, plan in enumerate(archive.plans)
            if plan.pieces and plan.pieces[0].start
        )  # fmt: skip
        offset = archive.offsets[second_half]
    content = bytearray(first.archive_path.read_bytes())
    content[offset + 9] ^= 255
    first.archive_path.write_bytes(content)
    if lies:
        note_path = next((unread.root / "notes").iterdir())
        note = msgspec.json.decode(note_path.read_bytes(), type=PackNote)
        plain = list(note.frames.plain)
        plain[second_half] = "0" * 64
        frames = msgspec.structs.replace(note.frames, plain=tuple(plain))
        note_path.write_bytes(msgspec.json.encode(msgspec.structs.replace(note, frames=frames)))
        with pytest.raises(HostError, match=r"torch\.bin, or a file behind it, changed though"):
            unread.pack("today", reuse=first.archive_path)
    else:
        again, _ = unread.pack("today", reuse=first.archive_path)
        assert again.archive_path.read_bytes() == unread.from_nothing()


def tree_note(tree: Path, earlier: EarlierBuild | None) -> TreeNote:
    """Return what a build notes of its tree."""
    files = dict(stamp_files(tree))
    return TreeNote(
        why_not_reusable="", materials=Materials(base="", conda=(), wheels=()), tools={},
        warnings=(), wheel_warnings=(), contested=(), wheel_files={}, conda_files={},
        conda_tied="", data=(), device=tree.stat().st_dev, files=files,
        since=earlier.first_ctimes(files) if earlier else {},
    )  # fmt: skip


def linked_build(tree: Path, note: TreeNote, home: Path, dropped: frozenset[str]) -> TreeNote:
    """Build in `home` as a build does that starts from a tree, which it removes."""
    earlier = EarlierBuild(
        tree=tree, note=note, added=frozenset(), changes_conda=False, wheel_files={},
        conda_files={}, dropped=dropped,
    )  # fmt: skip
    work = BuildDir(home=home, prefix=PurePosixPath(tree))
    work.tree.mkdir(parents=True)
    earlier.link_into(work)
    shutil.rmtree(tree)
    return tree_note(work.tree, earlier)


@pytest.mark.parametrize("builds", [1, 2, 3])
def test_files_that_a_build_linked_from_the_one_before_are_not_read(
    unread: PackedTwice, tmp_path: Path, builds: int
) -> None:
    """A link gives a file another ctime; the build notes the one that it had."""
    prefix, tree = str(unread.tree), unread.tree
    note = tree_note(tree, None)
    unread.pack("dist")
    for number in range(builds):
        module = f"{SITE}/wheel/__init__.py"
        home = tmp_path / f"build-{number}"
        note = linked_build(tree, note, home, frozenset({module}))
        tree = home / "envs/demo"
        (tree / module).parent.mkdir(exist_ok=True)
        (tree / module).write_bytes(b"x = %d\n" % number)
        (home / TREE_NOTE).write_bytes(msgspec.json.encode(note))
    packing = replace(unread, tree=tree)
    expected = packing.from_nothing(prefix=prefix)
    second, reuse = packing.pack("dist", prefix=prefix, progress=without(tree))
    assert second.archive_path.read_bytes() == expected
    assert reuse.size > len(expected) * 0.9


@pytest.mark.parametrize("how", ["no note", "written to", "open", "damaged", "elsewhere"])
def test_links_that_no_build_vouches_for_are_read(
    unread: PackedTwice, tmp_path: Path, how: str
) -> None:
    prefix = str(unread.tree)
    before = tree_note(unread.tree, None)
    unread.pack("dist")
    home = tmp_path / "build"
    note = linked_build(unread.tree, before, home, frozenset())
    path, tree = home / TREE_NOTE, home / "envs/demo"
    if how == "elsewhere":
        note = msgspec.structs.replace(note, device=note.device + 1)
    if how != "no note":
        path.write_bytes(msgspec.json.encode(note)[: 100 if how == "damaged" else None])
    if how == "open":
        path.chmod(0o666)
    if how == "written to":
        written_in_place(tree / LIBRARY)
    packing = replace(unread, tree=tree)
    with pytest.raises(HostError, match="cannot read"):
        packing.pack("dist", prefix=prefix, progress=without(tree))


def test_a_note_of_a_build_says_nothing_more_to_a_pack_than_it_needs() -> None:
    data = b'{"device": 1, "files": {}, "materials": {"anything": []}}'
    assert msgspec.json.decode(data, type=StampedTree) == StampedTree(device=1, files={})
