"""Builds of packages in the shapes that real ones have, by records that channels have patched."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from envferry.build.download import hash_file
from envferry.engines.selection import Engine, open_sandbox
from envferry.errors import SpecError, ToolFailed
from envferry.lock.conda.index_channel import index_channel
from envferry.lock.lock_options import LockOptions
from envferry.lock.stage import lock_spec
from envferry.progress import Silent
from envferry.specs.locks import read_lock
from envferry.specs.reading import read_spec
from tests.conftest import require
from tests.support.builds import BuildRunner
from tests.support.conda_shapes import Shape, lock_entry

if TYPE_CHECKING:
    from envferry.models import LockedPackage

pytestmark = pytest.mark.container
OUTSIDE = "points outside the environment|invalid package-relative archive path"
"""As we say it, and as rattler does when it meets the file itself first."""
LONG = "/" + "placehold_" * 20


@pytest.fixture
def runner(tmp_path: Path) -> BuildRunner:
    require("bwrap", shutil.which("bwrap"))
    return BuildRunner(home=tmp_path, sandbox=open_sandbox(Engine.BWRAP))


def build(runner: BuildRunner, *packages: LockedPackage) -> Path:
    return Path(runner.build_packages(packages).tree)


def make(home: Path, *shapes: Shape) -> list[Path]:
    return [shape.write(home / "channel/linux-64") for shape in shapes]


def meta(tree: Path, name: str) -> dict[str, Any]:
    """Return the record of a package in conda-meta."""
    (path,) = tree.glob(f"conda-meta/{name}-*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


TERMINAL = Shape(name="ncurses", version="6.5", build="h2_3")
EDITOR = Shape(
    name="libedit",
    version="3.1",
    index={"depends": ["ncurses >=6.2,<6.3.0a0"], "constrains": ["ncurses <6.3"]},
)


def test_the_lock_says_what_packages_need_and_not_they(runner: BuildRunner, tmp_path: Path) -> None:
    terminal, editor = make(tmp_path, TERMINAL, EDITOR)
    patched = {
        "depends": ["ncurses >=6.2,<7.0a0 h2_*"],
        "license": "BSD-2-Clause",
        "timestamp": 1_700_000_000_000,
        "subdir": "linux-64",
    }
    needs = {"ncurses": ">=6.2,<7.0a0"}
    entry = lock_entry(editor, record=patched, dependencies=needs)
    found = meta(build(runner, lock_entry(terminal), entry), "libedit")
    assert found["depends"] == patched["depends"]
    assert not found.get("constrains")
    assert found["license"] == "BSD-2-Clause"
    assert found["timestamp"] == patched["timestamp"]

    wrong = lock_entry(editor, record={"depends": ["ncurses >=7"]}, dependencies={"ncurses": ">=7"})
    with pytest.raises(SpecError, match=r"libedit 3\.1 needs ncurses >=7, but the lock has 6\.5"):
        build(runner, lock_entry(terminal), wrong)


def test_a_channel_that_patched_its_index(runner: BuildRunner, tmp_path: Path) -> None:
    """From spec to environment: what conda-forge's libedit and ncurses are like."""
    make(tmp_path, TERMINAL, EDITOR)
    channel = tmp_path / "channel"
    index_channel(channel)
    path = channel / "linux-64/repodata.json"
    content = json.loads(path.read_text())
    patched = content["packages.conda"]["libedit-3.1-0.conda"]
    patched |= {"depends": ["ncurses >=6.2,<7.0a0"], "license": "BSD-2-Clause"}
    del patched["constrains"]
    path.write_text(json.dumps(content))
    spec = tmp_path / "edit.yml"
    spec.write_text(f"channels: [{channel.as_uri()}]\ndependencies: [libedit]\n")
    options = LockOptions(platforms=("linux-64",))
    lock = lock_spec(read_spec(spec), options=options, progress=Silent())
    assert read_lock(lock.path) == lock
    found = meta(build(runner, *lock.packages), "libedit")
    assert found["depends"] == patched["depends"]
    assert found["license"] == "BSD-2-Clause"
    assert not found.get("constrains")
    assert {found["md5"], found["sha256"]} == {patched["md5"], patched["sha256"]}
    assert found["url"] == (channel / "linux-64/libedit-3.1-0.conda").as_uri()


def test_a_package_that_says_nowhere_what_it_is_for(runner: BuildRunner, tmp_path: Path) -> None:
    file = Shape(name="lost", index={"subdir": None}).write(tmp_path / "pool")
    assert meta(build(runner, lock_entry(file)), "lost")["subdir"] == "linux-64"
    tree = build(runner, lock_entry(file, record={"subdir": "noarch"}))
    assert meta(tree, "lost")["subdir"] == "noarch"


