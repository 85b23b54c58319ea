"""poetry's own tables in a pyproject.toml, read as poetry reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from packaging.markers import Marker

from envferry.errors import SpecError
from envferry.specs.importing.conversion import ImportOptions, import_spec
from envferry.specs.importing.poetry_versions import pep440, python_marker

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.specs.importing.conversion import Imported


def imported(tmp_path: Path, text: str) -> Imported:
    source = tmp_path / "pyproject.toml"
    source.write_text(text)
    return import_spec(source, tmp_path / "specs", ImportOptions(name="n"))


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        ("^1.2.3", ">=1.2.3,<2"),
        ("^1.2", ">=1.2,<2"),
        ("^1", ">=1,<2"),
        ("^0.2.3", ">=0.2.3,<0.3"),
        ("^0.0.3", ">=0.0.3,<0.0.4"),
        ("^0.0", ">=0.0,<0.1"),
        ("^0", ">=0,<1"),
        ("~1.2.3", ">=1.2.3,<1.3"),
        ("~1.2", ">=1.2,<1.3"),
        ("~1", ">=1,<2"),
        ("^2.0.0b1", ">=2.0.0b1,<3"),
        ("~=1.4.2", "~=1.4.2"),
        ("1.2.*", "==1.2.*"),
        ("1.2.3", "==1.2.3"),
        ("=1.2.3", "==1.2.3"),
        ("*", ""),
        (">= 1.0 <2.0", ">=1.0,<2.0"),
        (">=1.0, !=1.5", ">=1.0,!=1.5"),
    ],
)
def test_constraints_of_the_documentation(constraint: str, expected: str) -> None:
    assert pep440(constraint) == expected


@pytest.mark.parametrize("constraint", ["^1 || ^2", "1 | 2", "later", "^", "", ">=1 and <2"])
def test_what_one_requirement_cannot_say(constraint: str) -> None:
    if constraint:
        with pytest.raises(ValueError, match=r"alternatives|is not a version"):
            pep440(constraint)
    else:
        assert pep440(constraint) == ""


@pytest.mark.parametrize(
    ("constraint", "version", "wanted"),
    [
        ("^3.8", "3.12", True),
        ("^3.8", "3.7", False),
        ("<3.8 || >=3.10", "3.9", False),
        ("<3.8 || >=3.10", "3.11", True),
        (">=3.8,<3.10 || ^3.11", "3.10", False),
        ("*", "3.10", True),
    ],
)
def test_pythons_as_markers(constraint: str, version: str, wanted: bool) -> None:
    marker = python_marker(constraint)
    environment = {"python_version": version, "python_full_version": f"{version}.1"}
    assert (not marker or Marker(marker).evaluate(environment)) is wanted


def test_a_project_of_poetry(tmp_path: Path) -> None:
    found = imported(
        tmp_path,
        """
        [tool.poetry]
        name = "x"
        [tool.poetry.dependencies]
        python = ">=3.10,<3.13"
        numpy = "^1.26"
        torch = {version = "2.*", extras = ["opt"], platform = "linux", markers = "os_name != 'nt'"}
        bee = {git = "https://g.example/bee.git", tag = "v1", subdirectory = "py"}
        [[tool.poetry.source]]
        name = "mirror"
        url = "https://i.example/simple"
        [[tool.poetry.source]]
        name = "more"
        url = "https://j.example/simple"
        priority = "supplemental"
        """,
    )
    assert found.spec.conda == ("python <3.13,>=3.10", "pip")
    assert found.spec.pip == (
        "--index-url https://i.example/simple",
        "--extra-index-url https://j.example/simple",
        "numpy>=1.26,<2",
        'torch[opt]==2.* ; (sys_platform == "linux") and (os_name != "nt")',
        "bee @ git+https://g.example/bee.git@v1#subdirectory=py",
    )


def test_the_usual_index_beside_another_one(tmp_path: Path) -> None:
    sources = '[[tool.poetry.source]]\nname = "PyPI"\n[[tool.poetry.source]]\nname = "own"\n'
    text = f'[tool.poetry.dependencies]\nnumpy = "*"\n{sources}url = "https://i.example/s"\n'
    assert imported(tmp_path, text).spec.pip == ("--extra-index-url https://i.example/s", "numpy")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("n = {version = '1', markers = 'sometimes'}", "the markers of n are not valid"),
        ("n = {version = '1', python = 'new'}", "the markers of n are not valid"),
        ("n = 3", "is not a table"),
        ("n = 'latest'", "cannot be taken over"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, lines: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        imported(tmp_path, f"[tool.poetry.dependencies]\n{lines}\n")
