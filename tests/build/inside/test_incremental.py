"""Whose files can go without a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from envferry.build.inside.incremental import (
    changed_only,
    fills_empty_folder,
    has_own_bytecode,
    mark_files,
)

if TYPE_CHECKING:
    from pathlib import Path

MODULE, COMPILED = "lib/p/m.py", "lib/p/__pycache__/m.cpython-313.pyc"


@pytest.mark.parametrize(
    ("wheels", "others", "is_own"),
    [
        ([{MODULE}], [MODULE], True),
        ([{MODULE, COMPILED}, {"lib/p/n.py"}], ["lib/q/m.py"], True),
        ([{MODULE, COMPILED}, {MODULE}], [], False),
        ([{MODULE, COMPILED}], [MODULE], False),
        ([{MODULE}], [MODULE, COMPILED], False),
        ([{COMPILED}, {MODULE}], [], False),
        ([{COMPILED}], [], False),
        ([], [MODULE, COMPILED], True),
    ],
)
def test_byte_code_goes_with_its_module(
    wheels: list[set[str]], others: list[str], is_own: bool
) -> None:
    assert has_own_bytecode(wheels, others) is is_own


@pytest.mark.parametrize("harm", ["", "add", "change", "remove", "replace", "link", "folder"])
def test_what_something_else_does_to_a_tree_is_seen(tmp_path: Path, harm: str) -> None:
    (tmp_path / "lib/__pycache__").mkdir(parents=True)
    one, two = tmp_path / "lib/one", tmp_path / "two"
    one.write_text("1")
    (tmp_path / "lib/m.py").touch()
    before = mark_files(tmp_path)
    two.write_text("2")
    (tmp_path / "lib/__pycache__/m.pyc").write_text("compiled")
    (tmp_path / "lib/uv_cache.json").write_text("{}")
    if harm == "add":
        (tmp_path / "lib/three").write_text("3")
    elif harm == "change":
        one.write_text("11")
    elif harm == "remove":
        one.unlink()
    elif harm == "replace":
        (tmp_path / "new").write_text("1")
        (tmp_path / "new").replace(one)
    elif harm == "link":
        (tmp_path / "link").symlink_to("lib")
    elif harm == "folder":
        (tmp_path / "lib/empty").mkdir()
    assert changed_only(before, mark_files(tmp_path), {"two"}) is not bool(harm)


def test_modules_that_hold_the_prefix_leave_no_byte_code(tmp_path: Path) -> None:
    compiled = tmp_path / "lib/__pycache__/m.pyc"
    compiled.parent.mkdir(parents=True)
    compiled.touch()
    before = mark_files(tmp_path)
    compiled.unlink()
    assert not changed_only(before, mark_files(tmp_path), ()), "nobody's"
    (tmp_path / "lib/m.py").touch()
    assert changed_only(before, mark_files(tmp_path), {"lib/m.py"})


def test_folders_that_were_empty_are_not_filled(tmp_path: Path) -> None:
    (tmp_path / "var/spool").mkdir(parents=True)
    assert not fills_empty_folder(tmp_path, ["var/one", "lib/two"])
    assert fills_empty_folder(tmp_path, ["lib/two", "var/spool/deep/one"])
