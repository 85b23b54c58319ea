"""What a project's build backend (PEP 517) does, and what is made of one that fails."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envferry.build.inside.build_backend import Backend
from envferry.errors import ToolFailed

if TYPE_CHECKING:
    from envferry.process import Finished

IN_TREE = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["tools"]
"""
BACKEND = """\
import os, subprocess, sys
def get_requires_for_build_wheel(settings=None):
    print("asked for requirements")
    return ["Hatchling >=1", "numpy"]
def build_wheel(directory, settings=None, metadata=None):
    print("making", os.environ["COLOUR"])
    open(os.path.join(directory, "made-1-py3-none-any.whl"), "w").close()
    return "made-1-py3-none-any.whl"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a project with a backend of its own."""
    folder = tmp_path / "project"
    (folder / "tools").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(IN_TREE)
    (folder / "tools/backend.py").write_text(BACKEND)
    return folder


def backend_of(project: Path) -> Backend:
    environ = {"PATH": os.environ["PATH"], "COLOUR": "green"}
    return Backend(project, Path(sys.executable), environ)


def make(project: Path) -> Finished:
    return backend_of(project).make_wheel(project.parent / "dist")


def test_a_backend_in_the_project_makes_a_wheel(project: Path) -> None:
    finished = make(project)
    assert finished.returncode == 0, finished.stdout
    assert "making green" in finished.stdout
    assert [path.name for path in (project.parent / "dist").iterdir()] == [
        "made-1-py3-none-any.whl"
    ]


def test_requirements_that_no_name_pins_are_told(project: Path) -> None:
    assert backend_of(project).unpinned_requirements(["hatchling"]) == ("numpy",)
    (project / "tools/backend.py").write_text("raise SystemExit(3)\n")
    assert backend_of(project).unpinned_requirements(["hatchling"]) == ()


def test_requirements_of_a_backend_without_that_hook(project: Path) -> None:
    (project / "tools/backend.py").write_text("def build_wheel(*arguments): ...\n")
    assert backend_of(project).unpinned_requirements([]) == ()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import of_nobody\n", "No module named 'of_nobody'"),
        (f"{BACKEND}\ndef build_wheel(*rest): raise ValueError('so not')\n", "so not"),
        ("import os\ndef build_wheel(*arguments): os._exit(0)\n", "output.json"),
        ("import os\ndef build_wheel(*arguments): os.abort()\n", ""),
        ("x = 1\n", "build_wheel"),
    ],
    ids=["import", "error", "silent", "signal", "no-hook"],
)
def test_a_backend_that_fails(project: Path, code: str, words: str) -> None:
    (project / "tools/backend.py").write_text(code)
    finished = make(project)
    assert finished.returncode != 0
    assert words in finished.stdout


def test_a_backend_outside_of_its_project_is_refused(project: Path) -> None:
    text = IN_TREE.replace('"tools"', '"../elsewhere"')
    (project / "pyproject.toml").write_text(text)
    (project.parent / "elsewhere").mkdir()
    (project.parent / "elsewhere/backend.py").write_text(BACKEND)
    finished = make(project)
    assert finished.returncode == 1
    assert not any((project.parent / "dist").iterdir())


def test_a_damaged_pyproject_is_named(project: Path) -> None:
    (project / "pyproject.toml").write_text("[build-system")
    with pytest.raises(ToolFailed, match=r"pyproject\.toml of project cannot be read"):
        make(project)
