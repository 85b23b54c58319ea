"""Wheels are extracted and compiled once, and linked into every environment that has them."""

from __future__ import annotations

import os
import shutil
import sys
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from envferry.base.file_stamps import FileStamp
from envferry.build.cache_locks import cache_lock
from envferry.build.tree_comparison import compare_trees
from envferry.build.tree_links import forget_bytecode
from envferry.build.wheel_store import StoredFiles
from envferry.build.wheel_store_upkeep import list_parts, prune_wheels, trim_wheels, verify_parts
from envferry.engines.selection import Engine, open_sandbox
from tests.conftest import require
from tests.integration.test_build import packages, python_files
from tests.integration.test_earlier_build import PYTHON, SITE_PACKAGES, inodes
from tests.support.builds import BuildRunner, locked
from tests.support.tiny_channel import TinyPackage
from tests.support.wheels import make_wheel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envferry.build.wheel_store_upkeep import StoredPart
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


def test_a_stored_file_that_was_written_to_is_made_again(store: Store, tmp_path: Path) -> None:
    """Also by way of another environment's tree, and with the time put back."""
    wheels = [wheel(tmp_path, name, {f"{name}/x.py": "WHO = 1\n"}) for name in ("a", "b", "c")]
    one = store.build(*wheels, name="one")
    modules = [f"{SITE_PACKAGES}/{name}/x.py" for name in ("a", "b")]
    for module, keeps_time in zip(modules, (True, False), strict=True):
        damaged = Path(one.tree, module)
        times = damaged.stat()
        damaged.write_text("WHO = 9\n")
        if keeps_time:
            os.utime(damaged, ns=(times.st_atime_ns, times.st_mtime_ns))
    (code,) = Path(one.tree, SITE_PACKAGES).glob("c/__pycache__/x*")
    code.write_bytes(b"bad")
    two = store.build(*wheels, name="two")
    assert [Path(two.tree, module).read_text() for module in modules] == ["WHO = 1\n"] * 2
    store.require_as_whole(two, *wheels)
    one = store.build(*wheels, name="one")
    assert [Path(one.tree, module).read_text() for module in modules] == ["WHO = 1\n"] * 2


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
    assert "is not a folder of this user alone" in caplog.text


def test_a_damaged_wheel_is_refused_as_before(store: Store, tmp_path: Path) -> None:
    first = wheel(tmp_path, "first", FILES)
    with zipfile.ZipFile(first) as archive:
        offset = archive.getinfo("first/__init__.py").header_offset
    data = bytearray(first.read_bytes())
    data[offset + 30 + len("first/__init__.py")] ^= 0xFF
    first.write_bytes(data)
    with pytest.raises(Exception, match="first"):
        store.build(first)


def test_byte_code_is_shared_by_environments_with_other_conda_packages(
    store: Store, tmp_path: Path
) -> None:
    first = wheel(tmp_path, "first", FILES)
    extra = packages(
        tmp_path, TinyPackage(name="extra", version="1.0", files=(("share/extra", "1\n"),))
    )
    # A lock that says what packages need: nothing, of all of these.
    conda = [
        msgspec.structs.replace(locked(path), record={"depends": []})
        for path in (*store.python, *extra)
    ]
    one = store.runner.build_packages([*conda[:-1], locked(first)], "one")
    two = store.runner.build_packages([*conda, locked(first)], "two")
    code = f"{SITE_PACKAGES}/first/__pycache__/__init__.{TAG}.pyc"
    assert inodes(Path(one.tree))[code] == inodes(Path(two.tree))[code]


def test_an_interpreter_that_was_written_to_is_made_again(store: Store, tmp_path: Path) -> None:
    store.build(wheel(tmp_path, "first", FILES))
    (interpreter,) = (tmp_path / "downloads/wheels").glob("*/interpreters/*")
    compiler = next(interpreter.glob("envs/*/lib/python3.*/this.py"))
    compiler.write_text("changed = 1\n")
    second = wheel(tmp_path, "second", {"s/x.py": "X = 1\n"})
    store.require_as_whole(store.build(second), second)
    assert compiler.read_text() != "changed = 1\n"


