"""Which interpreters the one-file tool takes, and what of them."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from envferry.channel.interpreter import find_interpreter
from envferry.channel.interpreter_staging import stage_interpreter
from envferry.errors import SpecError
from envferry.names import current_platform
from envferry.tool import tool_python as under_test
from envferry.tool.tool_python import (
    add_interpreter,
    has_debug_information,
    machine_of,
    needed_libraries,
)
from envferry.tool.tree import host_libraries, strip_debug_information

MINOR = "{}.{}".format(*sys.version_info)
OTHER = {"linux-64": "linux-aarch64", "linux-aarch64": "linux-64"}[current_platform()]
MACHINES = {"linux-64": 62, "linux-aarch64": 183}


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter that runs the tests, relocatable, as conda has it."""
    tree = tmp_path_factory.mktemp("staged") / "env"
    stage_interpreter(find_interpreter(sys.executable), tree)
    return tree


def start(tree: Path, code: str) -> str:
    """Run code with the interpreter of a tree, and with nothing of this machine's Python."""
    command: list[str | Path] = [tree / f"bin/python{MINOR}", "-I", "-B", "-c", code]
    return subprocess.run(command, env={}, capture_output=True, text=True, check=True).stdout


def test_the_interpreter_of_this_machine(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    python = add_interpreter(Path(sys.executable), current_platform(), tree)
    assert python.minor == MINOR
    assert python.version.startswith(f"{MINOR}.")
    said = start(tree, "import ssl, sqlite3, ctypes, hashlib, lzma, bz2, sys; print(sys.prefix)")
    assert said == f"{tree}\n"
    names = {path.name for path in tree.rglob("*")}
    assert not names & {"test", "idlelib", "tkinter", "ensurepip", "include", "pkgconfig", "pip"}
    assert not [name for name in names if name.startswith(("libreadline", "readline.", "_test"))]
    assert not [name for name in names if name.endswith((".a", ".pyc", ".o"))]


def test_a_relocatable_interpreter_is_only_read(
    staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of another platform, which cannot be asked; so that the result can be tried here."""
    executable = staged / f"bin/python{MINOR}"
    monkeypatch.setattr(under_test, "current_platform", lambda: OTHER)
    tree = tmp_path / "tree"
    python = add_interpreter(executable, current_platform(), tree)
    assert python.version == "{}.{}.{}".format(*sys.version_info)
    assert start(tree, "import ssl, sqlite3, sys; print(sys.prefix)") == f"{tree}\n"
    assert (tree / python.site_packages).is_dir()
    libraries = {path.name for path in (tree / "lib").iterdir()} - {f"python{MINOR}"}
    used = {
        name for path in tree.rglob("*") if ".so" in path.name for name in needed_libraries(path)
    }
    assert libraries <= used | set(needed_libraries(tree / f"bin/python{MINOR}"))
    assert set(host_libraries(tree)) <= {"libgcc_s.so.1", "libstdc++.so.6"}


def test_a_relocatable_interpreter_of_debian(
    staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would look for packages in `dist-packages`, and not find envferry."""
    built = tmp_path / "of-debian"
    shutil.copytree(staged, built, symlinks=True)
    library = built / f"lib/python{MINOR}"
    (library / "sitecustomize.py").unlink(missing_ok=True)
    with (library / "site.py").open("a") as stream:
        stream.write("# dist-packages\n")
    monkeypatch.setattr(under_test, "current_platform", lambda: OTHER)
    tree = tmp_path / "tree"
    python = add_interpreter(built / f"bin/python{MINOR}", current_platform(), tree)
    (tree / python.site_packages / "ours.py").write_text("place = __file__\n")
    said = start(tree, "import sitecustomize, ours; print(sitecustomize.__file__, ours.place)")
    assert said.split() == [
        f"{tree}/lib/python{MINOR}/sitecustomize.py",
        f"{tree}/{python.site_packages}/ours.py",
    ]


def test_an_interpreter_of_the_wrong_machine(staged: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=f"is for {current_platform()}, expected {OTHER}"):
        add_interpreter(staged / f"bin/python{MINOR}", OTHER, tmp_path / "tree")
    script = tmp_path / "python3.12"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(SpecError, match="no platform known here"):
        add_interpreter(script, OTHER, tmp_path / "tree")
    with pytest.raises(SpecError, match="cannot read"):
        add_interpreter(tmp_path / "missing", OTHER, tmp_path / "tree")


def test_an_executable_without_its_library(staged: Path, tmp_path: Path) -> None:
    """The machine is that of the other platform, and lib/python3.X is not beside it."""
    content = bytearray((staged / f"bin/python{MINOR}").read_bytes())
    struct.pack_into("<H", content, 18, MACHINES[OTHER])
    (tmp_path / "bin").mkdir()
    executable = tmp_path / f"bin/python{MINOR}"
    executable.write_bytes(content)
    assert machine_of(executable) == OTHER
    with pytest.raises(SpecError, match="with its lib/python3"):
        add_interpreter(executable, OTHER, tmp_path / "tree")


def test_a_python_that_envferry_does_not_run_on(
    staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old"
    shutil.copytree(staged / "bin", old / "bin", symlinks=True)
    (old / f"bin/python{MINOR}").rename(old / "bin/python3.6")
    (old / "lib/python3.6").mkdir(parents=True)
    (old / "lib/python3.6/os.py").touch()
    monkeypatch.setattr(under_test, "current_platform", lambda: OTHER)
    with pytest.raises(SpecError, match=r"is Python 3\.6, envferry runs on 3\.10"):
        add_interpreter(old / "bin/python3.6", current_platform(), tmp_path / "tree")


def test_only_debuggers_miss_what_is_stripped(staged: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(staged, tree, symlinks=True)
    binaries = [path for path in tree.rglob("*.so*") if path.is_file() and not path.is_symlink()]
    strip_debug_information(binaries)
    if shutil.which("strip"):
        assert not any(has_debug_information(path) for path in binaries)
    assert start(tree, "import ssl; print(1)") == "1\n"
