"""The wheel as pyproject.toml describes it: built by hatchling, installed by uv and by pip."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
import uv

from envferry import __version__
from envferry.transfer.host_tool import own_wheel

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel."""
    place = tmp_path_factory.mktemp("dist")
    subprocess.run([uv.find_uv_bin(), "build", "-q", "--wheel", "-o", place, ROOT], check=True)
    (built,) = place.glob("envferry-*.whl")
    return built


def test_our_own_wheel_holds_what_the_built_one_holds(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as built, zipfile.ZipFile(BytesIO(own_wheel()[1])) as own:
        assert set(built.namelist()) == set(own.namelist())
        script = f"envferry-{__version__}.data/scripts/envferry"
        assert built.read(script) == own.read(script)


@pytest.mark.parametrize("what", ["uv", "uv --editable", "pip", "pip --editable"])
def test_the_command_works_beside_foreign_folders(wheel: Path, tmp_path: Path, what: str) -> None:
    installer, _, option = what.partition(" ")
    venv, words = tmp_path / "venv", [option, str(ROOT if option else wheel)]
    command = [uv.find_uv_bin(), "pip", "install", "-q", "--python", str(venv / "bin/python")]
    if installer == "uv":
        subprocess.run([uv.find_uv_bin(), "venv", "-q", "-p", sys.executable, venv], check=True)
    else:
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        command = [str(venv / "bin/python"), "-m", "pip", "install", "-q"]
    subprocess.run([*command, *filter(None, words)], check=True)
    for name in ("envferry", "pipeline"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('foreign')\n")
    finished = subprocess.run(
        [venv / "bin/envferry", "--version"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:."},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.stdout, finished.stderr) == (f"envferry, version {__version__}\n", "")
