"""The folders of an earlier build that a warm build starts with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.base.file_stamps import stamp_files
from envferry.build.build_dir import fresh_build_dir
from envferry.build.earlier_build import EarlierBuild, TreeNote
from envferry.build.tree_materials import Materials

if TYPE_CHECKING:
    from pathlib import Path


def test_a_folder_above_one_that_stays_is_made(tmp_path: Path) -> None:
    """One wheel, which goes, named an empty folder in which another one has a file."""
    tree = tmp_path / "tree"
    (tree / "lib/ns/sub").mkdir(parents=True)
    (tree / "lib/ns/sub/b.py").write_text("B = 1\n")
    (tree / "lib/only/a").mkdir(parents=True)
    (tree / "lib/only/a/a.py").write_text("A = 1\n")
    note = TreeNote(
        device=tree.stat().st_dev,
        files=dict(stamp_files(tree)),
        why_not_reusable="",
        materials=Materials(base="", conda=(), wheels=()),
        tools={},
        warnings=(),
        wheel_warnings=(),
        contested=(),
        wheel_files={},
        conda_files={},
        conda_tied="",
        data=(),
    )
    earlier = EarlierBuild(
        tree=tree,
        note=note,
        added=frozenset(),
        changes_conda=False,
        wheel_files={"b": ("lib/ns/sub/b.py",)},
        conda_files={},
        dropped=frozenset({"lib/ns/sub", "lib/only/a/a.py"}),
    )
    with fresh_build_dir(tmp_path / "partial", "/opt/conda/envs/demo") as work:
        earlier.link_into(work)
        assert (work.tree / "lib/ns/sub/b.py").samefile(tree / "lib/ns/sub/b.py")
        assert not (work.tree / "lib/only").exists()
