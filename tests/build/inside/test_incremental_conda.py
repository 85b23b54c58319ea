"""Which conda packages can come into a tree, or go, by themselves."""

from __future__ import annotations

import json
import posixpath
from typing import TYPE_CHECKING

import pytest

from envferry.build.inside.built_tree import NotIncremental
from envferry.build.inside.conda_meta import CondaRecords
from envferry.build.inside.incremental import why_affects_others
from envferry.build.inside.incremental_conda import add_packages, files_of, why_not_incremental

if TYPE_CHECKING:
    from pathlib import Path

SITE_PACKAGES = "lib/python3.11/site-packages"


def linked(prefix: Path, **packages: list[str]) -> CondaRecords:
    """Make a prefix with these packages; a file's text is its own path."""
    (prefix / "conda-meta").mkdir(parents=True)
    for name, files in packages.items():
        for file in files:
            (prefix / file).parent.mkdir(parents=True, exist_ok=True)
            (prefix / file).write_text(file)
        record = {"name": name, "version": "3.11.1", "files": files}
        (prefix / f"conda-meta/{name}-1-0.json").write_text(json.dumps(record))
    return CondaRecords.read(prefix)


@pytest.mark.parametrize(
    ("packages", "reason"),
    [
        ({"a": ["bin/a"], "b": ["share/b"]}, ""),
        ({"a": ["bin/.a-post-link.sh"]}, "script"),
        ({"a": ["bin/.a-pre-unlink.sh"]}, "script"),
        ({"a": ["bin/a"], "b": ["bin/a"]}, "several packages have bin/a"),
        ({"a": ["__clobbers__/a/bin/b"], "b": ["bin/b"]}, "several packages"),
        ({"a": ["m.py", "__pycache__/m.cpython-311.pyc"]}, ""),
        ({"a": ["m.py"], "b": ["__pycache__/m.cpython-311.pyc"]}, "byte code"),
    ],
)
def test_packages_with_nothing_in_common_are_not_tied(
    tmp_path: Path, packages: dict[str, list[str]], reason: str
) -> None:
    found = why_not_incremental(linked(tmp_path / "prefix", **packages))
    assert reason in found
    assert bool(reason) == bool(found)


def test_nobody_knows_whose_an_empty_folder_is(tmp_path: Path) -> None:
    records = linked(tmp_path, a=["bin/a"])
    (tmp_path / "var/empty").mkdir(parents=True)
    assert why_not_incremental(records) == "var/empty is empty"


def test_files_below_a_link_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib64").symlink_to("lib")
    found = why_not_incremental(linked(tmp_path, a=["lib/a"], b=["lib64/deep/b"]))
    assert found == "files lie below the link lib64"


def test_links_to_folders_and_what_python_starts_with_concern_others(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/real.so").touch()
    for name, target in (("so", "lib/real.so"), ("lib64", "lib"), ("nowhere", "other")):
        (tmp_path / name).symlink_to(target)
    assert why_affects_others(tmp_path, ["so", "lib/real.so"]) == ""
    assert why_affects_others(tmp_path, ["so", "lib64"]) == "lib64 is a link to a folder"
    assert why_affects_others(tmp_path, ["nowhere"]) == "nowhere is a link to a folder"
    for name in (
        *("a.pth", "sitecustomize.py", "usercustomize.py", "sitecustomize/__init__.py"),
        *("usercustomize.cpython-311-x86_64-linux-gnu.so", "../sitecustomize.py"),
    ):
        path = posixpath.normpath(f"{SITE_PACKAGES}/{name}")
        assert "start" in why_affects_others(tmp_path, [path])
    assert why_affects_others(tmp_path, [f"{SITE_PACKAGES}/sitecustomizer.py"]) == ""
    assert why_affects_others(tmp_path, [f"{SITE_PACKAGES}/package/a.pth"]) == ""


def test_packages_move_into_a_tree_that_has_none_of_their_files(tmp_path: Path) -> None:
    prefix, added = tmp_path / "prefix", tmp_path / "added"
    linked(prefix, python=["bin/python"])
    new = ["share/new/a", f"{SITE_PACKAGES}/new.py"]
    records = linked(added, new=new)
    assert add_packages(prefix, added, ()) == files_of(records)
    assert [(prefix / file).read_text() for file in new] == new
    assert (prefix / "conda-meta/new-1-0.json").exists()


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("bin/python", "already exists"),
        ("bin/python/below", "not a folder of its own"),
        ("lib64/new", "not a folder of its own"),
        ("empty/new", "empty folder"),
        (f"{SITE_PACKAGES}/First.Wheel-2.dist-info/METADATA", "comes from conda, and as a wheel"),
    ],
)
def test_packages_that_meet_something_move_nothing(tmp_path: Path, file: str, reason: str) -> None:
    prefix, added = tmp_path / "prefix", tmp_path / "added"
    linked(prefix, python=["bin/python"])
    (prefix / "empty").mkdir()
    (prefix / "lib64").symlink_to("lib")
    linked(added, new=["share/new", file])
    wheel_files = [f"{SITE_PACKAGES}/first_wheel-1.dist-info/METADATA"]
    with pytest.raises(NotIncremental, match=reason):
        add_packages(prefix, added, wheel_files)
    assert not (prefix / "share/new").exists()
    assert (prefix / "bin/python").read_text() == "bin/python"
