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

from envferry.archive.reader import Archive, FileSource
from envferry.base.file_stamps import TREE_NOTE
from envferry.build.earlier_build import TreeNote
from envferry.build.tree_comparison import compare_trees
from envferry.engines.selection import Engine, open_sandbox
from envferry.errors import SpecError, ToolFailed
from envferry.models import Checks, DataFile
from envferry.pack.earlier_pack import PackNotes
from envferry.pack.pack_options import PackOptions
from envferry.pack.stage import pack_env
from envferry.progress import Silent
from tests.conftest import require
from tests.integration.test_build import packages, python_files
from tests.support.builds import BuildRunner, file_hash
from tests.support.packed_twice import Disturbed
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
        same = {path for path, inode in self.inodes.items() if before.get(path) == inode}
        # Wheels come from the store, also where nothing is taken from the build before.
        stored = set(inodes(self.runner.home / "downloads/wheels").values())
        return same if any(self.inodes[path] not in stored for path in same) else set()

    def require_as_from_scratch(self, wheels: Iterable[Path] = (), **options: Any) -> None:
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
    rebuilds.require_as_from_scratch([first, newer])

    kept = rebuilds.build([newer])
    assert f"{SITE_PACKAGES}/other/__init__.py" in kept
    assert not (rebuilds.tree / SITE_PACKAGES / "common").exists()
    assert not (rebuilds.tree / "share/first.txt").exists()

    assert PYTHON in rebuilds.build([second, first])
    rebuilds.require_as_from_scratch([first, second])


def test_a_pack_reads_only_what_a_build_has_made_anew(
    python_rebuilds: Rebuilds, tmp_path: Path
) -> None:
    rebuilds = python_rebuilds
    first, second = wheel(tmp_path, "first"), wheel(tmp_path, "second")
    built = rebuilds.runner.build([*rebuilds.conda, first])
    options = PackOptions(output_dir=tmp_path / "dist", notes_dir=tmp_path / "notes")
    before = pack_env(built, options=options, progress=Silent())
    (note,) = PackNotes(tmp_path / "notes").about(built)
    with FileSource(before.archive_path) as source:
        archive = Archive(source)
        known = {
            archive.index.files[piece.member].path
            for plan, digest in zip(archive.plans, note.frames.sources, strict=True)
            for piece in plan.pieces
            if digest and piece.length
            # Libraries are looked into, for which GPUs they have code.
            if ".so" not in archive.index.files[piece.member].path
        }
    older = inodes(rebuilds.tree)
    built = rebuilds.runner.build([*rebuilds.conda, first, second])
    linked = [path for path in known if inodes(rebuilds.tree).get(path) == older[path]]
    assert len(linked) > 100
    expected = pack_env(
        built, options=PackOptions(output_dir=tmp_path / "from-nothing"), progress=Silent()
    )

    def remove() -> None:
        for path in linked:
            (rebuilds.tree / path).unlink()

    after = pack_env(built, options=options, progress=Disturbed(remove))
    assert after.archive_path.read_bytes() == expected.archive_path.read_bytes()
    assert after.manifest.id != before.manifest.id


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
    rebuilds.require_as_from_scratch(**options)
    assert "bin/tool" in rebuilds.build(data=(item,))
    assert (rebuilds.tree / "share/words/words.txt").read_text() == "one\n"
    assert not (rebuilds.tree / "conda-meta/state").exists()
    rebuilds.require_as_from_scratch(data=(item,))


@pytest.mark.parametrize(
    "harm", ["change", "mode", "add", "remove", "replace", "note", "no note", "copy", "tools"]
)
def test_a_tree_that_was_touched_is_not_used(rebuilds: Rebuilds, tmp_path: Path, harm: str) -> None:
    rebuilds.build()
    assert "bin/tool" in rebuilds.build()
    tool, note = rebuilds.tree / "bin/tool", rebuilds.home / TREE_NOTE
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
    rebuilds.require_as_from_scratch()
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
    rebuilds.require_as_from_scratch()


def test_a_state_that_a_package_brings_stays(rebuilds: Rebuilds, tmp_path: Path) -> None:
    state = ("conda-meta/state", '{"env_vars":{"HELLO":"1"}}\n')
    rebuilds.conda += packages(
        tmp_path / "more", TinyPackage(name="stated", version="1.0", files=(state,))
    )
    rebuilds.build()
    rebuilds.build()
    assert (rebuilds.tree / state[0]).read_text() == state[1]
    rebuilds.require_as_from_scratch()


def test_a_wheel_with_an_empty_folder_goes_without_a_trace(
    python_rebuilds: Rebuilds, tmp_path: Path
) -> None:
    first = wheel(tmp_path, "first", {"deep/empty/": "", "deep/full/x.txt": "1\n"})
    python_rebuilds.build([first])
    python_rebuilds.build()
    assert not (python_rebuilds.tree / SITE_PACKAGES / "deep").exists()


