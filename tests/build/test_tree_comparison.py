"""Two trees, and each way in which they can differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.base.files import COPY_BYTES
from envferry.build.tree_comparison import compare_trees

if TYPE_CHECKING:
    from pathlib import Path


def make_tree(root: Path) -> Path:
    (root / "lib/empty").mkdir(parents=True)
    (root / "lib/module.py").write_text("answer = 42\n")
    (root / "lib/large").write_bytes(bytes(COPY_BYTES + 10))
    (root / "link").symlink_to("lib/module.py")
    return root


def differences(one: Path, other: Path) -> list[str]:
    return [str(difference) for difference in compare_trees(one, other)]


def test_equal_trees_do_not_differ(tmp_path: Path) -> None:
    assert differences(make_tree(tmp_path / "a"), make_tree(tmp_path / "b")) == []


def test_every_difference_is_named(tmp_path: Path) -> None:
    one, other = make_tree(tmp_path / "a"), make_tree(tmp_path / "b")
    (one / "only-here").touch()
    (other / "lib/there").touch()
    (one / "lib/module.py").chmod(0o755)
    (other / "lib/module.py").chmod(0o644)
    (other / "link").unlink()
    (other / "link").symlink_to("elsewhere")
    with (other / "lib/large").open("r+b") as stream:
        stream.seek(COPY_BYTES + 3)
        stream.write(b"X")
    (other / "lib/empty").rmdir()
    (other / "lib/empty").touch()
    assert differences(one, other) == [
        "lib/empty: a directory in the first, a file in the second",
        f"lib/large: at byte {COPY_BYTES + 3}: {bytes(7)!r} and {b'X' + bytes(6)!r}",
        "lib/module.py: mode 0755 and 0644",
        "lib/there: only in the second",
        "link: links to lib/module.py and to elsewhere",
        "only-here: only in the first",
    ]


def test_a_file_that_goes_on_differs_where_the_other_ends(tmp_path: Path) -> None:
    one, other = make_tree(tmp_path / "a"), make_tree(tmp_path / "b")
    with (one / "lib/module.py").open("a") as stream:
        stream.write("more\n")
    assert differences(one, other) == ["lib/module.py: at byte 12: b'more\\n' and b''"]