def names(parts: list[StoredPart]) -> set[tuple[str, str]]:
    return {(part.kind, part.name) for part in parts if part.kind != "interpreter"}


def test_what_no_build_has_goes_when_the_store_is_too_large(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "downloads"
    old, new = wheel(tmp_path, "first", FILES), wheel(tmp_path, "first", FILES, version="2.0")
    store.build(old)
    in_use = names(list_parts(root))
    assert in_use == {("wheel", old.name), ("byte code", old.name)}
    store.build(new)
    assert names(list_parts(root)) > in_use
    assert trim_wheels(root, 10**9).files == 0
    with cache_lock(root, shared=True):
        assert trim_wheels(root, 0).files == 0, "another build may be about to link them"
    trim_wheels(root, 0)
    assert names(list_parts(root)) == {("wheel", new.name), ("byte code", new.name)}
    second = wheel(tmp_path, "second", {"s/x.py": "X = 1\n"})
    store.require_as_whole(store.build(new, second), new, second)


def test_what_no_build_has_is_pruned_when_it_was_not_used(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "downloads"
    built = store.build(wheel(tmp_path, "first", FILES))
    now = time.time()
    assert prune_wheels(root, older_than=now + 1).files == 1, "the interpreter"
    shutil.rmtree(Path(built.tree).parents[1])
    assert prune_wheels(root, older_than=now - 60).files == 0
    assert prune_wheels(root, older_than=now + 60, dry_run=True).files == 2
    assert prune_wheels(root, older_than=now + 60).files == 2
    assert list_parts(root) == []


def test_damage_without_a_trace_is_found_by_reading(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "downloads"
    first, second = wheel(tmp_path, "first", FILES), wheel(tmp_path, "second", {"s/x.py": "X = 1"})
    store.build(first, second)
    assert verify_parts(root, lambda count: None) == []
    damaged = store.stored()["more.py"]
    damaged.write_text("MORE = 3\n")
    # As if the disk had done it: what is noted says that nothing has happened.
    found = StoredFiles.read(damaged.parents[3], {})
    found.stamps["first/deep/more.py"] = FileStamp.of(damaged.stat())
    found.note()
    assert names(verify_parts(root, lambda count: None)) == {("wheel", first.name)}
    assert ("wheel", first.name) not in names(list_parts(root))


def test_nothing_is_kept_where_the_setting_says_so(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVFERRY_WHEELS_GIGABYTES", "0")
    first = wheel(tmp_path, "first", FILES)
    assert not is_stored(store.build(first), MODULE)
    assert list_parts(tmp_path / "downloads") == []


SHADOW = """\
import builtins, importlib.util, os, sys
found = importlib.util.spec_from_file_location(
    "typing", os.path.dirname(os.path.dirname(__file__)) + "/typing.py"
)
typing = sys.modules["typing"] = importlib.util.module_from_spec(found)
found.loader.exec_module(typing)
real = builtins.compile
def compile(source, name, *rest, **options):
    source = b"WHO = 9" if name.endswith("first/__init__.py") else source
    return real(source, name, *rest, **options)
builtins.compile = compile
"""


def test_a_wheel_that_changes_python_changes_no_other_environment(
    store: Store, tmp_path: Path
) -> None:
    """Its byte code is made by a python that has no wheel."""
    first = wheel(tmp_path, "first", FILES)
    library = Path(SITE_PACKAGES).parent
    shadow = {f"{{data}}/data/{library}/typing/__init__.py": SHADOW}
    store.build(first, wheel(tmp_path, "hostile", shadow), name="one")
    store.require_as_whole(store.build(first, name="two"), first)


def in_builder(tmp_path: Path, code: str) -> Path:
    """Return a wheel whose code runs while the tree is made: it is installed whole."""
    files = {"{data}/purelib/x.pth": "import attack\n", "{data}/purelib/attack.py": code}
    return wheel(tmp_path, "hostile", files)


def test_what_runs_in_the_builder_cannot_write_to_the_store(store: Store, tmp_path: Path) -> None:
    """Not to what has no module either, and in a tree that has been there before."""
    odd = {"first/__pycache__/data.txt": "GOOD", "first/a.b.py": "A = 1\n", "first/.c.py": "C = 1"}
    first = wheel(tmp_path, "first", FILES | odd)
    one = store.build(first, name="one")
    store.build(first, name="two")
    hostile = in_builder(tmp_path, AT_START.replace("*.py*", "*").replace("666", "644"))
    store.build(first, hostile, name="two")
    store.require_as_whole(one, first)
    store.require_as_whole(store.build(first, name="three"), first)


def test_links_that_were_made_in_the_builder_lead_nothing_out_of_the_tree(
    store: Store, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "deep.txt").write_text("mine")
    first = wheel(tmp_path, "first", FILES)
    store.build(first)
    folder = f"/opt/conda/envs/tiny/{SITE_PACKAGES}/first"
    hostile = in_builder(
        tmp_path,
        f"import os\nos.path.lexists({folder!r}) or os.symlink({str(outside)!r}, {folder!r})\n",
    )
    store.build(first, hostile)
    assert [path.name for path in outside.iterdir()] == ["deep.txt"]
    store.require_as_whole(store.build(first), first)
    cached = tmp_path / "__pycache__"
    cached.symlink_to(outside)
    forget_bytecode(str(tmp_path / "deep.py"))
    assert (outside / "deep.txt").exists()


def harm_small_wheel(home: Path) -> None:
    next(home.glob("*.whl")).write_bytes(b"PK")


def harm_mode(home: Path) -> None:
    (home / "files/first/__init__.py").chmod(0o600)


def harm_index(home: Path) -> None:
    (home / "wheel.msgpack").write_bytes(b"\x93")


def harm_rules(home: Path) -> None:
    """As if another version of envferry had taken it apart."""
    index = home / "wheel.msgpack"
    about = msgspec.msgpack.decode(index.read_bytes())
    index.write_bytes(msgspec.msgpack.encode({**about, "rules": "by-others"}))


def harm_stamps(home: Path) -> None:
    (home / "files.stamps").unlink()


def harm_kind(home: Path) -> None:
    shutil.rmtree(home)
    home.write_text("a file")


def harm_file(home: Path) -> None:
    (home / "files/first/__init__.py").unlink()
    (home / "files/first/__init__.py").symlink_to("/etc/passwd")


def test_whatever_is_wrong_in_the_store_is_made_again(store: Store, tmp_path: Path) -> None:
    harms = (harm_small_wheel, harm_mode, harm_index, harm_rules, harm_stamps, harm_kind, harm_file)
    wheels = [wheel(tmp_path, f"first{number}", FILES) for number in range(len(harms))]
    modules = [f"{SITE_PACKAGES}/first{number}.py" for number in range(len(harms))]
    store.build(*wheels, name="one")
    homes = {next(home.glob("*.whl")).name: home for home in store_homes(tmp_path)}
    for harm, path in zip(harms, wheels, strict=True):
        harm(homes[path.name])
    two = store.build(*wheels, name="two")
    store.require_as_whole(two, *wheels)
    assert [is_stored(two, module) for module in modules] == [True] * len(harms)
    indexes = [home / "wheel.msgpack" for home in store_homes(tmp_path)]
    assert not any(b"by-others" in index.read_bytes() for index in indexes)
    assert {next(home.glob("*.whl")).name for home in store_homes(tmp_path)} == set(homes)


def store_homes(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "downloads/wheels").glob("*/??/*"))


def test_metadata_of_eggs_is_looked_at_before_all_is_linked(store: Store, tmp_path: Path) -> None:
    egg = wheel(tmp_path, "first", {**FILES, "egg-1.egg-info/PKG-INFO": "Name: egg\nVersion: 1\n"})
    store.require_as_whole(store.build(egg), egg)


def test_modules_with_dots_in_their_names_lose_nothing_to_others(
    store: Store, tmp_path: Path
) -> None:
    one = wheel(tmp_path, "one", {"p/m.py": "M = 1\n", "p/m.extra.py": "E = 1\n"})
    two = wheel(tmp_path, "two", {"p/m.py": "M = 2\n"})
    store.require_as_whole(store.build(one, two), one, two)
    code = wheel(tmp_path, "xcode", {f"p/__pycache__/m.{TAG}.pyc": "old"})
    store.require_as_whole(store.build(one, code, name="code"), one, code)
