"""Wheels are extracted and compiled once, and linked into every environment that has them."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from envferry.build.tree_comparison import compare_trees
from envferry.engines.selection import Engine, open_sandbox
from tests.conftest import require
from tests.integration.test_build import packages, python_files
from tests.integration.test_earlier_build import PYTHON, SITE_PACKAGES, inodes
from tests.support.builds import BuildRunner
from tests.support.tiny_channel import TinyPackage
from tests.support.wheels import make_wheel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envferry.models import BuiltEnv
    from tests.support.cli_runner import CliRunner

TAG = sys.implementation.cache_tag
MODULE = f"{SITE_PACKAGES}/first/__init__.py"
FILES = {"first/__init__.py": "WHO = 1\n", "first/deep/more.py": "MORE = 2\n"}


class Store(msgspec.Struct, frozen=True):
    """Builds of several environments, which share a cache."""

    runner: BuildRunner
    python: list[Path]

    def build(self, *wheels: Path, name: str = "tiny") -> BuiltEnv:
        return self.runner.build([*self.python, *wheels], name)

    def require_as_whole(self, built: BuiltEnv, *wheels: Path) -> None:
        """Compare a tree with one into which uv has installed all wheels."""
        anew = msgspec.structs.replace(self, runner=whole(self.runner))
        other = anew.build(*wheels, name=built.name)
        assert [str(item) for item in compare_trees(Path(built.tree), Path(other.tree))] == []

    def stored(self) -> dict[str, Path]:
        """Return the stored files by name, those of the last wheel that has it."""
        found = (self.runner.home / "downloads/wheels").glob("*/??/*/files/**/*")
        return {path.name: path for path in found if path.is_file()}


def whole(runner: BuildRunner) -> BuildRunner:
    return BuildRunner(
        home=runner.home,
        sandbox=runner.sandbox,
        builds_dir=runner.home / "whole",
        from_scratch=True,
    )


def is_stored(built: BuiltEnv, file: str) -> bool:
    return Path(built.tree, file).stat().st_nlink > 1


@pytest.fixture
def store(tmp_path: Path, demo_runner: CliRunner) -> Store:
    require("bwrap", shutil.which("bwrap"))
    runner = BuildRunner(home=tmp_path, sandbox=open_sandbox(Engine.BWRAP))
    return Store(runner, python_files(demo_runner))


def wheel(folder: Path, name: str, files: Mapping[str, str], version: str = "1.0") -> Path:
    folder.mkdir(exist_ok=True)
    return make_wheel(folder, f"{name}-{version}-py3-none-any", files=files)


def test_environments_share_extracted_and_compiled_wheels(store: Store, tmp_path: Path) -> None:
    first, second = wheel(tmp_path, "first", FILES), wheel(tmp_path, "second", {"s/x.py": "X = 1"})
    one = store.build(first, name="one")
    two = store.build(first, second, name="two")
    before, after = inodes(Path(one.tree)), inodes(Path(two.tree))
    code = f"{SITE_PACKAGES}/first/__pycache__/__init__.{TAG}.pyc"
    assert (before[MODULE], before[code]) == (after[MODULE], after[code])
    assert before["bin/say-first"] != after["bin/say-first"]
    store.require_as_whole(one, first)
    store.require_as_whole(two, first, second)


ODD = {
    "comma": {"{name}/E=1,N=2.json": "{}"},
    "own": {f"{{name}}/__pycache__/__init__.{TAG}.pyc": "old"},
    "older": {"{name}/__pycache__/__init__.cpython-27.pyc": "old"},
    "orphan": {f"{{name}}/__pycache__/gone.{TAG}.pyc": "old"},
    "prefix": {"{name}/place.py": "PLACE = '/opt/conda/envs/tiny/lib'\n"},
    "prefixes": {"{name}/place.py": "PLACE = '/opt/conda/envs/other/lib'\n"},
    "template": {"{name}/template.py": "{{ name }} = {%\n"},
    "scheme": {"{data}/purelib/{name}/late.py": "LATE = 1\n"},
    "sitedata": {f"{{data}}/data/{SITE_PACKAGES}/{{name}}/late.py": "LATE = 1\n"},
    "scripts": {"{data}/scripts/run": "#!python\n", "{data}/headers/first.h": "//\n"},
    "alphabets": {"{name}/größe-数据.txt": "1\n"},
    "deep": {"{name}/deep.py": "DEEP = 1\n", "{name}/deep/__init__.py": ""},
    "start": {"{name}.pth": "import sys\n"},
}
WHOLE = ("scheme", "sitedata")
"""Those that an installer has rules for."""
RECORDS = {
    "extra": {"x": "{name}/gone.py,,"},
    "lack": {"{name}/__init__.py": ""},
    "quoted": {"{name}/__init__.py": '"{name}/__init__.py","sha256=""x",9'},
    "dotted": {"{name}/__init__.py": "./{name}/__init__.py,,9"},
    "twice": {"x": "{name}/__init__.py,,9"},
    "zeros": {"{name}/__init__.py": "{name}/__init__.py,,009"},
}


def test_odd_wheels_are_as_an_installer_installs_them(store: Store, tmp_path: Path) -> None:
    wheels = []
    for name, odd in ODD.items():
        files = {"{name}/__init__.py": "WHO = 1\n", **odd}
        named = {path.replace("{name}", name): text for path, text in files.items()}
        record = {path: f'"{path}",,' for path in named if "," in path}
        stem = f"{name}-1.0-py3-none-any"
        wheels.append(make_wheel(tmp_path, stem, files=named, record=record))
    for name, lines in RECORDS.items():
        record = {key.format(name=name): line.format(name=name) for key, line in lines.items()}
        files = {f"{name}/__init__.py": "WHO = 1\n"}
        stem = f"{name}-1.0-py3-none-any"
        wheels.append(make_wheel(tmp_path, stem, files=files, record=record))
    built = store.build(*wheels)
    store.require_as_whole(built, *wheels)
    whole = {name for name in ODD if not is_stored(built, f"{SITE_PACKAGES}/{name}/__init__.py")}
    assert whole == set(WHOLE)
    again = store.build(*wheels, name="other")
    store.require_as_whole(again, *wheels)


def test_byte_code_of_what_cannot_be_compiled_stays(store: Store, tmp_path: Path) -> None:
    bad = {"first/bad.py": "not python", f"first/__pycache__/bad.{TAG}.pyc": "old"}
    odd = wheel(tmp_path, "first", {**FILES, **bad})
    store.require_as_whole(store.build(odd), odd)


def test_files_of_several_wheels_are_those_of_the_last_by_name(
    store: Store, tmp_path: Path
) -> None:
    one = wheel(tmp_path, "one", {"both/__init__.py": "ONE = 1\n", "both/README": "1"})
    two = wheel(tmp_path, "two", {"both/__init__.py": "TWO = 2\n", "both/README": "1"})
    bad = wheel(tmp_path, "xbad", {"both/__init__.py": "not python"})
    built = store.build(two, one)
    assert Path(built.tree, SITE_PACKAGES, "both/__init__.py").read_text() == "TWO = 2\n"
    store.require_as_whole(built, two, one)
    store.require_as_whole(store.build(bad, two, one, name="bad"), bad, two, one)


def test_wheels_that_replace_files_of_conda_packages_are_installed_whole(
    store: Store, tmp_path: Path
) -> None:
    clobbering = wheel(tmp_path, "first", {**FILES, "pygments/__init__.py": "MINE = True\n"})
    built = store.runner.build([*store.python, clobbering], allow=("first",))
    assert not is_stored(built, MODULE)
    other = whole(store.runner).build([*store.python, clobbering], allow=("first",))
    assert [str(item) for item in compare_trees(Path(built.tree), Path(other.tree))] == []


@pytest.mark.parametrize("keeps_time", [True, False])
def test_a_stored_file_that_was_written_to_is_extracted_anew(
    store: Store, tmp_path: Path, keeps_time: bool
) -> None:
    """Also by way of another environment's tree, and with the time put back."""
    first = wheel(tmp_path, "first", FILES)
    one = store.build(first, name="one")
    damaged = Path(one.tree, MODULE)
    times = damaged.stat()
    damaged.write_text("WHO = 9\n")
    if keeps_time:
        os.utime(damaged, ns=(times.st_atime_ns, times.st_mtime_ns))
    two = store.build(first, name="two")
    assert Path(two.tree, MODULE).read_text() == "WHO = 1\n"
    store.require_as_whole(two, first)
    one = store.build(first, name="one")
    assert Path(one.tree, MODULE).read_text() == "WHO = 1\n"