def test_a_lock_of_another_tool_has_needs_and_no_limits(
    runner: BuildRunner, tmp_path: Path
) -> None:
    terminal, editor = make(tmp_path, TERMINAL, EDITOR)
    entry = lock_entry(editor, dependencies={"ncurses": ">=6.2,<7.0a0"})
    found = meta(build(runner, lock_entry(terminal), entry), "libedit")
    assert found["depends"] == ["ncurses >=6.2,<7.0a0"]


def test_a_lock_without_needs_is_built_with_a_warning(
    runner: BuildRunner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    terminal, editor = make(tmp_path, TERMINAL, EDITOR)
    build(runner, lock_entry(terminal), lock_entry(editor))
    assert "libedit 3.1 needs ncurses >=6.2,<6.3.0a0, but the lock has 6.5" in caplog.text


def test_a_zip_with_a_needless_zip64_field(runner: BuildRunner, tmp_path: Path) -> None:
    shape = Shape(name="tool", files={"share/tool": "here\n"}, has_needless_zip64=True)
    tree = build(runner, *map(lock_entry, make(tmp_path, shape)))
    assert (tree / "share/tool").read_text() == "here\n"


ACTIVATE = "export TOOL_HOME=$CONDA_PREFIX/share/tool; not_exported=1\n"
SCRIPT = """\
printf '%s\\n' "$PKG_NAME" "$PKG_VERSION" "$PKG_BUILDNUM" "$PREFIX" "$CONDA_PREFIX" \\
  "$CONDA_DEFAULT_ENV" "$CONDA_SHLVL" "$TOOL_HOME" "$FROM_JSON" "$0" "$PWD" > $PREFIX/said
helper >> $PREFIX/said
echo "read me, $PKG_NAME" > $PREFIX/.messages.txt
"""


def test_scripts_run_in_an_activated_environment(
    runner: BuildRunner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {
        "etc/conda/activate.d/tool.sh": ACTIVATE,
        "etc/conda/env_vars.d/tool.json": '{"FROM_JSON": "yes"}',
        "bin/helper": "#!/bin/sh\necho helped\n",
    }
    helper = Shape(name="helper", files=files)
    scripted = Shape(
        name="scripted",
        version="2",
        index={"depends": ["helper"]},
        files={"bin/.scripted-post-link.sh": SCRIPT},
    )
    tree = build(runner, *map(lock_entry, make(tmp_path, scripted, helper)))
    prefix = "/opt/conda/envs/tiny"
    assert (tree / "said").read_text().splitlines() == [
        *("scripted", "2", "0", prefix, prefix, "tiny", "1", f"{prefix}/share/tool", "yes"),
        *(f"{prefix}/bin/.scripted-post-link.sh", prefix, "helped"),
    ]
    assert "scripted says: read me, scripted" in caplog.text
    assert not (tree / ".messages.txt").exists()


OLD = {"arch": "x86_64", "platform": "linux", "subdir": None}


def test_a_package_of_2015(runner: BuildRunner, tmp_path: Path) -> None:
    shape = Shape(
        name="old",
        version="1.0",
        ending=".tar.bz2",
        has_paths_json=False,
        index=OLD,
        info={"no_link": "etc/old.conf\n"},
        files={
            "bin/old": "#!/opt/anaconda1anaconda2anaconda3/bin/sh\necho old\n",
            "etc/old.conf": "a = 1\n",
            "lib/libold.so.1": f"\0{LONG}\0",
            "lib/libold.so": "-> libold.so.1",
        },
        prefixes={
            "bin/old": ("/opt/anaconda1anaconda2anaconda3", "text"),
            "lib/libold.so.1": (LONG, "binary"),
        },
    )
    (file,) = make(tmp_path, shape)
    tree = build(runner, lock_entry(file))
    prefix = "/opt/conda/envs/tiny"
    assert (tree / "bin/old").read_text().startswith(f"#!{prefix}/bin/sh")
    assert (tree / "lib/libold.so.1").read_bytes().startswith(f"\0{prefix}\0".encode())
    assert (tree / "lib/libold.so").readlink() == Path("libold.so.1")
    assert (tree / "etc/old.conf").read_text() == "a = 1\n"
    assert meta(tree, "old")["subdir"] == "linux-64"


@pytest.mark.parametrize("has_paths_json", [True, False])
@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("conda-meta/x-1-0.json", "would be one of conda's own records"),
        ("conda-meta//x-1-0.json", "would be one of conda's own records"),
        ("../stray", OUTSIDE),
        ("/etc/stray", OUTSIDE),
    ],
)
def test_files_that_no_package_may_have(
    runner: BuildRunner, tmp_path: Path, path: str, words: str, has_paths_json: bool
) -> None:
    shape = Shape(name="bad", files={path: "{}"}, has_paths_json=has_paths_json, ending=".tar.bz2")
    with pytest.raises(SpecError) as caught:
        build(runner, *map(lock_entry, make(tmp_path, shape)))
    assert re.search(words, caught.value.message)
    assert "bad-1-0.tar.bz2" in caught.value.message
    assert "panicked" not in caught.value.message


