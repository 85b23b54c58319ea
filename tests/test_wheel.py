"""The wheel: what it puts where, and that no other folder's `envferry` takes its place."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from io import BytesIO
from typing import TYPE_CHECKING

import pytest

from envferry import __version__
from envferry.console_script import put_installed_first
from envferry.transfer.host_tool import CONSOLE_SCRIPT, own_wheel

if TYPE_CHECKING:
    from pathlib import Path

FOREIGN = "raise SystemExit('a foreign folder was imported')\n"
LIBRARIES = sysconfig.get_path("purelib")


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install our own wheel, and nothing else, into an empty virtual environment."""
    import uv

    place = tmp_path_factory.mktemp("wheel")
    name, data = own_wheel()
    (place / name).write_bytes(data)
    uv_words: list[str | Path] = [uv.find_uv_bin(), "--offline", "--no-config", "--quiet"]
    subprocess.run([*uv_words, "venv", "--python", sys.executable, place / "v e n v"], check=True)
    install: list[str | Path] = [
        "pip",
        "install",
        "--no-deps",
        "--python",
        place / "v e n v/bin/python",
    ]
    subprocess.run([*uv_words, *install, place / name], check=True)
    return place / "v e n v"


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Return a folder with packages of our names and of our libraries'."""
    for name in ("envferry", "pipeline"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(FOREIGN)
    for name in ("click", "msgspec", "enum"):
        (tmp_path / f"{name}.py").write_text(FOREIGN)
    return tmp_path


def test_nothing_else_is_in_site_packages(venv: Path) -> None:
    (site_packages,) = venv.glob("lib/python*/site-packages")
    found = {path.name for path in site_packages.iterdir()}
    assert found - {"_virtualenv.py", "_virtualenv.pth"} == {
        "envferry",
        f"envferry-{__version__}.dist-info",
    }
    assert "envferry" in {path.name for path in venv.joinpath("bin").iterdir()}


@pytest.mark.parametrize("named", ["{foreign}:{libraries}", "{libraries}:.:{foreign}"])
def test_the_command_works_beside_foreign_folders(venv: Path, foreign: Path, named: str) -> None:
    """In the current directory and on PYTHONPATH, where only its libraries are."""
    names = {"foreign": foreign / "x/..", "libraries": LIBRARIES}
    environ = {**os.environ, "PYTHONPATH": named.format(**names)}
    if named.startswith("{foreign}"):  # its libraries come first there, too: they hide ours
        for name in ("click", "msgspec"):
            (foreign / f"{name}.py").unlink()
    finished = subprocess.run([venv / "bin/envferry", "--version"], cwd=foreign, env=environ,
                              capture_output=True, text=True, check=False)  # fmt: skip
    assert (finished.stdout, finished.stderr) == (f"envferry, version {__version__}\n", "")


def test_the_module_works_beside_a_foreign_pipeline(venv: Path, foreign: Path) -> None:
    (foreign / "envferry/__init__.py").unlink()
    (foreign / "envferry").rmdir()
    (foreign / "enum.py").unlink()
    environ = {**os.environ, "PYTHONPATH": f"{LIBRARIES}:{foreign}"}
    words: list[str | Path] = [venv / "bin/python", "-m", "envferry", "--version"]
    finished = subprocess.run(words, cwd=foreign, env=environ, capture_output=True, text=True,
                              check=False)  # fmt: skip
    assert (finished.stdout, finished.stderr) == (f"envferry, version {__version__}\n", "")


def test_what_pythonpath_names_comes_last() -> None:
    path = ["/venv/bin", "", "/ci", "/lib/python", "/venv/site-packages", "/ci/sub"]
    found = put_installed_first(path, "/ci::/ci/x/../sub", "/venv/bin")
    assert found == ["/lib/python", "/venv/site-packages", "/ci", "/ci/sub"]
    assert put_installed_first(path, "", "/venv/bin") == path[2:]


def test_our_own_wheel_is_the_wheel_that_pyproject_describes() -> None:
    """It carries the command, as hatch's `shared-scripts` would."""
    with zipfile.ZipFile(BytesIO(own_wheel()[1])) as wheel:
        names = set(wheel.namelist())
        script = wheel.read(f"envferry-{__version__}.data/scripts/envferry")
        mode = wheel.getinfo(f"envferry-{__version__}.data/scripts/envferry").external_attr >> 16
        record = wheel.read(f"envferry-{__version__}.dist-info/RECORD").decode()
    assert CONSOLE_SCRIPT.stat().st_mode & 0o111 == 0o111, "pip leaves scripts as they are packed"
    assert mode & 0o777 == 0o755
    assert script.startswith(b"#!python\n")
    assert f"envferry-{__version__}.dist-info/entry_points.txt" not in names
    assert {line.split(",")[0] for line in record.splitlines()} == names