def test_byte_code_that_was_written_to_is_compiled_anew(store: Store, tmp_path: Path) -> None:
    first = wheel(tmp_path, "first", FILES)
    one = store.build(first, name="one")
    (code,) = Path(one.tree, MODULE).parent.glob("__pycache__/__init__*")
    code.write_bytes(b"bad")
    store.require_as_whole(store.build(first, name="two"), first)


AT_START = """\
import pathlib, sys
for found in pathlib.Path(sys.prefix).rglob("*.py*"):
    if "first" in str(found):
        try:
            found.chmod(0o666)
            found.write_text("POISON = 1")
        except OSError:
            pass
"""


def test_what_python_runs_at_its_start_cannot_write_to_the_store(
    store: Store, tmp_path: Path
) -> None:
    first = wheel(tmp_path, "first", FILES)
    store.build(first, name="one")
    before = {name: path.read_bytes() for name, path in store.stored().items()}
    hostile = wheel(tmp_path, "hostile", {"hostile.pth": "import attack\n", "attack.py": AT_START})
    store.build(first, hostile, name="two")
    newer = wheel(tmp_path / "newer", "second", {"s/x.py": "X = 1\n"})
    store.build(first, hostile, newer, name="two")  # started from the tree that has it
    for name, content in before.items():
        assert store.stored()[name].read_bytes() == content
    assert store.build(first, name="one").tree
    assert Path(store.build(first, name="three").tree, MODULE).read_text() == "WHO = 1\n"


