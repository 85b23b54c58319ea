"""What of a virtual environment is carried, and what is refused, before anything is laid out."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from envferry.channel.venv_files import copied_files, copy_entry, point_to_interpreter, settings_of
from envferry.channel.virtual_env import interpreter_of
from envferry.cli.main import envferry
from envferry.errors import SpecError

if TYPE_CHECKING:
    from pathlib import Path

SITE_PACKAGES = "lib/python{}.{}/site-packages".format(*sys.version_info)


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """Return a virtual environment of the python that runs the tests."""
    folder = tmp_path / "proj/.venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder


def test_the_files_that_make_it_one_stay_behind(venv: Path) -> None:
    module = venv / SITE_PACKAGES / "mine.py"
    module.write_text("")
    (module.parent / "__pycache__").mkdir()
    (module.parent / "__pycache__/mine.cpython-311.pyc").write_bytes(b"")
    for path in ("bin/python-argcomplete", "share/doc/mine.txt"):
        (venv / path).parent.mkdir(parents=True, exist_ok=True)
        (venv / path).write_text("")
    faults: list[str] = []
    found = {item.path for item in copied_files(venv, faults)}
    assert found == {f"{SITE_PACKAGES}/mine.py", "bin/python-argcomplete", "share/doc/mine.txt"}
    assert faults == []


def test_what_nobody_can_read_is_a_fault(venv: Path) -> None:
    os.mkfifo(venv / "share")
    faults: list[str] = []
    assert "share" not in {item.path for item in copied_files(venv, faults)}
    assert faults == ["'share' is a socket, pipe or device"]


def test_links_into_a_cache_become_files_and_others_stay(venv: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache/mine.py"
    cache.parent.mkdir()
    cache.write_text("x = 1\n")
    site_packages = venv / SITE_PACKAGES
    (site_packages / "mine.py").symlink_to(cache)
    (site_packages / "alias.py").symlink_to("mine.py")
    (site_packages / "gone.py").symlink_to("/nowhere/gone.py")
    tree = tmp_path / "tree"
    for item in list(copied_files(venv, [])):
        copy_entry(item, venv, tree)
    assert not (tree / SITE_PACKAGES / "mine.py").is_symlink()
    assert (tree / SITE_PACKAGES / "mine.py").read_text() == "x = 1\n"
    assert str((tree / SITE_PACKAGES / "gone.py").readlink()) == "/nowhere/gone.py"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#!{old}/python3\nx\n", "#!/new/bin/python3\nx\n"),
        ("#!{old}/python3.12 -sP\nx\n", "#!/new/bin/python3.12 -sP\nx\n"),
        ("#!/nowhere/bin/python\nx\n", "#!/new/bin/python\nx\n"),
        (
            "#!/bin/sh\n'''exec' \"{old}/python\" \"$0\" \"$@\"\n' '''\nx\n",
            "#!/bin/sh\n'''exec' \"/new/bin/python\" \"$0\" \"$@\"\n' '''\nx\n",
        ),
        ("#!/new/bin/python\nx\n", "#!/new/bin/python\nx\n"),
        ("#!/usr/bin/env python\nx\n", "#!/usr/bin/env python\nx\n"),
        ("#!/bin/sh\necho {old}/python\n", "#!/bin/sh\necho {old}/python\n"),
    ],
)
def test_scripts_are_run_by_the_carried_python(text: str, expected: str, tmp_path: Path) -> None:
    home = tmp_path / "old/bin"
    home.mkdir(parents=True)
    original = tmp_path / "original"
    original.write_text(text.format(old=home))
    original.chmod(0o755)
    script = tmp_path / "script"
    os.link(original, script)
    assert point_to_interpreter(script, "/new", [home]) is None
    assert script.read_text() == expected.format(old=home)
    assert original.read_text() == text.format(old=home), "the environment itself is only read"
    assert stat.S_IMODE(script.stat().st_mode) == 0o755


def test_a_script_of_another_python_is_named(tmp_path: Path) -> None:
    other = tmp_path / "other/bin/python3"
    other.parent.mkdir(parents=True)
    other.write_text("")
    script = tmp_path / "script"
    script.write_text(f"#!{other}\n")
    assert point_to_interpreter(script, "/new", [tmp_path]) == str(other)
    assert script.read_text() == f"#!{other}\n"


def test_packages_of_the_system_are_refused(venv: Path) -> None:
    settings = venv / "pyvenv.cfg"
    text = settings.read_text().replace("packages = false", "packages = true")
    settings.write_text(text)
    assert settings_of(venv)["include-system-site-packages"] == "true"
    with pytest.raises(SpecError, match="installed in the system's python") as caught:
        interpreter_of(venv)
    assert "include-system-site-packages = false" in caught.value.hint


def test_an_interpreter_that_is_gone_is_named(venv: Path) -> None:
    for name in ("python", "python3"):
        (venv / "bin" / name).unlink(missing_ok=True)
    (venv / "bin/python").symlink_to("/nowhere/python3")
    with pytest.raises(SpecError, match=f"{venv} cannot be carried with its interpreter") as caught:
        interpreter_of(venv)
    assert f"envferry import {venv}" in caught.value.hint


def test_the_command_takes_a_folder_with_a_pyvenv_cfg(
    venv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (venv / "bin/python").unlink()
    monkeypatch.chdir(venv.parent)
    says = CliRunner().invoke(envferry, ["pack", ".venv"])
    assert isinstance(says.exception, SpecError)
    assert ".venv cannot be carried with its interpreter" in says.exception.message
