"""A build that starts from the one before makes the tree that a build from nothing makes."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from envferry.build.earlier_build import NOTE, TreeNote
from envferry.build.tree_comparison import compare_trees
from envferry.engines.selection import Engine, open_sandbox
from envferry.errors import SpecError, ToolFailed
from envferry.models import Checks, DataFile
from tests.conftest import require
from tests.integration.test_build import packages, python_files
from tests.support.builds import BuildRunner, file_hash
from tests.support.tiny_channel import TinyPackage
from tests.support.wheels import make_wheel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from envferry.engines.port import Sandbox
    from tests.support.cli_runner import CliRunner

pytestmark = [pytest.mark.container, pytest.mark.network]

LIBRARY = f"python{sys.version_info[0]}.{sys.version_info[1]}"
PYTHON, SITE_PACKAGES = f"bin/{LIBRARY}", f"lib/{LIBRARY}/site-packages"


@dataclass
class Rebuilds:
    """One environment that is built again and again."""

    runner: BuildRunner
    conda: list[Path]
    inodes: dict[str, int] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.runner.builds / "tiny-linux-64"

    @property
    def tree(self) -> Path:
        return self.home / "envs/tiny"

    def build(self, wheels: Iterable[Path] = (), **options: Any) -> set[str]:
        """Build with these wheels; return the files that were taken from the build before."""
        before = self.inodes
        replace(self.runner, **options).build([*self.conda, *wheels])
        self.inodes = inodes(self.tree)
        return {path for path, inode in self.inodes.items() if before.get(path) == inode}

    def require_as_from_nothing(self, wheels: Iterable[Path] = (), **options: Any) -> None:
        """Compare the tree with one that nothing was taken over for."""
        anew = replace(self.runner, builds_dir=self.runner.home / "anew", from_scratch=True)
        other = replace(anew, **options).build([*self.conda, *wheels])
        assert [str(item) for item in compare_trees(self.tree, Path(other.tree))] == []


def wheel(
    directory: Path, name: str, files: Mapping[str, str] | None = None, version: str = "1.0"
) -> Path:
    return make_wheel(directory, f"{name}-{version}-py3-none-any", files=files)


def inodes(tree: Path) -> dict[str, int]:
    return {
        str(path.relative_to(tree)): path.lstat().st_ino
        for path in tree.rglob("*")
        if not path.is_dir() or path.is_symlink()
    }


@pytest.fixture
def rebuilds(tmp_path: Path) -> Iterator[Rebuilds]:
    """Builds of a conda package without python."""
    require("bwrap", shutil.which("bwrap"))
    runner = BuildRunner(home=tmp_path, sandbox=open_sandbox(Engine.BWRAP))
    tiny = TinyPackage(name="tiny", version="1.0", files=(("bin/tool", "#!/bin/sh\n"),))
    yield Rebuilds(runner, packages(tmp_path, tiny))
    assert runner.leftovers() == []


@pytest.fixture
def python_rebuilds(rebuilds: Rebuilds, demo_runner: CliRunner) -> Rebuilds:
    rebuilds.conda = python_files(demo_runner)
    return rebuilds


def test_wheels_come_go_and_change(
    sandbox: Sandbox, tmp_path: Path, demo_runner: CliRunner
) -> None:
    rebuilds = Rebuilds(BuildRunner(home=tmp_path, sandbox=sandbox), python_files(demo_runner))
    shared = {"common/__init__.py": "", "common/deep/first.py": "WHO = 'first'\n"}
    first = wheel(tmp_path, "first", shared | {"{data}/data/share/first.txt": "1\n"})
    second = wheel(tmp_path, "second", {"common/__init__.py": "", "common/only/x.py": "X = 1\n"})
    newer = wheel(tmp_path, "second", {"other/__init__.py": "Y = 2\n"}, version="2.0")
    assert rebuilds.build([first, second]) == set()

    kept = rebuilds.build([first, newer])
    assert {f"{SITE_PACKAGES}/common/deep/first.py", "bin/say-first", PYTHON} <= kept
    assert {f"{SITE_PACKAGES}/common/__init__.py", "share/first.txt"} <= kept
    assert any("first.cpython-" in path for path in kept)
    assert not any("second" in path or "only" in path for path in kept)
    rebuilds.require_as_from_nothing([first, newer])

    kept = rebuilds.build([newer])
    assert f"{SITE_PACKAGES}/other/__init__.py" in kept
    assert not (rebuilds.tree / SITE_PACKAGES / "common").exists()
    assert not (rebuilds.tree / "share/first.txt").exists()

    assert PYTHON in rebuilds.build([second, first])
    rebuilds.require_as_from_nothing([first, second])


def test_files_of_several_packages_are_decided_anew(
    python_rebuilds: Rebuilds, tmp_path: Path
) -> None:
    rebuilds = python_rebuilds
    one, other = {"shared.py": "WHO = 'one'\n"}, {"shared.py": "WHO = 'other'\n"}
    first, second = wheel(tmp_path, "first", one), wheel(tmp_path, "second", other)
    beyond = wheel(tmp_path, "beyond", other)
    rebuilds.build([second])
    assert PYTHON in rebuilds.build([second, beyond]), "both have the same file"
    assert rebuilds.build([second, beyond, first]) == set()
    shared = rebuilds.tree / SITE_PACKAGES / "shared.py"
    assert shared.read_text() == other["shared.py"], "the last one by name"
    assert rebuilds.build([first]) == set(), "nothing starts from a tree with replaced files"
    clobbering = wheel(tmp_path, "clobbering", {"pygments/__init__.py": "MINE = True\n"})
    with pytest.raises(SpecError, match="overwrites"):
        rebuilds.build([first, clobbering])


def test_other_settings_take_the_packages_over(rebuilds: Rebuilds, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("one\n")
    item = DataFile(url="words.txt", sha256=file_hash(words), path="share/words/words.txt")
    rebuilds.build(variables={"HELLO": "1"}, data=(item,))
    options: dict[str, Any] = {
        "variables": {"HELLO": "2"},
        "checks": Checks(commands=('test "$HELLO" = 2 && ! test -e "$CONDA_PREFIX/share"',)),
    }
    kept = rebuilds.build(**options)
    assert "bin/tool" in kept
    assert "conda-meta/state" not in kept
    rebuilds.require_as_from_nothing(**options)
    assert "bin/tool" in rebuilds.build(data=(item,))
    assert (rebuilds.tree / "share/words/words.txt").read_text() == "one\n"
    assert not (rebuilds.tree / "conda-meta/state").exists()
    rebuilds.require_as_from_nothing(data=(item,))
    rebuilds.conda += packages(tmp_path / "more", TinyPackage(name="more", version="1.0"))
    assert rebuilds.build() == set(), "another conda half"


@pytest.mark.parametrize(
    "harm", ["change", "mode", "add", "remove", "replace", "note", "no note", "copy", "tools"]
)
def test_a_tree_that_was_touched_is_not_used(rebuilds: Rebuilds, tmp_path: Path, harm: str) -> None:
    rebuilds.build()
    assert "bin/tool" in rebuilds.build()
    tool, note = rebuilds.tree / "bin/tool", rebuilds.home / NOTE
    if harm == "change":
        times = tool.stat().st_mtime_ns
        tool.write_text("#!/bin/no\n")
        os.utime(tool, ns=(times, times))
    elif harm == "mode":
        tool.chmod(0o700)
    elif harm == "add":
        (rebuilds.tree / "bin/stranger").write_text("#!/bin/sh\n")
    elif harm == "remove":
        tool.unlink()
    elif harm == "replace":
        copy = tool.with_name("copy")
        shutil.copy2(tool, copy)
        copy.replace(tool)
    elif harm == "note":
        note.write_bytes(note.read_bytes()[:200])
    elif harm == "no note":
        note.unlink()
    elif harm == "copy":
        shutil.copytree(rebuilds.home, tmp_path / "copied", symlinks=True)
        shutil.rmtree(rebuilds.home)
        (tmp_path / "copied").rename(rebuilds.home)
    elif harm == "tools":
        found = msgspec.json.decode(note.read_bytes(), type=TreeNote)
        changed = msgspec.structs.replace(found, tools={**found.tools, "uv": "0.0.1"})
        note.write_bytes(msgspec.json.encode(changed))
    rebuilds.inodes = {} if harm in ("replace", "copy") else rebuilds.inodes
    assert "bin/tool" not in rebuilds.build()
    rebuilds.require_as_from_nothing()
    assert "bin/tool" in rebuilds.build()


def test_a_build_that_fails_leaves_the_one_before(rebuilds: Rebuilds) -> None:
    rebuilds.build()
    with pytest.raises(ToolFailed):
        rebuilds.build(checks=Checks(commands=("false",)))
    assert inodes(rebuilds.tree) == rebuilds.inodes
    assert (rebuilds.tree / "bin/tool").read_text() == "#!/bin/sh\n"
    rebuilds.build()
    assert "bin/tool" in rebuilds.build()


def test_byte_code_of_a_module_that_another_wheel_has_too(
    python_rebuilds: Rebuilds, tmp_path: Path
) -> None:
    common = {"common.py": "X = 1\n"}
    compiled = {f"__pycache__/common.{sys.implementation.cache_tag}.pyc": "not what is compiled"}
    first, second = wheel(tmp_path, "first", common | compiled), wheel(tmp_path, "second", common)
    python_rebuilds.build([first, second])
    python_rebuilds.build([second])
    assert (python_rebuilds.tree / SITE_PACKAGES / next(iter(compiled))).exists()


def linked(tmp_path: Path, script: str) -> list[Path]:
    """Return a package whose script makes more than it brings."""
    made = ("bin/.linked-post-link.sh", f"#!/bin/sh\ncd $PREFIX && {script}\n")
    return packages(tmp_path / "more", TinyPackage(name="linked", version="1.0", files=(made,)))


def test_data_below_links_and_in_empty_folders_goes_without_a_trace(
    rebuilds: Rebuilds, tmp_path: Path
) -> None:
    rebuilds.conda = linked(tmp_path, "mkdir real empty && touch real/one && ln -s $PWD/real lib64")
    words = tmp_path / "words.txt"
    words.write_text("one\n")
    below, inside = (
        (DataFile(url="words.txt", sha256=file_hash(words), path=f"{folder}/words.txt"),)
        for folder in ("lib64", "empty")
    )
    rebuilds.build(data=below)
    assert "real/one" in rebuilds.build(data=below, variables={"HELLO": "1"})
    assert "real/one" in rebuilds.build()
    assert not (rebuilds.tree / "real/words.txt").exists()
    rebuilds.build(data=inside)
    rebuilds.build()
    assert (rebuilds.tree / "empty").is_dir()
    rebuilds.require_as_from_nothing()


def test_names_that_are_not_utf_8_are_built_from_nothing(
    rebuilds: Rebuilds, tmp_path: Path
) -> None:
    rebuilds.conda = linked(tmp_path, "touch $(printf 'a\\377')")
    rebuilds.build()
    assert rebuilds.build() == set()
    assert b"a\xff" in os.listdir(os.fsencode(rebuilds.tree))  # noqa: PTH208


def test_a_build_that_another_user_noted_is_not_used(rebuilds: Rebuilds) -> None:
    rebuilds.build()
    (rebuilds.home / NOTE).chmod(0o666)
    assert rebuilds.build() == set()
