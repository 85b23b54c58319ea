"""Files appear whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from envferry.base.files import (
    atomic_write,
    digest_file,
    exclusive_lock,
    is_at,
    mounts_in,
    remove_tree,
    require_space,
)
from envferry.base.json import from_json, to_json
from envferry.base.text import human_bytes
from envferry.errors import HostError, IntegrityError, SpecError, TargetOccupied

if TYPE_CHECKING:
    from pathlib import Path


class Record(msgspec.Struct, frozen=True):
    """A record of schema 1."""

    name: str
    schema: int = 1


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def write_and_fail() -> None:
        with atomic_write(target) as stream:
            stream.write(b"half of the n")
            msg = "interrupted"
            raise ValueError(msg)

    with pytest.raises(ValueError, match="interrupted"):
        write_and_fail()
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_write_makes_its_directory_and_a_readable_file(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "deep/er/file") as stream:
        stream.write(b"new")
    path = tmp_path / "deep/er/file"
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644


def test_json_is_one_form() -> None:
    text = to_json(Record(name="x"))
    assert text == b'{\n "name": "x",\n "schema": 1\n}\n'
    assert from_json(text, Record, "it") == Record(name="x")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"schema": 1}', b'{"name": 3, "schema": 1}'])
def test_damaged_json_names_its_file(text: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"m\.json is damaged"):
        from_json(text, Record, "m.json")


def test_another_schema_names_both() -> None:
    with pytest.raises(SpecError, match="schema 7, this envferry reads schema 1"):
        from_json(b'{"name": "x", "schema": 7}', Record, "m.json")


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    again = exclusive_lock(tmp_path / "lock", "demo")
    with exclusive_lock(tmp_path / "lock", "demo"), pytest.raises(TargetOccupied, match="demo"):
        again.__enter__()
    with exclusive_lock(tmp_path / "lock", "demo"):
        pass


def test_a_lock_that_was_removed_is_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with exclusive_lock(path, "demo"), path.open() as stream:
        assert is_at(path, stream.fileno())
        path.unlink()
        assert not is_at(path, stream.fileno())
        path.touch()
        assert not is_at(path, stream.fileno())


def test_space_is_asked_for_before_it_is_used(tmp_path: Path) -> None:
    require_space(tmp_path / "not/there/yet", 1, "it")
    with pytest.raises(HostError, match="it needs 1e"):
        require_space(tmp_path, 10**18, "it")


def test_a_tree_goes_with_its_closed_directories(tmp_path: Path) -> None:
    closed = tmp_path / "tree/closed"
    closed.mkdir(parents=True)
    (closed / "file").touch()
    (closed / "out").symlink_to(tmp_path)
    closed.chmod(0)
    remove_tree(tmp_path / "tree")
    assert list(tmp_path.iterdir()) == []


def test_digests_are_the_published_ones(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    fast, strong = digest_file(tmp_path / "empty")
    assert fast == "99aa06d3014798d86001c324468d497f"
    assert strong == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (4.31e9, "4.31 GB")]
)
def test_bytes_for_people(count: float, text: str) -> None:
    assert human_bytes(count) == text


def test_mounts_are_found_by_their_real_place(tmp_path: Path) -> None:
    """Also behind links, and with the blanks that mountinfo writes in octal."""
    real = tmp_path / "my envs"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    shown = str(real).replace(" ", "\\040")
    table = tmp_path / "mountinfo"
    places = (f"{shown}/a", f"{shown}2", "/", shown.rpartition("/")[0])
    table.write_text("".join(f"36 35 98:0 /m {place} rw - ext4 /dev/x rw\n" for place in places))
    assert mounts_in(tmp_path / "link", table) == [f"{real}/a"]
    assert mounts_in(real / "a", table) == [f"{real}/a"]
    assert mounts_in(real / "b", table) == []