def test_scripts_of_conda_packages_cannot_write_to_the_store(store: Store, tmp_path: Path) -> None:
    first = wheel(tmp_path, "first", FILES)
    store.build(first, name="one")
    script = (
        "#!/bin/sh\n"
        'find "$PREFIX" /envferry -name "*.py*" -path "*first*" | while read f; do\n'
        '  echo poison 2>/dev/null > "$f"; chmod 666 "$f" 2>/dev/null; rm -f "$f" 2>/dev/null\n'
        "done; exit 0\n"
    )
    hostile = packages(
        tmp_path,
        TinyPackage(name="hostile", version="1.0", files=(("bin/.hostile-post-link.sh", script),)),
    )
    two = store.runner.build([*store.python, *hostile, first], "two")
    for tree in (two.tree, store.build(first, name="one").tree):
        assert Path(tree, MODULE).read_text() == "WHO = 1\n"


def test_a_tree_whose_wheels_others_have_linked_is_still_started_from(
    store: Store, tmp_path: Path
) -> None:
    """A link gives a file another ctime, also in the trees that had it before."""
    first = wheel(tmp_path, "first", FILES)
    one = store.build(first, name="one")
    conda = inodes(Path(one.tree))[PYTHON]
    store.build(first, name="two")
    second = wheel(tmp_path, "second", {"s/x.py": "X = 1\n"})
    one = store.build(first, second, name="one")
    assert inodes(Path(one.tree))[PYTHON] == conda
    store.require_as_whole(one, first, second)


def test_folders_that_others_can_write_to_are_no_store(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "downloads/wheels" / str(os.geteuid())
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    first = wheel(tmp_path, "first", FILES)
    built = store.build(first)
    assert not is_stored(built, MODULE)
    assert "other users can write" in caplog.text


def test_a_damaged_wheel_is_refused_as_before(store: Store, tmp_path: Path) -> None:
    first = wheel(tmp_path, "first", FILES)
    with zipfile.ZipFile(first) as archive:
        offset = archive.getinfo("first/__init__.py").header_offset
    data = bytearray(first.read_bytes())
    data[offset + 30 + len("first/__init__.py")] ^= 0xFF
    first.write_bytes(data)
    with pytest.raises(Exception, match="first"):
        store.build(first)