def test_wheels_with_empty_folders_do_not_lead_to_builds_from_scratch(
    python_rebuilds: Rebuilds, tmp_path: Path
) -> None:
    """As auditwheel leaves them: `NAME.libs/` in a wheel that needs no library."""
    empty = wheel(tmp_path, "empty", {"empty.libs/": "", "empty/__init__.py": ""})
    other = wheel(tmp_path, "other", {"empty.libs/x.so": "1\n"})
    first, second = (wheel(tmp_path, "changes", version=version) for version in ("1.0", "2.0"))
    place = python_rebuilds.tree / SITE_PACKAGES / "empty.libs"
    python_rebuilds.build([empty, first])
    assert PYTHON in python_rebuilds.build([empty, second])
    assert place.is_dir()
    python_rebuilds.require_as_from_scratch([empty, second])
    assert PYTHON in python_rebuilds.build([second])
    assert not place.exists()
    python_rebuilds.build([empty, other, first], from_scratch=True)
    assert PYTHON in python_rebuilds.build([empty, first])
    assert place.is_dir(), "the folder of the wheel that stays"
    python_rebuilds.require_as_from_scratch([empty, first])


def test_files_that_stay_contested_do_not_lead_to_builds_from_scratch(
    python_rebuilds: Rebuilds, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two wheels have one README: which one stays does not depend on a third wheel."""
    first = wheel(tmp_path, "first", {"README.md": "first\n"})
    second = wheel(tmp_path, "second", {"README.md": "second\n"})
    old, new = (wheel(tmp_path, "changes", version=version) for version in ("1.0", "2.0"))
    python_rebuilds.build([first, second, old])
    caplog.clear()
    assert PYTHON in python_rebuilds.build([first, second, new])
    assert "first, second all have" in caplog.text
    python_rebuilds.require_as_from_scratch([first, second, new])
    assert PYTHON in python_rebuilds.build([first, second, old]), "known after two builds, too"
    assert PYTHON not in python_rebuilds.build([first, old])
    assert (python_rebuilds.tree / SITE_PACKAGES / "README.md").read_text() == "first\n"


def test_names_that_are_not_utf_8_are_built_from_nothing(
    rebuilds: Rebuilds, tmp_path: Path
) -> None:
    rebuilds.conda = linked(tmp_path, "touch $(printf 'a\\377')")
    rebuilds.build()
    assert rebuilds.build() == set()
    assert b"a\xff" in os.listdir(os.fsencode(rebuilds.tree))  # noqa: PTH208


def test_a_build_that_another_user_noted_is_not_used(rebuilds: Rebuilds) -> None:
    rebuilds.build()
    (rebuilds.home / TREE_NOTE).chmod(0o666)
    assert rebuilds.build() == set()


PLACEHOLDER = "/" + "placehold_" * 20


def native(version: str, **changes: Any) -> TinyPackage:
    """Return a package with a program, a module and a text that holds the prefix."""
    files = (
        (f"bin/native-{version}", f"#!{PLACEHOLDER}/bin/sh\n"),
        ("share/native/place", f"{PLACEHOLDER}/share\n"),
        (f"{SITE_PACKAGES}/native/_{version[0]}.py", f"VERSION = {version!r}\n"),
        (f"{SITE_PACKAGES}/native/__init__.py", "X = 1\n"),
    )
    return TinyPackage(
        **{"name": "native", "version": version, "files": files, "placeholder": PLACEHOLDER}
        | changes
    )


def pure(version: str, **changes: Any) -> TinyPackage:
    """Return a package for every python."""
    files = (
        (f"site-packages/pure/_{version[0]}.py", f"VERSION = {version!r}\n"),
        ("site-packages/pure/__init__.py", "X = 1\n"),
        ("python-scripts/pure", "#!/usr/bin/env python\n"),
    )
    return TinyPackage(
        **{"name": "pure", "version": version, "subdir": "noarch", "files": files}
        | {"depends": ("python",)}
        | changes
    )


def test_conda_packages_come_go_and_change(python_rebuilds: Rebuilds, tmp_path: Path) -> None:
    rebuilds, python = python_rebuilds, python_rebuilds.conda
    first = wheel(tmp_path, "first", {"first/__init__.py": "WHO = 1\n"})
    second = wheel(tmp_path, "second", {"second/__init__.py": "WHO = 2\n"})
    rebuilds.conda = python + packages(tmp_path / "one", native("1.0"), pure("1.0"))
    rebuilds.build([first])

    rebuilds.conda = python + packages(tmp_path / "two", native("2.0"), pure("2.0"))
    kept = rebuilds.build([first])
    assert {PYTHON, f"{SITE_PACKAGES}/first/__init__.py"} <= kept
    assert any("first/__pycache__" in path for path in kept)
    own = ("native", "pure")
    assert {path for path in kept if path.split("/")[-2] in own} == set()
    for name in own:
        package = rebuilds.tree / SITE_PACKAGES / name
        modules = {path.name.partition(".")[0] for path in package.rglob("*.py*")}
        assert modules == {"__init__", "_2"}
        assert len(list(package.glob("__pycache__/*.pyc"))) == 2
    assert (rebuilds.tree / "share/native/place").read_bytes().startswith(b"/opt/conda/envs/tiny/")
    rebuilds.require_as_from_scratch([first])

    rebuilds.conda = python
    assert PYTHON in rebuilds.build([first])
    assert not (rebuilds.tree / "share/native").exists()
    assert not list(rebuilds.tree.glob("conda-meta/pure-*"))
    rebuilds.require_as_from_scratch([first])

    rebuilds.conda = python + packages(tmp_path / "three", pure("1.0"), native("1.0"))
    assert PYTHON in rebuilds.build([second])
    rebuilds.require_as_from_scratch([second])
    rebuilds.conda = python + packages(tmp_path / "four", pure("3.0"))
    assert f"{SITE_PACKAGES}/second/__init__.py" in rebuilds.build([second, first])
    rebuilds.require_as_from_scratch([second, first])


SCRIPT = ("bin/.native-post-link.sh", "#!/bin/sh\necho made > $PREFIX/share/made\n")
COLD = {
    "a script": ((native("1.0", files=(*native("1.0").files, SCRIPT)),), "script"),
    "a module at start": ((pure("2.0", files=(("site-packages/pure.pth", "#\n"),)),), "start"),
    "a link to a folder": ((native("2.0", links=(("lib64", "lib"),)),), "link to a folder"),
    "a file of two": (
        (native("2.0"), TinyPackage(name="other", version="1.0", files=native("2.0").files[:1])),
        "several packages",
    ),
    "byte code of another": (
        (
            native("2.0"),
            TinyPackage(
                name="other",
                version="1.0",
                files=((f"{SITE_PACKAGES}/native/__pycache__/__init__.cpython-399.pyc", "x"),),
            ),
        ),
        "byte code",
    ),
    "a file of a wheel": (
        (pure("2.0", files=(("site-packages/first/__init__.py", "WHO = 2\n"),)),),
        "already exists",
    ),
    "below a file": (
        (pure("2.0", files=(("site-packages/first/__init__.py/x", "X\n"),)),),
        "not a folder of its own",
    ),
}


@pytest.mark.parametrize("kind", COLD)
def test_conda_packages_that_concern_others_are_linked_anew(
    python_rebuilds: Rebuilds, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And so are those after which such a package has to go."""
    caplog.set_level("INFO", "envferry")
    rebuilds, python = python_rebuilds, python_rebuilds.conda
    first = wheel(tmp_path, "first", {"first/__init__.py": "WHO = 1\n"})
    changed, reason = COLD[kind]
    rebuilds.conda = python + packages(tmp_path / "one", pure("1.0"))
    rebuilds.build([first])
    rebuilds.conda = python + packages(tmp_path / "two", *changed)
    if kind in ("a file of a wheel", "below a file"):
        with pytest.raises((SpecError, ToolFailed)):
            rebuilds.build([first])
        assert reason in caplog.text
        return
    assert rebuilds.build([first]) == set()
    assert reason in caplog.text
    rebuilds.require_as_from_scratch([first])
    rebuilds.conda = python
    assert rebuilds.build([first]) == set()
    rebuilds.require_as_from_scratch([first])


def test_another_python_makes_all_anew(
    rebuilds: Rebuilds, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "envferry")
    rebuilds.conda += packages(tmp_path / "one", TinyPackage(name="python", version="3.10.1"))
    rebuilds.build()
    rebuilds.conda[1:] = packages(tmp_path / "two", TinyPackage(name="python", version="3.11.1"))
    assert rebuilds.build() == set()
    assert "python changed" in caplog.text


def test_what_conda_packages_need_of_each_other_is_checked_again(
    rebuilds: Rebuilds, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    needed = TinyPackage(name="needed", version="1.0", files=(("share/needed", "1\n"),))
    needs = TinyPackage(name="needs", version="1.0", depends=("needed <2",))
    rebuilds.conda += packages(tmp_path / "one", needed, needs)
    rebuilds.build()
    rebuilds.conda[1:] = packages(
        tmp_path / "two", TinyPackage(name="needed", version="2.0"), needs
    )
    assert "bin/tool" in rebuilds.build()
    assert "needs needed <2, but the lock has 2.0" in caplog.text
    rebuilds.conda.pop(1)
    assert "bin/tool" in rebuilds.build()
    assert "needs needed <2, but needed is not in the lock" in caplog.text