def test_what_is_put_aside_is_not_carried(runner: BuildRunner, tmp_path: Path) -> None:
    shapes = [Shape(name=name, files={"share/x": name, f"share/{name}": ""}) for name in "ab"]
    tree = build(runner, *map(lock_entry, make(tmp_path, *shapes)))
    assert not (tree / "__clobbers__").exists()
    listed = {file for name in "ab" for file in meta(tree, name)["files"]}
    assert listed == {"share/x", "share/a", "share/b"}
    assert not [
        entry
        for name in "ab"
        for entry in meta(tree, name)["paths_data"]["paths"]
        if "__clobbers__" in entry["_path"]
    ]


def test_a_script_that_fails_says_what_it_said(runner: BuildRunner, tmp_path: Path) -> None:
    script = {"bin/.bad-post-link.sh": "echo so sorry; exit 3\n"}
    with pytest.raises(ToolFailed, match=r"(?s)post-link script of bad 1 exited with 3.*so sorry"):
        build(runner, *map(lock_entry, make(tmp_path, Shape(name="bad", files=script))))


def test_shapes_that_packages_have(runner: BuildRunner, tmp_path: Path) -> None:
    """What is beside the files that are linked is taken as conda takes it."""
    menu = Shape(
        name="menu",
        files={"Menu/menu.json": '{"menu_name": "x", "menu_items": []}', "bin/menu": "#!/bin/sh\n"},
        info={
            "run_exports.json": '{"weak": ["menu >=1"]}',
            "about.json": '{"home": "https://menu.example"}',
            "link.json": '{"noarch": {"type": "generic"}, "package_metadata_version": 1}',
        },
        index={"noarch": "generic", "subdir": "noarch"},
    )
    linked = Shape(
        name="linked",
        files={"lib/real": "real\n", "lib/short": "-> real", "lib64": "-> lib"},
        index={"track_features": "mkl", "license": "MIT"},
    )
    old, new = make(tmp_path, menu, linked)
    md5 = hash_file(old, "md5", lambda _: None)
    tree = build(runner, lock_entry(old, sha256=None, md5=md5), lock_entry(new))
    assert (tree / "lib64/short").read_text() == "real\n"
    assert meta(tree, "linked")["track_features"] == "mkl"
    assert meta(tree, "menu")["md5"] == md5
    assert (tree / "Menu/menu.json").exists()


def test_python_packages_for_every_python(runner: BuildRunner, tmp_path: Path) -> None:
    """CEP 17: python says where its packages are; `noarch: python` is put there, with scripts."""
    site = "lib/python3.13t/site-packages"
    python = Shape(
        name="python",
        version="3.13.1",
        files={"share/python": "no interpreter is needed here\n"},
        index={"python_site_packages_path": site},
    )
    links = {"type": "python", "entry_points": ["tool = tool.main:run"]}
    tool = Shape(
        name="tool",
        files={"site-packages/tool/main.py": "run = print\n", "python-scripts/extra": "x\n"},
        index={"noarch": "python", "subdir": "noarch", "depends": ["python >=3.9"]},
        info={"link.json": json.dumps({"noarch": links, "package_metadata_version": 1})},
    )
    tree = build(runner, *map(lock_entry, make(tmp_path, python, tool)))
    assert (tree / site / "tool/main.py").exists()
    assert (tree / "bin/extra").exists()
    script = (tree / "bin/tool").read_text()
    assert script.startswith("#!/opt/conda/envs/tiny/bin/python3.13")
    assert "from tool.main import run" in script
    assert f"{site}/tool/main.py" in meta(tree, "tool")["files"]


def test_r_without_python(runner: BuildRunner, tmp_path: Path) -> None:
    base = Shape(name="r-base", version="4.4.2", files={"lib/R/bin/R": "#!/bin/sh\n"})
    digest = Shape(
        name="r-digest",
        version="0.6",
        index={"depends": ["r-base >=4.4,<4.5.0a0"]},
        files={"lib/R/library/digest/DESCRIPTION": "Package: digest\n"},
    )
    tree = build(runner, *map(lock_entry, make(tmp_path, base, digest)))
    assert (tree / "lib/R/library/digest/DESCRIPTION").exists()
