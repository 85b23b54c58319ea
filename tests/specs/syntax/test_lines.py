"""Single lines of both halves: what each asks for, what is joined, what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from envferry.specs.reading import read_spec
from envferry.specs.syntax.conda_lines import conda_name, merged, parse_conda_line, split_subdir
from envferry.specs.syntax.pip_lines import (
    ignored_options,
    pip_line_problem,
    plain_requirement,
    requirement_name,
    without_ignored_options,
)
from envferry.specs.syntax.selectors import is_selected

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("numpy", ("numpy", "", "", "", "", "")),
        ("NumPy =1.2", ("numpy", "", "", "1.2.*", "", "")),
        ("numpy=1.2=py_0", ("numpy", "", "", "==1.2", "py_0", "")),
        ("x264=1!161.3030=h7f98852_1", ("x264", "", "", "==1!161.3030", "h7f98852_1", "")),
        ("numpy >=1.2 , <2 py*", ("numpy", "", "", ">=1.2,<2", "py*", "")),
        ("a=1.*=b*", ("a", "", "", "1.*", "b*", "")),
        ("c/linux-64::a[build_number=3]", ("a", "c", "linux-64", "", "", "build_number=3")),
        ("https://h.example.org/c::a", ("a", "https://h.example.org/c", "", "", "", "")),
        (
            "https://h.example.org/c/noarch::a",
            ("a", "https://h.example.org/c", "noarch", "", "", ""),
        ),
        ("https://h.example.org/c/noarch/my-pkg-1.0-py_0.conda", ("my-pkg", "", "", "", "", "")),
    ],
)
def test_the_parts_of_a_conda_line(line: str, parts: tuple[str, ...]) -> None:
    found = parse_conda_line(line)
    assert found is not None
    assert (
        *(found.name, found.channel, found.subdir, found.version, found.build, found.keys),
    ) == parts
    assert bool(found.url) is line.endswith(".conda")


@pytest.mark.parametrize("line", ["", "==3", "::a", "https://h.example.org/a.conda", "{{ a }}"])
def test_what_names_no_conda_package(line: str) -> None:
    assert conda_name(line) == ""


def test_a_channel_may_be_called_like_a_path() -> None:
    assert split_subdir("conda-forge/label/dev") == ("conda-forge/label/dev", "")
    assert split_subdir("conda-forge/osx-arm64") == ("conda-forge", "osx-arm64")


@pytest.mark.parametrize(
    ("lines", "one"),
    [
        (("numpy", "numpy"), "numpy"),
        (("pip", "pip=23"), "pip 23.*"),
        (("a>=1", "a <2"), "a >=1,<2"),
        (("a=1=b_0", "a"), "a ==1 b_0"),
        (("a 1.0|2.0", "a<3"), "a (1.0|2.0),<3"),
        (("c::a", "a>1"), "c::a >1"),
        (("a[md5=00]", "a=1"), "a 1.*[md5=00]"),
        (("a[md5=00]", "a[build_number=1]"), "a[md5=00,build_number=1]"),
        (
            ("a", "https://h.example.org/c/noarch/a-1-0.conda"),
            "https://h.example.org/c/noarch/a-1-0.conda",
        ),
    ],
)
def test_lines_for_one_package_are_joined(lines: tuple[str, ...], one: str) -> None:
    assert merged(lines) == one


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("a=1=x", "a=1=y"), "builds x and y"),
        (("c::a", "d::a"), "channels c and d"),
        (("a[md5=0]", "a[md5=1]"), "they name `md5` differently"),
        (("https://h.example.org/c/noarch/a-1-0.conda", "a>1"), "URL of a package"),
        (("https://h.example.org/c/noarch/a-1-0.conda", "a[md5=1]"), "URL of a package"),
    ],
)
def test_lines_that_cannot_hold_together(lines: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        merged(lines)


def test_a_spec_with_two_lines_for_one_package(tmp_path: Path) -> None:
    path = tmp_path / "n.yml"
    path.write_text("dependencies: [python, numpy>=1, pip, numpy<2, pip=23]\n")
    assert read_spec(path).conda == ("python", "numpy >=1,<2", "pip 23.*")


GIT = "git+https://g.example.org/a/bee.git"


@pytest.mark.parametrize(
    ("line", "plain", "name"),
    [
        (GIT, GIT, ""),
        (f"{GIT}@v1#egg=Bee", f"Bee @ {GIT}@v1", "bee"),
        (f"-e {GIT}#egg=bee&subdirectory=x", f"bee @ {GIT}#subdirectory=x", "bee"),
        (f"--editable={GIT}@main#egg=bee[all]", f"bee[all] @ {GIT}@main", "bee"),
        (f"{GIT}@main#egg=bee-1.7.1dev", f"{GIT}@main", ""),
        (f"{GIT}@v1#egg=bee==1.2&subdirectory=x", f"bee @ {GIT}@v1#subdirectory=x", "bee"),
        (f"{GIT}?a=1&b=2#egg=bee&subdirectory=x", f"bee @ {GIT}?a=1&b=2#subdirectory=x", "bee"),
        ("https://h.example.org/x.zip?a=1&b=2", None, ""),
        (
            "https://h.example.org/a-1.0.tar.gz?a=1&b=2",
            "a @ https://h.example.org/a-1.0.tar.gz?a=1&b=2",
            "a",
        ),
        ("https://h.example.org/a/archive/master.zip", None, ""),
        ("https://h.example.org/a-1.0.tar.gz", "a @ https://h.example.org/a-1.0.tar.gz", "a"),
        (
            "https://h.example.org/a_b-1.0-py3-none-any.whl#sha256=00",
            "a-b @ https://h.example.org/a_b-1.0-py3-none-any.whl#sha256=00",
            "a-b",
        ),
        ("-e ./app", "./app", ""),
        ("submodules/simple-knn", None, ""),
        ("wheels/a-1-py3-none-any.whl", None, "a"),
        ("Rich[jupyter]>=13 ; python_version > '3' # why", None, "rich"),
    ],
)
def test_what_a_pip_line_asks_for(line: str, plain: str | None, name: str) -> None:
    assert pip_line_problem(line) == ""
    assert plain_requirement(line) == (plain or line)
    assert requirement_name(line) == name


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("- rich", "starts with a dash"),
        ("--rich", "`--rich` is not a valid option"),
        ("--index-url", "needs a value"),
        ("--pre yes", "takes no value"),
        ("rich --pre", "`--pre` is not a valid option of a requirement"),
        ("hg+https://h.example.org/a", "hg repositories"),
        ("a @ svn+https://h.example.org/a", "svn repositories"),
        ("-e hg+https://h.example.org/a", "hg repositories"),
        ("torch=>2", "Expected semicolon"),
    ],
)
def test_what_is_no_pip_line(line: str, problem: str) -> None:
    assert problem in pip_line_problem(line)


def test_what_decides_nothing_is_named_and_dropped() -> None:
    assert [item for item, _ in ignored_options("--trusted-host h.example.org")] == [
        "--trusted-host h.example.org"
    ]
    line = "a==1 --hash=sha256:00 --config-settings=x=y"
    assert [item for item, _ in ignored_options(line)] == ["--config-settings=x=y"]
    assert without_ignored_options(line) == "a==1 --hash=sha256:00"
    assert without_ignored_options("--require-hashes") == ""
    assert without_ignored_options("--no-index") == "--no-index"


@pytest.mark.parametrize(
    ("selector", "linux", "mac"),
    [
        ("linux", True, False),
        ("not win", True, True),
        ("linux64 or osx", True, True),
        ("unix and not linux", False, True),
        ("not (linux or win)", False, True),
        ("win32", False, False),
    ],
)
def test_selectors(selector: str, linux: bool, mac: bool) -> None:
    assert is_selected(selector, "linux-64") is linux
    assert is_selected(selector, "osx-arm64") is mac


def test_a_comment_with_brackets_is_a_comment(tmp_path: Path) -> None:
    path = tmp_path / "n.yml"
    path.write_text("dependencies:\n  - a  # see issue [1]\n  - b  # [not win]\n  - c  # [win]\n")
    assert read_spec(path, platform="linux-64").conda == ("a", "b")
